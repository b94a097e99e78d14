"""The kernels for Arm, cross-compiled and run by qemu on CPUs with and without dot products and bfloat16.

Run with: make test-arm
"""

import functools
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest
from gemma3_int4 import int4_cpu_build
from gemma3_int4.int4_cpu_hardware import INSTRUCTION_SETS
from gemma3_int4.int4_cpu_library import library

from tests.emulated.programs import assert_same_but_for_rounding, flags_for, flags_to_emulate, kind, outputs

COMPILER = shutil.which("aarch64-linux-gnu-gcc")
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
CPUS = {"NEON": "cortex-a72", "NEON_DOTPROD": "neoverse-n1", "NEON_BF16": "max"}  # without, with DOTPROD, with BF16
NEON_SETS = [name for name in INSTRUCTION_SETS if name.startswith("NEON")]

pytestmark = [
    pytest.mark.skipif(
        (sys.platform, platform.machine()) != ("linux", "x86_64") or library() is None,
        reason="compares with x86's kernels, which do not run here",
    ),
    pytest.mark.skipif(COMPILER is None, reason="no aarch64-linux-gnu-gcc here (Debian: gcc-aarch64-linux-gnu)"),
    pytest.mark.skipif(QEMU is None, reason="no qemu-aarch64 here (Debian: qemu-user-static)"),
]


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arm")

    @functools.cache
    def of(instruction_set: str) -> dict[str, np.ndarray]:
        if instruction_set == "AVX512":
            return outputs(folder / instruction_set, "cc", flags_to_emulate(instruction_set), [])
        flags = flags_for(instruction_set)
        if instruction_set not in CPUS:
            return outputs(folder / instruction_set, "cc", flags, [])
        emulator = [QEMU, "-cpu", CPUS[instruction_set]]
        return outputs(folder / instruction_set, COMPILER, [*flags, "-static"], emulator)

    return of


@pytest.mark.parametrize("instruction_set", NEON_SETS)
def test_the_same_arithmetic_gives_the_bits_of_x86(run, instruction_set):
    expected, found = run("AVX2"), run(instruction_set)
    assert list(found) == list(expected)
    same = [name for name in expected if kind(name) in ("linear", "dequantize", "pack")]
    assert len(same) > 20
    for name in same:
        assert np.array_equal(found[name], expected[name]), name


@pytest.mark.parametrize("instruction_set", ["NEON", "NEON_DOTPROD"])
def test_many_rows_in_floats_give_the_bits_of_avx512_s(run, instruction_set):
    expected, found = run("AVX512"), run(instruction_set)
    names = [name for name in expected if kind(name) == "product"]
    assert len(names) > 20
    for name in names:
        assert np.array_equal(found[name], expected[name]), name


@pytest.mark.parametrize("instruction_set", NEON_SETS)
def test_other_arithmetic_gives_the_numbers_of_x86_but_for_rounding(run, instruction_set):
    assert_same_but_for_rounding(run(instruction_set), run("AVX2"))


@pytest.mark.parametrize("instruction_set", NEON_SETS)
def test_the_source_compiles_for_arm_without_warnings(instruction_set, tmp_path):
    command = [COMPILER, *flags_for(instruction_set), "-Wall", "-Wextra", "-Werror"]
    command += ["-x", "c", "-", "-o", str(tmp_path / "kernel.so")]
    run = subprocess.run(command, input=int4_cpu_build.SOURCE, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
