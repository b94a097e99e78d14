# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""What a backend is, which there are, and which one multiplies by a matrix.

What this file offers:
    Backend           the protocol: one layout of codes and scales, and the arithmetic on it
    BACKENDS          all of them, in the order in which they are considered
    choose_backend    the first that can; on accelerators, the one that was proven there
    settle            takes note of what was proven
    asking_for        names the backend for what is done within
    reasons           why each can or cannot

| model on            | dtype    | backend                      |                                                     |
|---------------------|----------|------------------------------|-----------------------------------------------------|
| x86 CPU, Linux      | bfloat16 | native-cpu                   | our kernels, compiled here: AVX512 or AVX2          |
| Arm CPU, Linux      | bfloat16 | native-cpu                   | the same with NEON                                  |
| any other CPU       | bfloat16 | aten-cpu                     | PyTorch's int4 operator                             |
| CPU                 | float32  | reference                    | exact: float32(code * scale), from the stored scales|
| NVIDIA GPU          | bfloat16 | triton, aten-gpu or compiled | the fastest of those that were proven on this GPU   |
| another accelerator | bfloat16 | aten-gpu or compiled         | likewise                                            |
| any accelerator     | float32  | compiled                     | likewise                                            |
| where none is right | any      | reference                    | works everywhere                                    |

The environment variable GEMMA3_INT4_BACKEND, or the argument `int4_backend` of `from_pretrained`, names the first of
triton, aten-gpu, compiled, native-cpu, aten-cpu, reference to be considered, proven or not.
"""

import contextlib
import contextvars
import os
from collections.abc import Iterator
from typing import Protocol

import torch
from transformers.utils import logging

from .int4_codes import Packed, Reference
from .int4_compiled import Compiled
from .int4_cpu_aten import AtenCpu
from .int4_cpu_native import NativeCpu
from .int4_gpu_aten import AtenGpu
from .int4_gpu_triton import Triton

logger = logging.get_logger(__name__)


class Backend(Protocol):
    """One layout of a matrix W [N, K] of codes and scales, and the arithmetic on it. A class, never instantiated.

    Codes and scales come and go as `int4_codes.py` describes them: row-major codes, uint8 [N, K/2], and scales
    [N, K/32]. What `pack` makes of them has names and shapes that are the backend's own business.
    """

    name: str

    @staticmethod
    def why_not(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> str | None:
        """What forbids a matrix [outputs, inputs] on `device` in a model of `dtype`; None: nothing."""

    @staticmethod
    def pack(codes: torch.Tensor, scales: torch.Tensor) -> Packed:
        """Row-major codes and scales -> the backend's tensors, on the same device."""

    @staticmethod
    def repack_awq(qweight: torch.Tensor, scales: torch.Tensor) -> Packed:
        """AWQ's qweight int32 [K, N/8] and scales [K/32, N] -> the backend's tensors, on the same device."""

    @staticmethod
    def unpack(packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        """The inverse of `pack`, to the bit."""

    @staticmethod
    def linear(x: torch.Tensor, packed: Packed) -> torch.Tensor:
        """x [M, K] -> x @ W.T [M, N], in x's dtype."""

    @staticmethod
    def grad_input(grad: torch.Tensor, packed: Packed) -> torch.Tensor:
        """grad [M, N] of the output -> grad @ W [M, K] of the input, in grad's dtype."""

    @staticmethod
    def embedding(ids: torch.Tensor, packed: Packed, dtype: torch.dtype) -> torch.Tensor:
        """ids [n] -> rows [n, K]: float32(code * scale), rounded to `dtype`. Touches these rows only."""


BACKENDS: tuple[type[Backend], ...] = (Triton, AtenGpu, Compiled, NativeCpu, AtenCpu, Reference)
# Device as a string, dtype of the model, outputs and inputs of a matrix -> the backend that was proven for them.
_SETTLED: dict[tuple[str, torch.dtype, int, int], type[Backend]] = {}
_asked: contextvars.ContextVar[str | None] = contextvars.ContextVar("asked", default=None)


def needs_proof(device: torch.device) -> bool:
    """Whether a backend has to be proven on a device before it is chosen there: on all but CPUs."""
    return device.type not in ("cpu", "meta")


def settle(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int, backend: type[Backend]) -> None:
    """From now on such a matrix is multiplied by `backend` on this device."""
    _SETTLED[str(device), dtype, outputs, inputs] = backend


@contextlib.contextmanager
def asking_for(name: str | None) -> Iterator[None]:
    """Within, `name` is the first backend to be considered; None: as without this."""
    token = _asked.set(name or _asked.get())
    try:
        yield
    finally:
        _asked.reset(token)


def asked() -> tuple[str, str] | None:
    """The name that was asked for, and where; None: the choice is ours."""
    argument, variable = _asked.get(), os.environ.get("GEMMA3_INT4_BACKEND")
    if argument:
        return argument, "int4_backend"
    return (variable, "GEMMA3_INT4_BACKEND") if variable else None


def choose_backend(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> type[Backend]:
    """The backend that multiplies by a matrix [outputs, inputs] on `device` in a model of `dtype`.

    Raises:
        TypeError: for float16.
        ValueError: what was asked for is no backend; says for each what is against it.
    """
    if dtype == torch.float16:
        raise TypeError("Gemma 3 overflows float16: use bfloat16 or float32.")
    shape = device, dtype, outputs, inputs
    wanted = asked()
    if wanted is None and needs_proof(device):
        return _SETTLED.get((str(device), dtype, outputs, inputs), Reference)
    name, where = wanted or (BACKENDS[0].name, "")
    names = [backend.name for backend in BACKENDS]
    if name not in names:
        known = ", ".join(f"{name} ({reason or 'usable'})" for name, reason in reasons(*shape).items())
        raise ValueError(f"{where}={name}: no such backend; there are {known}.")
    chosen = next(backend for backend in BACKENDS[names.index(name) :] if backend.why_not(*shape) is None)
    if wanted and chosen.name != name:
        logger.warning_once(f"{where}={name}: {reasons(*shape)[name]}; {chosen.name} is used instead.")
    return chosen


def reasons(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> dict[str, str | None]:
    """Name of each backend -> what forbids it for such a matrix, or None."""
    return {backend.name: backend.why_not(device, dtype, outputs, inputs) for backend in BACKENDS}
