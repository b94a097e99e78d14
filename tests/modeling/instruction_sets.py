"""The CPU kernels as they are compiled for one set of instructions, on a CPU that has several."""

import contextlib
import sys
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def only(name: str, package: str) -> Iterator[None]:
    """Let a package, one copy of our modules, compile and choose as for `name`; skips where that cannot run here."""
    kernel, cpu = (sys.modules[f"{package}.{module}"] for module in ("int4_cpu_kernel", "int4_cpu"))
    before = kernel.INSTRUCTION_SETS, cpu.MAX_NATIVE_ROWS
    kernel.INSTRUCTION_SETS = {name: kernel.INSTRUCTION_SETS[name]}
    kernel.library.cache_clear()
    try:
        if kernel.library() is None:
            pytest.skip(f"no {name} or no C compiler here")
        if name == "AVX2":
            cpu.MAX_NATIVE_ROWS = 1
        yield
    finally:
        kernel.INSTRUCTION_SETS, cpu.MAX_NATIVE_ROWS = before
        kernel.library.cache_clear()
