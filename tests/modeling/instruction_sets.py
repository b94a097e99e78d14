"""The CPU kernels as they are compiled for one set of instructions, on a CPU that has several."""

import contextlib
import sys
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def only(name: str, package: str) -> Iterator[None]:
    """Let a package, one copy of our modules, compile and choose as for `name`; skips where that cannot run here."""
    names = "int4_cpu_build", "int4_cpu_library", "int4_cpu"
    build, kernels, cpu = (sys.modules[f"{package}.{module}"] for module in names)
    before = build.INSTRUCTION_SETS, cpu.MAX_NATIVE_ROWS
    build.INSTRUCTION_SETS = {name: build.INSTRUCTION_SETS[name]}
    kernels.library.cache_clear()
    try:
        if kernels.library() is None:
            pytest.skip(f"no {name} or no C compiler here")
        if name == "AVX2":
            cpu.MAX_NATIVE_ROWS = 1
        yield
    finally:
        build.INSTRUCTION_SETS, cpu.MAX_NATIVE_ROWS = before
        kernels.library.cache_clear()
