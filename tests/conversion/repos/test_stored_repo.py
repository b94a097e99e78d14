"""What every reader of a repo gives, whatever the format.

Run: pytest tests/conversion/repos/test_stored_repo.py
"""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion.errors import BadInput
from conversion.repos.stored_repo import open_repo
from tests.conversion.helpers.awq_source import CONFIG
from tests.conversion.helpers.small_tokenizer import IDS


@pytest.fixture(params=["awq", "compressed-tensors", "gguf", "mlx"])
def repo(request, source, packed, llama, mlx):
    """The same model in a format, opened."""
    folders = {"awq": source.path, "compressed-tensors": packed, "gguf": llama, "mlx": mlx}
    return open_repo(folders[request.param])


def test_a_reader_finds_the_model(repo, source):
    assert repo.problems() == []
    assert repo.rows == (len(IDS) if repo.cuts_embedding else CONFIG.text_config.vocab_size)
    assert {repo.embedding, *repo.linears} == set(source.codes)
    assert repo.config.get_text_config().num_hidden_layers == CONFIG.text_config.num_hidden_layers
    assert repo.config.vision_config.hidden_size == CONFIG.vision_config.hidden_size


def test_a_reader_gives_codes_and_scales(repo, source):
    for name in repo.linears:
        codes, scales = repo.linear(name)
        np.testing.assert_array_equal(codes, source.codes[name])
        np.testing.assert_array_equal(scales, source.scales[name].astype(repo.scale_dtype or np.float32))


def test_a_reader_gives_the_embedding(repo, source):
    codes, scales, weight = repo.embedding_rows(5, 9)
    expected = source.scales[repo.embedding][5:9].astype(repo.scale_dtype or np.float32)
    if codes is not None:
        np.testing.assert_array_equal(codes, source.codes[repo.embedding][5:9])
        np.testing.assert_array_equal(scales, expected)
    else:
        np.testing.assert_array_equal(weight, source.weights[f"{repo.embedding}.weight"][5:9])


def test_a_reader_compares_what_is_no_code(repo, source):
    name = f"{repo.embedding.removesuffix('embed_tokens')}layers.3.input_layernorm.weight"
    assert repo.plain_equals(name, source.weights[name])
    assert not repo.plain_equals(name, source.weights[name] + np.float32(0.5))


def test_mlx_has_the_embedding_as_the_head_too(mlx, tmp_path):
    tensors = load_file(mlx / "model.safetensors")
    for part in ("weight", "scales", "biases"):
        head, embedding = (tensors[f"language_model.{name}.{part}"] for name in ("lm_head", "model.embed_tokens"))
        assert head.equal(embedding)
    folder = shutil.copytree(mlx, tmp_path / "repo")
    tensors["language_model.lm_head.weight"].view(torch.int32)[7] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"lm_head is not language_model\.model\.embed_tokens, rows 5 to 9"):
        open_repo(folder).embedding_rows(5, 9)


def test_a_wrong_weight_shape_is_named(packed, tmp_path):
    folder = shutil.copytree(packed, tmp_path / "repo")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("weight_shape"))
    tensors[name] = tensors[name].flip(0) + 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert open_repo(folder).problems() == [f"{name} is wrong"]
