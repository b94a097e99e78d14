"""A repo in AWQ format is read alike in either key layout, in one file or several, with an embedding in floats alone,
and with linears that are not quantized; and so are its exports.

Run: pytest tests/conversion/repos/test_key_layouts.py
"""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion.codes import dequantize
from conversion.errors import BadInput
from conversion.export.export import export
from conversion.proof.verify import verify
from conversion.repos.awq_repo import AwqRepo
from conversion.repos.stored_repo import open_repo
from conversion.shards import INDEX
from tests.conversion.helpers.awq_source import PREFIX, Source


def rewritten(repo: Path, folder: Path, change, words: list[str] | None = None) -> Path:
    """A repo with other tensors in one file, `change` of those it has; without its manifest."""
    shutil.copytree(repo, folder, ignore=shutil.ignore_patterns("*.safetensors", INDEX, "conversion.json"))
    tensors = {}
    for path in repo.glob("model*.safetensors"):
        tensors |= load_file(path)
    if (repo / "int4_embedding.safetensors").exists():
        shutil.copy(repo / "int4_embedding.safetensors", folder)
    tensors = change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"] += words or []
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def second_layout(tensors: dict) -> dict:
    def renamed(name: str) -> str:
        name = re.sub(r"^language_model\.model\.", "model.language_model.", name)
        return re.sub(r"^(vision_tower|multi_modal_projector)\.", r"model.\1.", name)

    return {renamed(name): tensor for name, tensor in tensors.items()}


def test_the_second_key_layout_reads_as_the_first(plain, tmp_path):
    other = AwqRepo(rewritten(plain.path, tmp_path / "second", second_layout))
    first = AwqRepo(plain.path)
    assert other.problems() == []
    assert (sorted(other.linears), other.embedding) == (sorted(first.linears), first.embedding)
    for name in first.plain:
        np.testing.assert_array_equal(other.read(name), first.read(name))
    for form in ("compressed-tensors", "gguf"):
        export(other.path, tmp_path / form, form, report=lambda line: None)
        verify(tmp_path / form, 1, lambda line: None, against=first)


KEPT = f"{PREFIX}layers.1.mlp.down_proj"


def with_floats(source: Source):
    """Changes tensors to hold one linear as floats."""

    def change(tensors: dict) -> dict:
        weight = torch.from_numpy(dequantize(source.codes[KEPT], source.scales[KEPT]))
        rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{KEPT}.")}
        return rest | {f"{KEPT}.weight": weight}

    return change


def test_a_linear_in_floats_is_read_and_exported_where_config_json_names_it(plain, tmp_path):
    folder = rewritten(plain.path, tmp_path / "kept", with_floats(plain), [KEPT])
    repo = AwqRepo(folder)
    assert repo.problems() == []
    assert repo.kept == [KEPT]
    assert KEPT not in repo.linears
    export(folder, tmp_path / "packed", "compressed-tensors", report=lambda line: None)
    packed = open_repo(tmp_path / "packed")
    assert packed.problems() == []
    assert packed.plain_equals(f"{KEPT}.weight", repo.read(f"{KEPT}.weight"))
    with pytest.raises(BadInput, match=r"layers\.1\.mlp\.down_proj holds floats"):
        export(folder, tmp_path / "llama", "gguf", report=lambda line: None)


def test_a_linear_in_floats_that_config_json_does_not_name_is_a_problem(plain, tmp_path):
    repo = AwqRepo(rewritten(plain.path, tmp_path / "unnamed", with_floats(plain)))
    assert any("layers.1.mlp.down_proj.weight is not part of the model" in problem for problem in repo.problems())


def test_an_embedding_in_floats_alone(plain, tmp_path):
    folder = rewritten(plain.path, tmp_path / "floats", lambda tensors: tensors)
    (folder / "int4_embedding.safetensors").unlink()
    repo = AwqRepo(folder)
    assert repo.problems() == []
    assert not repo.has_codes
    assert repo.embedding_rows(0, 8)[0] is None
    export(folder, tmp_path / "packed", "compressed-tensors", report=lambda line: None)
    export(folder, tmp_path / "llama", "gguf", gguf_embedding="f16", report=lambda line: None)
    for form in ("packed", "llama"):
        verify(tmp_path / form, 1, lambda line: None, against=repo)
    with pytest.raises(BadInput, match="--gguf-embedding f16"):
        export(folder, tmp_path / "no", "gguf", report=lambda line: None)


def test_a_file_that_is_missing_is_named(plain, tmp_path):
    shutil.copytree(plain.path, tmp_path / "repo")
    (tmp_path / "repo" / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"1 of 1 files of weights are missing \(model.safetensors\); download them"):
        AwqRepo(tmp_path / "repo")
