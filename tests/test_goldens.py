"""The whole path against DeepMind's Flax code: golden checkpoint -> convert_flax.py -> from_pretrained -> logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import convert_flax
from tests.goldens.build import CASES


@pytest.fixture(scope="module", params=CASES)
def case(request, goldens) -> Path:
    return goldens / request.param


def convert(case: Path, folder: Path, *options: str) -> Path:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads((case / "case.json").read_text())["transformers_config"]))
    repo = folder / "repo"
    arguments = ["--checkpoint", case / "checkpoint", "--output", repo, "--config", config, *options]
    assert convert_flax.main([str(argument) for argument in arguments]) == 0
    return repo


def sequences(case: Path, model) -> dict[str, tuple[dict, dict]]:
    """Inputs of the model and expected outputs, for the text sequence and, where there is one, that with pictures."""
    expected = np.load(case / "expected.npz")
    found = {}
    for kind in ("text", "mm"):
        if f"{kind}_logits" not in expected:
            continue
        inputs = {"input_ids": torch.from_numpy(expected[f"{kind}_hf_input_ids"]).long().view(1, -1)}
        if "mm_images" in expected:
            inputs["token_type_ids"] = torch.from_numpy(expected[f"{kind}_hf_token_type_ids"]).long().view(1, -1)
        if kind == "mm":
            pixels = torch.from_numpy(expected["mm_images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
            inputs["pixel_values"] = pixels.to(model.dtype)
        names = ("logits", "logit_positions", "argmax", "argmax_margin")
        found[kind] = inputs, {name: expected[f"{kind}_{name}"] for name in names}
    return found


def logits_of(model, inputs: dict, rows: int) -> np.ndarray:
    with torch.no_grad():
        return model(**inputs).logits[0, :, :rows].float().numpy()


@pytest.mark.parametrize("embedding", ["plain", "int4"])
def test_float32_logits(case, tmp_path, embedding):
    repo = convert(case, tmp_path, "--dtype", "float32", "--embedding", embedding)
    model = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True)
    assert model.dtype == torch.float32
    for attention in (model.config._attn_implementation, "sdpa"):  # this project's own, and stock
        model.set_attn_implementation(attention)
        for kind, (inputs, expected) in sequences(case, model).items():
            logits = logits_of(model, inputs, expected["logits"].shape[-1])
            assert np.abs(logits[expected["logit_positions"]] - expected["logits"]).max() < 1e-4, (attention, kind)
            assert (logits.argmax(-1) == expected["argmax"]).all(), (attention, kind)


@pytest.mark.parametrize("embedding", ["plain", "int4"])
def test_bfloat16_argmax_where_it_is_no_near_tie(case, tmp_path, embedding):
    repo = convert(case, tmp_path, "--embedding", embedding)
    multimodal = "vision_config" in json.loads((repo / "config.json").read_text())
    auto = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
    model = auto.from_pretrained(repo, trust_remote_code=True)
    assert model.dtype == torch.bfloat16
    assert "aten-cpu" in model.int4_backend or "native-cpu" in model.int4_backend
    for kind, (inputs, expected) in sequences(case, model).items():
        logits = logits_of(model, inputs, expected["logits"].shape[-1])
        sure = expected["argmax_margin"] > 0.25
        assert sure.any()
        assert (logits.argmax(-1)[sure] == expected["argmax"][sure]).all(), kind


def test_without_the_int4_embedding_the_logits_are_the_same_in_float32(case, tmp_path):
    repo = convert(case, tmp_path, "--dtype", "float32")
    model = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True, int4_embedding=False)
    inputs, expected = sequences(case, model)["text"]
    logits = logits_of(model, inputs, expected["logits"].shape[-1])
    assert np.abs(logits[expected["logit_positions"]] - expected["logits"]).max() < 1e-4
