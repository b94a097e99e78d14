"""llama.cpp on our GGUF files, pictures through mmproj; and files that llama.cpp quantized itself, converted.

It quantizes activations to int8, so a divergence is excused up to a float32 gap of 0.5.
"""

import pydoc_data.topics
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import convert_flax
from conversion.quality import perplexity
from real270m.comparison import PROMPTS, WINDOW
from real270m.fetch import gguf_path
from tests.engines.drivers.jobs import Prompt
from tests.engines.helpers.agreement import DRIVERS, agreement, reference, run
from tests.engines.helpers.cases import Case, with_rope_factor
from tests.engines.helpers.environments import environment

EXCUSED = 0.5


def test_llama_cpp(case, reference_of, report, tmp_path):
    ours = reference_of(case)
    folder = case.exported("gguf", tmp_path)
    found = agreement(ours, run("llama-cpp", "run_llama_cpp.py", folder, case, ours, tmp_path))
    report(*found.lines())
    assert found.widest < EXCUSED


def test_llama_cpp_has_the_rope_factor_of_the_large_sizes(real_270m, report, tmp_path):
    case = with_rope_factor(real_270m, tmp_path, "full_attention")
    ours = reference(case)
    found = agreement(ours, run("llama-cpp", "run_llama_cpp.py", case.exported("gguf", tmp_path), case, ours, tmp_path))
    report(found.lines()[0])
    assert found.widest < EXCUSED


def windows_of(repo: Path) -> torch.Tensor:
    """Some thousand tokens of Python's documentation."""
    text = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    tokenizer = AutoTokenizer.from_pretrained(repo)
    return tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0, : 4 * WINDOW]


def with_begin(tokens: torch.Tensor) -> np.ndarray:
    return np.stack([np.concatenate([[2], window]) for window in tokens.view(4, WINDOW).numpy()])


def test_llama_cpp_perplexity(real_270m, reference_of, report, tmp_path):
    tokens = windows_of(real_270m.repo)
    expected = perplexity(real_270m.ours(torch.float32), tokens, WINDOW, WINDOW)
    folder = real_270m.exported("gguf", tmp_path)
    ours = reference_of(real_270m)
    result = run("llama-cpp", "run_llama_cpp.py", folder, real_270m, ours, tmp_path, windows=with_begin(tokens))
    found = float(np.exp(result["loss"]))
    report(f"{found:.4f}, ours in float32 {expected:.4f}, on {tokens.numel()} tokens")
    assert found == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("embedding", ["Q4_0", "Q8_0"])
def test_a_file_that_llama_cpp_quantized(embedding, report, tmp_path):
    """Converted as it is: transformers' dequantized load of it in float32, and llama.cpp running the very file.

    (The 270M's rows of 640 are no multiple of Q6_K's blocks of 256.)
    """
    folder, repo = tmp_path / "gguf", tmp_path / "repo"
    folder.mkdir()
    file = folder / "model-270m.gguf"
    command = [environment("llama-cpp"), DRIVERS / "quantize_llama_cpp.py", gguf_path(), file, embedding]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    words = ["--checkpoint", str(file), "--output", str(repo), "--dtype", "float32", "--verify"]
    assert convert_flax.main(words) == 0

    tokenizer = AutoTokenizer.from_pretrained(repo)
    prompts = [np.array(tokenizer(text)["input_ids"]) for text in PROMPTS]
    case = Case(repo, file, [Prompt(p, p, np.zeros((0, 0, 0, 3), np.uint8)) for p in prompts])
    tokens, model = windows_of(repo), case.ours(torch.float32)
    ids = torch.cat([torch.tensor([2]), tokens[:511]]).unsqueeze(0)
    with torch.inference_mode():
        ours_logits, expected = model(ids).logits, perplexity(model, tokens, WINDOW, WINDOW)
        del model
        stock = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
        apart = (ours_logits - stock(ids).logits).abs().max().item()
        del stock

    ours = reference(case)
    result = run("llama-cpp", "run_llama_cpp.py", folder, case, ours, tmp_path, windows=with_begin(tokens))
    found, its = agreement(ours, result), float(np.exp(result["loss"]))
    report(
        f"float32 logits within {apart:.1e} of transformers' load of the file; perplexity {expected:.4f}, llama.cpp's "
        f"{its:.4f}, on {tokens.numel()} tokens",
        *found.lines(),
    )
    assert apart < 1e-4
    assert found.widest < EXCUSED
    assert its == pytest.approx(expected, rel=0.005)
