"""A repo in compressed-tensors format: its library and transformers agree with what is written.

Run: pytest tests/conversion/export/test_compressed_tensors.py
"""

import json

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3ForConditionalGeneration,
)

from convert_flax import main
from tests.conversion.helpers.awq_source import CONFIG, PREFIX
from tests.conversion.helpers.small_tokenizer import IDS


def test_compressed_tensors_library_reads_our_weights(source, packed):
    written = load_file(packed / "model.safetensors")
    config = QuantizationConfig(**json.loads((packed / "config.json").read_text())["quantization_config"])
    scheme = config.config_groups["group_0"]
    for name in source.codes:
        if name.endswith("embed_tokens"):
            continue
        parts = {
            key: written.pop(f"{name}.{key}") for key in PackedQuantizationCompressor.compression_param_names(scheme)
        }
        weight = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
        np.testing.assert_array_equal(weight.numpy(), source.weights[f"{name}.weight"])
    embedding = written.pop(f"{PREFIX}embed_tokens.weight").numpy()
    np.testing.assert_array_equal(embedding[: len(IDS)], source.weights[f"{PREFIX}embed_tokens.weight"])
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor.numpy(), source.weights[name])
    assert set(json.loads((packed / "model.safetensors.index.json").read_text())["weight_map"]) == set(
        load_file(packed / "model.safetensors")
    )


def test_transformers_runs_the_compressed_tensors_repo(source, packed):
    """Through compressed-tensors, without any code of ours: the logits of the float model."""
    ids = torch.tensor([[2, IDS["<start_of_turn>"], IDS["ab"], IDS["c"], IDS["\n"], IDS["bc"]]])
    reference = Gemma3ForConditionalGeneration(CONFIG).float().eval()
    state = {f"model.{name}" if "language_model" not in name else name: w for name, w in source.weights.items()}
    state = {name.replace(PREFIX, "model.language_model."): torch.from_numpy(w) for name, w in state.items()}
    state = {name.replace("vision_tower.vision_model.", "vision_tower."): w for name, w in state.items()}
    embedding = state["model.language_model.embed_tokens.weight"]
    state["model.language_model.embed_tokens.weight"] = torch.cat([embedding, torch.zeros(64, 64)])
    missing = reference.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["lm_head.weight"]
    assert not missing.unexpected_keys
    reference.tie_weights()
    model = AutoModelForImageTextToText.from_pretrained(packed, dtype=torch.float32).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained(packed)("ab").input_ids == [2, IDS["ab"]]


@pytest.mark.parametrize("case", ["mm-27b-style", "text-1b-style"])
def test_goldens_run_in_stock_transformers(goldens, tmp_path, case):
    """Flax checkpoint -> AWQ -> compressed-tensors -> transformers' own model: the logits of DeepMind's own code."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads((goldens / case / "case.json").read_text())["transformers_config"]))
    words = ["--checkpoint", goldens / case / "checkpoint", "--config", config, "--dtype", "float32"]
    words += ["--format", "compressed-tensors", "--output", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    expected = np.load(goldens / case / "expected.npz")
    multimodal = case.startswith("mm")
    auto = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    for kind in ("text", "mm") if multimodal else ("text",):
        inputs = {"input_ids": torch.from_numpy(expected[f"{kind}_hf_input_ids"]).long()[None]}
        if kind == "mm":
            inputs["token_type_ids"] = torch.from_numpy(expected["mm_hf_token_type_ids"]).long()[None]
            inputs["pixel_values"] = torch.from_numpy(expected["mm_images"]).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.inference_mode():
            logits = model(**inputs).logits[0].numpy()
        wanted = expected[f"{kind}_logits"]
        found = logits[expected[f"{kind}_logit_positions"], : wanted.shape[1]]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
