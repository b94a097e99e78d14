"""The AWQ layout against its formula, and against autoawq's own packing (0.2.9, the last release).

autoawq is fetched once, into a cache; where that cannot be, its tests skip. Run:
pytest tests/conversion/formats/test_awq.py
"""

import importlib
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from conversion.codes import dequantize
from conversion.formats import awq
from real270m.fetch import CACHE

VERSION = "0.2.9"
FOLDER = CACHE / "engines" / "autoawq"


@pytest.fixture(scope="module")
def autoawq() -> tuple[ModuleType, ModuleType]:
    """autoawq's modules `gemm` and `packing_utils`, without the packages' `__init__`, which need old transformers."""
    if not (FOLDER / f"autoawq-{VERSION}.dist-info").exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", FOLDER]
        run = subprocess.run([*command, f"autoawq=={VERSION}"], capture_output=True, text=True)
        if run.returncode:
            pytest.skip(f"autoawq=={VERSION} cannot be installed: {run.stderr.strip().splitlines()[-1:]}")
    for name in ("awq", "awq.utils", "awq.modules", "awq.modules.linear"):
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(FOLDER.joinpath(*name.split(".")))]
    names = ("awq.modules.linear.gemm", "awq.utils.packing_utils")
    yield tuple(importlib.import_module(name) for name in names)
    for name in [name for name in sys.modules if name.split(".")[0] == "awq"]:
        del sys.modules[name]


def weights(outs: int, ins: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [out, in] and scales float16 [out, in/32]."""
    rng = np.random.default_rng(3)
    codes = rng.integers(-8, 8, (outs, ins)).astype(np.int8)
    return codes, rng.uniform(0.01, 0.02, (outs, ins // 32)).astype(np.float16)


@pytest.mark.parametrize(("outs", "ins"), [(32, 32), (96, 64), (64, 256)])  # autoawq wants multiples of 32
def test_autoawq_packs_the_same_words(autoawq, outs, ins):
    """WQLinear_GEMM.from_linear on a linear that lies on the grid."""
    gemm, _ = autoawq
    codes, scales = weights(outs, ins)
    linear = torch.nn.Linear(ins, outs, bias=False)
    linear.weight.data = torch.from_numpy(dequantize(codes, scales))
    columns = torch.from_numpy(scales.T.astype(np.float32))
    theirs = gemm.WQLinear_GEMM.from_linear(linear, 4, 32, scales=columns, zeros=torch.full(columns.shape, 8))
    for part, values in awq.pack(codes, scales).items():
        np.testing.assert_array_equal(getattr(theirs, part).numpy(), values)


@pytest.mark.parametrize(("outs", "ins"), [(8, 32), (40, 96), (64, 256)])
def test_autoawq_dequantizes_our_words(autoawq, outs, ins):
    _, packing = autoawq
    codes, scales = weights(outs, ins)
    parts = awq.pack(codes, scales.astype(np.float32))
    words = (torch.from_numpy(np.ascontiguousarray(parts[part])) for part in ("qweight", "qzeros", "scales"))
    found = packing.dequantize_gemm(*words, bits=4, group_size=32)
    np.testing.assert_array_equal(found.numpy(), dequantize(codes, scales).T)


@pytest.mark.parametrize("order", ["C", "F"])
def test_words_are_the_formula(order):
    """Nibble i of word j holds output 8j + [0,2,4,6,1,3,5,7][i], code + 8."""
    codes = weights(64, 96)[0].T
    packed = awq.pack_words(np.asarray(codes, order=order)).view(np.uint32)
    for row, word, nibble in np.ndindex(96, 8, 8):
        output = 8 * word + (0, 2, 4, 6, 1, 3, 5, 7)[nibble]
        assert int(packed[row, word]) >> 4 * nibble & 15 == codes[row, output] + 8
    np.testing.assert_array_equal(awq.unpack_words(packed.view(np.int32)), codes)


def test_a_qzeros_word_is_eight_times_8():
    parts = awq.pack(*weights(64, 96))
    assert parts["qzeros"].shape == (3, 8)
    assert (parts["qzeros"].view(np.uint32) == 0x88888888).all()


def test_eight_outputs_a_word():
    with pytest.raises(ValueError, match="8 outputs per word"):
        awq.pack_words(np.zeros((32, 12), np.int8))
