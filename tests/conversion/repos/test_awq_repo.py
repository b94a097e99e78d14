"""A repo in AWQ format read back.

Run: pytest tests/conversion/repos/test_awq_repo.py
"""

import numpy as np

from conversion.repos.awq_repo import AwqRepo
from tests.conversion.helpers.small_tokenizer import IDS


def test_a_repo_reads_back_as_its_source(source):
    repo = AwqRepo(source.path)
    linears = {name for name in source.codes if not name.endswith("embed_tokens")}
    assert set(repo.linears) == linears
    for name in linears:
        codes, scales = repo.linear(name)
        np.testing.assert_array_equal(codes, source.codes[name])
        np.testing.assert_array_equal(scales, source.scales[name])
    blocks = list(repo.embedding_blocks(len(IDS)))
    np.testing.assert_array_equal(np.concatenate([codes for codes, _ in blocks]), source.codes[repo.embedding])
    np.testing.assert_array_equal(np.concatenate([scales for _, scales in blocks]), source.scales[repo.embedding])
    rows = np.concatenate(list(repo.embedding_weights()))
    np.testing.assert_array_equal(rows[: len(IDS)], source.weights[f"{repo.embedding}.weight"])
    assert not rows[len(IDS) :].any()
    for name in repo.plain:
        np.testing.assert_array_equal(repo.read(name), source.weights[name])
    assert set(source.weights) == {*repo.plain, *(f"{name}.weight" for name in [repo.embedding, *linears])}
