"""Scales as llama.cpp's quantizer gives them, float16, of either sign or zero, go through every format unchanged.

Run: pytest tests/conversion/export/test_q4_0_scales.py
"""

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from conversion.export.export import export
from conversion.export.gguf_language import write_language_model
from conversion.formats.gguf_names import tensor_name
from conversion.proof.verify import verify
from conversion.repos.awq_repo import AwqRepo
from tests.conversion.helpers.hub_repos import convert
from tests.modeling.tiny_repo import build, text_config


@pytest.fixture(scope="module", params=["plain", "int4"])
def repo(request, tmp_path_factory) -> AwqRepo:
    folder = tmp_path_factory.mktemp(request.param) / "repo"
    build(folder, text_config(), scale_dtype=torch.float16, embedding=request.param, q4_0=True)
    return AwqRepo(folder)


def test_the_scales_are_of_that_kind(repo):
    scales = np.concatenate([repo.linear(name)[1].ravel() for name in repo.linears])
    assert scales.dtype == np.float16
    assert (scales < 0).any()
    assert (scales == 0).any()
    assert repo.problems() == []


def test_compressed_tensors_and_back(repo, tmp_path):
    """The embedding comes back as floats, with a side file as far as these tell its scales."""
    export(repo.path, tmp_path / "packed", "compressed-tensors", report=lambda line: None)
    verify(tmp_path / "packed", 1, lambda line: None, against=repo)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32).eval()
    plain = None if repo.embedding_mode == "int4" else False
    ours = AutoModelForCausalLM.from_pretrained(
        repo.path, trust_remote_code=True, dtype=torch.float32, int4_embedding=plain
    )
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = ours(ids).logits
        difference = (stock(ids).logits - expected).norm()
    assert difference < 1e-2 * expected.norm()  # an int4 embedding is rounded to bfloat16 there
    assert convert(tmp_path / "packed", tmp_path / "again", "--scale-dtype", "float16") == 0
    again = AwqRepo(tmp_path / "again")
    for name in repo.linears:
        for found, wanted in zip(again.linear(name), repo.linear(name), strict=True):
            assert found.dtype == wanted.dtype
            np.testing.assert_array_equal(found, wanted)
    codes, scales, weights = again.embedding_rows(0, again.rows)
    assert np.array_equal(weights, next(repo.embedding_weights()))
    assert scales.shape == (again.rows, weights.shape[1] // 32)
    assert codes.any()


def test_gguf_holds_the_very_scales(repo, tmp_path, monkeypatch):
    monkeypatch.setattr("conversion.export.gguf_language.Vocabulary.of", lambda path: Tokens())
    write_language_model(repo, tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    for name in repo.linears:
        codes, scales = repo.linear(name)
        tensor = tensors[tensor_name(repo.config, name)]
        blocks = tensor.data.reshape(*scales.shape, 18)
        np.testing.assert_array_equal(np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0], scales)
        products = codes * np.repeat(scales.astype(np.float32), 32, axis=1)
        np.testing.assert_array_equal(gguf.dequantize(tensor.data, tensor.tensor_type), products)


class Tokens:
    """A vocabulary of which only the size counts."""

    tokens = tuple(map(str, range(320)))

    def metadata(self) -> dict:
        return {}
