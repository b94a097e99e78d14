"""The AWQ layout against autoawq 0.2.9's own pack and unpack functions.

Its source is fetched from PyPI once, into a cache; without a network these tests skip. Run:
pytest tests/conversion/test_awq.py
"""

import importlib
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from conversion.codes import dequantize
from conversion.formats import awq, embedding

CACHE = Path.home() / ".cache" / "gemma3-int4"
VERSION = "0.2.9"


@pytest.fixture(scope="module")
def autoawq():
    """autoawq's packages without their __init__ files, which import what current transformers lacks."""
    source = CACHE / f"autoawq-{VERSION}"
    if not source.exists():
        command = [sys.executable, "-m", "pip", "download", f"autoawq=={VERSION}", "--no-deps", "--no-build-isolation"]
        CACHE.mkdir(parents=True, exist_ok=True)
        fetched = subprocess.run([*command, "--dest", str(CACHE)], capture_output=True, text=True, check=False)
        if fetched.returncode:
            pytest.skip(f"autoawq {VERSION} cannot be fetched: {fetched.stderr.strip().splitlines()[-1]}")
        with tarfile.open(CACHE / f"autoawq-{VERSION}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    names = ("awq", "awq.utils", "awq.modules", "awq.modules.linear")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(source / name.replace(".", "/"))]
    yield types.SimpleNamespace(
        packing=importlib.import_module("awq.utils.packing_utils"),
        gemm=importlib.import_module("awq.modules.linear.gemm"),
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "awq"]:
        del sys.modules[name]


@pytest.fixture
def codes():
    return np.random.default_rng(0).integers(-8, 8, (96, 64)).astype(np.int8)  # [in, out]


def test_autoawq_packs_the_same_words(autoawq, codes):
    """WQLinear_GEMM.from_linear on a linear that lies on the grid."""
    scales = np.random.default_rng(1).uniform(0.01, 1, (3, 64)).astype(np.float16)
    linear = torch.nn.Linear(96, 64, bias=False, dtype=torch.float16)
    weights = dequantize(codes, scales.astype(np.float32), axis=0).T.copy()
    linear.weight.data = torch.from_numpy(weights).half()
    theirs = autoawq.gemm.WQLinear_GEMM.from_linear(
        linear, w_bit=4, group_size=32, scales=torch.from_numpy(scales), zeros=torch.full((3, 64), 8)
    )
    assert (theirs.qweight.numpy() == awq.pack(codes)).all()
    assert (theirs.qzeros.numpy() == awq.ZERO_WORD).all()
    assert theirs.qzeros.shape == (3, 8)
    assert (theirs.scales.numpy() == scales).all()


def test_autoawq_unpacks_our_words(autoawq, codes):
    qweight = torch.from_numpy(awq.pack(codes))
    qzeros = torch.full((3, 8), int(awq.ZERO_WORD), dtype=torch.int32)
    scales = np.random.default_rng(2).uniform(0.01, 1, (3, 64)).astype(np.float32)
    theirs = autoawq.packing.dequantize_gemm(qweight, qzeros, torch.from_numpy(scales), 4, 32)
    assert (theirs.numpy() == dequantize(codes, scales, axis=0)).all()


@pytest.mark.parametrize("order", ["C", "F"])
def test_pack_is_the_formula(codes, order):
    """Nibble i of word j holds output 8j + [0,2,4,6,1,3,5,7][i], code + 8."""
    packed = awq.pack(np.asarray(codes, order=order)).view(np.uint32)
    for row, word, nibble in np.ndindex(96, 8, 8):
        output = 8 * word + (0, 2, 4, 6, 1, 3, 5, 7)[nibble]
        assert int(packed[row, word]) >> 4 * nibble & 15 == codes[row, output] + 8
    assert (awq.unpack(packed.view(np.int32)) == codes).all()


def test_eight_outputs_a_word():
    with pytest.raises(ValueError, match="8 outputs per word"):
        awq.pack(np.zeros((32, 12), np.int8))


@pytest.mark.parametrize("order", ["C", "F"])
def test_embedding_rows_are_packed_in_order(codes, order):
    packed = embedding.pack(np.asarray(codes, order=order)).view(np.uint32)
    for row, word, nibble in np.ndindex(96, 8, 8):
        assert int(packed[row, word]) >> 4 * nibble & 15 == codes[row, 8 * word + nibble] + 8
    assert (embedding.unpack(packed.view(np.int32)) == codes).all()
