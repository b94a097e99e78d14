"""The kernels for Arm, cross-compiled and run by qemu on CPUs with and without dot products and bfloat16.

The same C program computes the same random numbers here, on x86. What is the same arithmetic gives the same bits;
else results differ by what rounding to bfloat16 does. Run with: make test-arm
"""

import functools
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gemma3_int4 import int4_cpu_build
from gemma3_int4.int4_cpu_hardware import INSTRUCTION_SETS
from gemma3_int4.int4_cpu_library import library

from tests.modeling.hardware import cpu_with

PROGRAM = Path(__file__).with_name("vectors.c")
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
    def outputs(instruction_set: str) -> dict[str, np.ndarray]:
        """What the program writes, compiled for these instructions and run on a CPU that has no more: name -> bits."""
        made, arm = folder / instruction_set, instruction_set in CPUS
        compiler, link, start = (
            (COMPILER, ["-static"], [QEMU, "-cpu", CPUS[instruction_set]]) if arm else ("cc", [], [])
        )
        flags = [flag for flag in flags_for(instruction_set) if flag not in ("-shared", "-fPIC")]
        command = [compiler, *flags, "-w", *link, str(PROGRAM), "-o", str(made), "-lgomp", "-lm"]
        subprocess.run(command, check=True, timeout=500)
        return parsed(subprocess.run([*start, made], check=True, capture_output=True, timeout=500).stdout)

    return outputs


def flags_for(instruction_set: str) -> list[str]:
    with cpu_with("gemma3_int4", instruction_set=instruction_set):
        return int4_cpu_build.compiler_flags()


def parsed(written: bytes) -> dict[str, np.ndarray]:
    found, at = {}, 0
    while at < len(written):
        end = written.index(b"\n", at)
        name, count = written[at:end].decode().split()
        found[name] = np.frombuffer(written, np.uint16, int(count), end + 1)
        at = end + 1 + 2 * int(count)
    return found


def kind(name: str) -> str:
    return name.partition("-")[0]


@pytest.mark.parametrize("instruction_set", NEON_SETS)
def test_the_same_arithmetic_gives_the_bits_of_x86(run, instruction_set):
    expected, found = run("AVX2"), run(instruction_set)
    assert list(found) == list(expected)
    same = [name for name in expected if kind(name) in ("linear", "dequantize", "pack")]
    if instruction_set != "NEON_BF16":
        same += [name for name in expected if kind(name) == "product"]
    assert len(same) > 20
    for name in same:
        assert np.array_equal(found[name], expected[name]), name


@pytest.mark.parametrize("instruction_set", NEON_SETS)
def test_other_arithmetic_gives_the_numbers_of_x86_but_for_rounding(run, instruction_set):
    """Weights and results are rounded to bfloat16, of 8 bits, each by half a unit, and in a layer a few times."""
    expected, found = run("AVX2"), run(instruction_set)
    for name in expected:
        if kind(name) == "pack":
            continue
        x, y = ((bits[name].astype(np.uint32) << 16).view(np.float32) for bits in (expected, found))
        assert np.isfinite(x).all(), name
        bound = 2**-6 * (np.abs(x) + np.sqrt(np.mean(x**2))) * (2 if kind(name) in ("layer", "keys") else 1)
        assert (np.abs(x - y) <= bound).all(), name


@pytest.mark.parametrize("instruction_set", NEON_SETS)
def test_the_source_compiles_for_arm_without_warnings(instruction_set, tmp_path):
    command = [COMPILER, *flags_for(instruction_set), "-Wall", "-Wextra", "-Werror"]
    command += ["-x", "c", "-", "-o", str(tmp_path / "kernel.so")]
    run = subprocess.run(command, input=int4_cpu_build.SOURCE, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
