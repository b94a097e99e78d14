"""Our AWQ words against autoawq's own packing (0.2.9, the last release), fetched once into the cache."""

import importlib
import subprocess
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

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


def codes_and_scales(outs: int, ins: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    codes = rng.integers(-8, 8, (ins, outs), np.int8)
    return codes, rng.uniform(0.01, 0.02, (ins // 32, outs)).astype(np.float16)


@pytest.mark.parametrize(("outs", "ins"), [(32, 32), (96, 64), (64, 256)])  # autoawq wants multiples of 32
def test_autoawq_packs_the_same_words(autoawq, outs, ins):
    gemm, _ = autoawq
    codes, scales = codes_and_scales(outs, ins)
    linear = torch.nn.Linear(ins, outs, bias=False)
    linear.weight.data = torch.from_numpy((codes * np.repeat(scales.astype(np.float32), 32, axis=0)).T.copy())
    columns = torch.from_numpy(scales.astype(np.float32))
    packed = gemm.WQLinear_GEMM.from_linear(linear, 4, 32, scales=columns, zeros=torch.full(columns.shape, 8))
    np.testing.assert_array_equal(packed.qweight.numpy(), awq.pack(codes))
    assert (packed.qzeros.numpy() == awq.ZERO_WORD).all()
    np.testing.assert_array_equal(packed.scales.numpy(), scales)


@pytest.mark.parametrize(("outs", "ins"), [(8, 32), (40, 96), (64, 256)])
def test_autoawq_dequantizes_our_words(autoawq, outs, ins):
    _, packing = autoawq
    codes, scales = codes_and_scales(outs, ins)
    scales = scales.astype(np.float32)
    zeros = np.full((ins // 32, outs // 8), awq.ZERO_WORD)
    words = (torch.from_numpy(array) for array in (awq.pack(codes), zeros, scales))
    found = packing.dequantize_gemm(*words, bits=4, group_size=32)
    np.testing.assert_array_equal(found.numpy(), codes * np.repeat(scales, 32, axis=0))
