"""llama.cpp on our GGUF files: the language model in Q4_0, pictures through mmproj.

It quantizes activations to int8, so a divergence is excused up to a float32 gap of 0.5.
"""

import pydoc_data.topics

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from conversion.quality import perplexity
from real270m.comparison import WINDOW
from tests.engines.helpers.agreement import agreement, run

EXCUSED = 0.5


def test_llama_cpp(case, reference_of, report, tmp_path):
    ours = reference_of(case)
    folder = case.exported("gguf", tmp_path)
    found = agreement(ours, run("llama-cpp", "run_llama_cpp.py", folder, case, ours, tmp_path))
    report(*found.lines())
    assert found.widest < EXCUSED


def test_llama_cpp_perplexity(real_270m, reference_of, report, tmp_path):
    text = "\n".join(pydoc_data.topics.topics[key] for key in sorted(pydoc_data.topics.topics))
    tokenizer = AutoTokenizer.from_pretrained(real_270m.repo)
    tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0, : 4 * WINDOW]
    expected = perplexity(real_270m.ours(torch.float32), tokens, WINDOW, WINDOW)
    windows = np.stack([np.concatenate([[2], window]) for window in tokens.view(4, WINDOW).numpy()])
    folder = real_270m.exported("gguf", tmp_path)
    ours = reference_of(real_270m)
    result = run("llama-cpp", "run_llama_cpp.py", folder, real_270m, ours, tmp_path, windows)
    found = float(np.exp(result["loss"]))
    report(f"{found:.4f}, ours in float32 {expected:.4f}, on {tokens.numel()} tokens")
    assert found == pytest.approx(expected, rel=0.005)
