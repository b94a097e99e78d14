"""The CPU kernels as they are compiled for one set of instructions, on a CPU that has several."""

import contextlib
from collections.abc import Iterator
from types import ModuleType

import pytest


@contextlib.contextmanager
def only(name: str, kernel: ModuleType) -> Iterator[None]:
    """Let `kernel`, a copy of int4_cpu_kernel, compile for `name` only; skips where that cannot run here."""
    everything = kernel.INSTRUCTION_SETS
    kernel.INSTRUCTION_SETS = {name: everything[name]}
    kernel.library.cache_clear()
    try:
        if kernel.library() is None:
            pytest.skip(f"no {name} or no C compiler here")
        yield
    finally:
        kernel.INSTRUCTION_SETS = everything
        kernel.library.cache_clear()
