"""`AutoModel`: the model without its output head."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText

from tests.modeling.tiny_repo import build, multimodal_config, text_config

IDS = torch.randint(3, 256, (2, 24), generator=torch.Generator().manual_seed(0))


def load(path, auto_class=AutoModel, **arguments):
    return auto_class.from_pretrained(path, trust_remote_code=True, **({"dtype": torch.float32} | arguments))


@pytest.mark.parametrize("embedding", ["plain", "int4"])
@pytest.mark.parametrize(
    ("config", "whole", "name"),
    [
        (text_config, AutoModelForCausalLM, "Gemma3TextModel"),
        (multimodal_config, AutoModelForImageTextToText, "Gemma3Model"),
    ],
)
def test_its_features_and_what_it_saves(tmp_path, config, whole, name, embedding):
    repo = build(tmp_path / "repo", config(), embedding=embedding)
    model = load(repo.path)
    assert type(model).__name__ == name
    assert type(model).__module__.startswith("transformers_modules")
    with torch.no_grad():
        features = model(IDS).last_hidden_state
        assert (features - repo.reference.model(IDS).last_hidden_state).abs().max() < 1e-5
    assert model.int4_backend == "reference"
    assert model.int4_bytes == load(repo.path, whole).int4_bytes

    model.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "saved")(IDS).last_hidden_state, features)
        assert torch.equal(load(tmp_path / "saved", whole)(IDS).logits, load(repo.path, whole)(IDS).logits)
    auto_maps = [json.loads((path / "config.json").read_text())["auto_map"] for path in (repo.path, tmp_path / "saved")]
    assert auto_maps[0] == auto_maps[1]
    model.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(pickle.loads(pickle.dumps(model))(IDS).last_hidden_state, features)


def test_a_long_prompt_is_read_in_chunks(text_repo, monkeypatch):
    model = load(text_repo.path)
    ids = torch.randint(3, 256, (1, 400), generator=torch.Generator().manual_seed(0))
    seen = []
    model.layers[0].register_forward_hook(lambda module, given, out: seen.append(given[0].shape[1]))
    monkeypatch.setitem(type(model).forward.__globals__, "CPU_TOKENS", 256)
    with torch.no_grad():
        found = model(input_ids=ids).last_hidden_state
        assert (found - text_repo.reference.model(ids).last_hidden_state).abs().max() < 1e-5
    assert seen == [256, 144]


def test_features_of_a_picture(picture_repo):
    ids = IDS.clone()
    ids[:, 3:9] = torch.tensor([300, 320, 320, 320, 320, 301])
    inputs = {"input_ids": ids, "token_type_ids": (ids == 320).long(), "pixel_values": torch.rand(2, 3, 56, 56)}
    with torch.no_grad():
        found = load(picture_repo.path)(**inputs).last_hidden_state
        assert (found - picture_repo.reference.model(**inputs).last_hidden_state).abs().max() < 1e-5


def test_the_output_head_of_a_foreign_file_is_left_out(tmp_path):
    repo = build(tmp_path / "repo", multimodal_config())
    file = min(repo.path.glob("model-*.safetensors"))
    tensors = load_file(file)
    head = torch.zeros(384, 128, dtype=torch.bfloat16)
    save_file(tensors | {"language_model.lm_head.weight": head}, file, metadata={"format": "pt"})
    index = json.loads((repo.path / "model.safetensors.index.json").read_text())
    index["weight_map"]["language_model.lm_head.weight"] = file.name
    (repo.path / "model.safetensors.index.json").write_text(json.dumps(index))
    with torch.no_grad():
        found = load(repo.path)(IDS).last_hidden_state
        assert (found - repo.reference.model(IDS).last_hidden_state).abs().max() < 1e-5


def test_a_missing_tensor_is_named_as_in_the_file(picture_repo, tmp_path):
    repo = shutil.copytree(picture_repo.path, tmp_path / "repo")
    name = "language_model.model.layers.0.mlp.down_proj.scales"
    for file in repo.glob("model-*.safetensors"):
        tensors = load_file(file)
        tensors.pop(name, None)
        save_file(tensors, file, metadata={"format": "pt"})
    index = json.loads((repo / "model.safetensors.index.json").read_text())
    del index["weight_map"][name]
    (repo / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Exception, match=f"missing: {name}") as caught:
        load(repo)
    assert type(caught.value).__name__ == "Int4LoadError"
