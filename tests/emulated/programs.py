"""vectors.c, compiled for sets of instructions that this CPU may lack, run, and what it writes.

It calls every kernel on the same random numbers. What is the same arithmetic gives the same bits; else results differ
by what rounding to bfloat16 does.
"""

import subprocess
from pathlib import Path

import numpy as np
from gemma3_int4 import int4_cpu_build

from tests.modeling.hardware import cpu_with

PROGRAM = Path(__file__).with_name("vectors.c")
# Sets of instructions -> the header in which those that an x86 CPU with AVX2 may lack are C functions.
INTRINSICS = {"AVX512_BF16": "avx512.h", "AVX512_VNNI": "avx512.h", "AVX512": "avx512.h", "AVX2_VNNI": "avx_vnni.h"}


def flags_for(instruction_set: str) -> list[str]:
    with cpu_with("gemma3_int4", instruction_set=instruction_set):
        return int4_cpu_build.compiler_flags()


def flags_to_emulate(instruction_set: str) -> list[str]:
    """For one of INTRINSICS, on any x86 CPU with AVX2."""
    intrinsics = str(PROGRAM.with_name(INTRINSICS[instruction_set]))
    kept = [flag for flag in flags_for("AVX2") if flag != "-DAVX2"]
    return [f"-D{instruction_set}", "-include", intrinsics, *kept]


def outputs(made: Path, compiler: str, flags: list[str], start: list[str]) -> dict[str, np.ndarray]:
    """What the program writes, compiled to the file `made` and run after the words `start`: name -> bits."""
    command = [compiler, *(flag for flag in flags if flag not in ("-shared", "-fPIC")), "-w", str(PROGRAM)]
    subprocess.run([*command, "-o", str(made), "-lgomp", "-lm"], check=True, timeout=500)
    return _parsed(subprocess.run([*start, made], check=True, capture_output=True, timeout=500).stdout)


def _parsed(written: bytes) -> dict[str, np.ndarray]:
    found, at = {}, 0
    while at < len(written):
        end = written.index(b"\n", at)
        name, count = written[at:end].decode().split()
        found[name] = np.frombuffer(written, np.uint16, int(count), end + 1)
        at = end + 1 + 2 * int(count)
    return found


def kind(name: str) -> str:
    return name.partition("-")[0]


def assert_same_but_for_rounding(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Weights and results are rounded to bfloat16, of 8 bits, each by half a unit, and in a layer a few times."""
    assert list(found) == list(expected)
    for name in expected:
        if kind(name) == "pack":
            continue
        x, y = ((bits[name].astype(np.uint32) << 16).view(np.float32) for bits in (expected, found))
        assert np.isfinite(x).all(), name
        bound = 2**-6 * (np.abs(x) + np.sqrt(np.mean(x**2))) * (2 if kind(name) in ("layer", "keys") else 1)
        assert (np.abs(x - y) <= bound).all(), name
