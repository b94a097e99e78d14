"""Other CPUs than this one, as far as our modules ask: `int4_cpu_hardware.cpu` is the one place that tells them."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def cpu_with(package: str, **changes) -> Iterator[None]:
    """Let a package, one copy of our modules, see a `Cpu` with these attributes changed, and CPUs enough."""
    hardware, kernels = (sys.modules[f"{package}.{module}"] for module in ("int4_cpu_hardware", "int4_cpu_library"))
    before = hardware.cpu()
    hardware._cpu = dataclasses.replace(before, **({"given": 64} | changes))
    kernels.library.cache_clear()
    try:
        yield
    finally:
        hardware._cpu = before
        kernels.library.cache_clear()


@contextlib.contextmanager
def only(name: str, package: str) -> Iterator[None]:
    """Let it compile and choose as on a CPU with this set of instructions; skips where that cannot run here."""
    hardware, kernels = (sys.modules[f"{package}.{module}"] for module in ("int4_cpu_hardware", "int4_cpu_library"))
    if not hardware.cpu().features.issuperset(hardware.INSTRUCTION_SETS[name]):
        pytest.skip(f"no {name} here")
    others = {feature for features in hardware.INSTRUCTION_SETS.values() for feature in features}
    lacking = others - set(hardware.INSTRUCTION_SETS[name])
    seen = hardware.Cpu.with_features(hardware.cpu().features - lacking)
    assert seen.instruction_set == name
    with cpu_with(package, features=seen.features, instruction_set=name, native_rows=seen.native_rows):
        if kernels.library() is None:
            pytest.skip("no C compiler here")
        yield
