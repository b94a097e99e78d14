"""The kernels for AVX512 and AVX_VNNI on a CPU without them: the intrinsics that they call are C functions here."""

import platform
import sys

import numpy as np
import pytest
from gemma3_int4.int4_cpu_hardware import INSTRUCTION_SETS, cpu
from gemma3_int4.int4_cpu_library import library

from tests.emulated.programs import (
    INTRINSICS,
    assert_same_but_for_rounding,
    flags_for,
    flags_to_emulate,
    kind,
    outputs,
)

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64") or library() is None,
    reason="compares with x86's kernels, which do not run here",
)


@pytest.fixture(scope="module", params=INTRINSICS)
def instruction_set(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def both(instruction_set, tmp_path_factory) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("emulating")
    emulated = outputs(folder / "emulating", "cc", flags_to_emulate(instruction_set), [])
    return emulated, outputs(folder / "avx2", "cc", flags_for("AVX2"), [])


def test_codes_and_weights_are_those_of_avx2(both):
    emulated, avx2 = both
    assert list(emulated) == list(avx2)
    for name in avx2:
        if kind(name) in ("pack", "dequantize"):
            assert np.array_equal(emulated[name], avx2[name]), name


def test_few_rows_differ_from_avx2_by_a_float32_s_rounding_at_most(both):
    """Digits are joined in float32 here, and in integers there: few numbers are on the other side of half."""
    emulated, avx2 = both
    for name in [name for name in avx2 if kind(name) == "linear"]:
        apart = np.abs(emulated[name].astype(np.int32) - avx2[name].astype(np.int32))
        assert apart.max() <= 1, name
        assert np.mean(apart) < 0.01, name


def test_in_fixed_point_many_rows_are_few_ones_to_the_bit(both, instruction_set):
    emulated, avx2 = both
    found = [name for name in emulated if kind(name) == "product"]
    assert len(found) > 20
    for outputs_of, fixed in ((emulated, instruction_set in ("AVX512_VNNI", "AVX2_VNNI")), (avx2, True)):
        same = [np.array_equal(outputs_of[name], outputs_of[name.replace("product", "linear")]) for name in found]
        assert all(same) == fixed


def test_all_is_the_same_but_for_rounding(both):
    assert_same_but_for_rounding(*both)


def test_the_definitions_are_those_of_the_cpu(both, instruction_set, tmp_path):
    if not cpu().features.issuperset(INSTRUCTION_SETS[instruction_set]):
        pytest.skip(f"no {instruction_set} here")
    real = outputs(tmp_path / "real", "cc", flags_for(instruction_set), [])
    assert_same_but_for_rounding(both[0], real)
    for name in [name for name in real if kind(name) in ("linear", "pack", "dequantize")]:
        assert np.array_equal(both[0][name], real[name]), name
