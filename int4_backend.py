# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""What a backend is, which there are, and which one multiplies by a matrix.

What this file offers:
    Backend           the protocol: one layout of codes and scales, and the arithmetic on it
    BACKENDS          all of them, in the order in which they are considered
    choose_backend    the first that can
    reasons           why each can or cannot

| model on         | dtype    | backend    | why                                                                 |
|------------------|----------|------------|---------------------------------------------------------------------|
| NVIDIA GPU       | bfloat16 | triton     | our kernels, Ampere and later; only on request until measured       |
| x86 CPU, Linux   | bfloat16 | native-cpu | our kernels, compiled here: AVX512 (VNNI, BF16) or AVX2             |
| any other CPU    | bfloat16 | aten-cpu   | PyTorch's int4 kernel; wants bfloat16 activations and scales        |
| CPU              | float32  | reference  | exact: float32(code * scale) from the scales as stored              |
| any GPU          | bfloat16 | aten-gpu   | PyTorch's int4 operator; only on request                            |
| any accelerator  | any      | compiled   | the reference in torch.compile's hands; only on request             |
| any other device | any      | reference  | works everywhere                                                    |

The environment variable GEMMA3_INT4_BACKEND names the first of triton, aten-gpu, compiled, native-cpu, aten-cpu,
reference to be considered; without it, that is native-cpu (`FIRST_BACKEND`), so that GPUs use the reference.
"""

import os
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
FIRST_BACKEND = NativeCpu  # an earlier one, once it has run and been measured on a GPU


def choose_backend(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> type[Backend]:
    """The first backend that can multiply by a matrix [outputs, inputs] on `device` in a model of `dtype`.

    Raises:
        TypeError: for float16.
        ValueError: GEMMA3_INT4_BACKEND names none; says for each what is against it.
    """
    if dtype == torch.float16:
        raise TypeError("Gemma 3 overflows float16: use bfloat16 or float32.")
    shape = device, dtype, outputs, inputs
    asked = os.environ.get("GEMMA3_INT4_BACKEND")
    names = [backend.name for backend in BACKENDS]
    first = asked or FIRST_BACKEND.name
    if first not in names:
        known = ", ".join(f"{name} ({reason or 'usable'})" for name, reason in reasons(*shape).items())
        raise ValueError(f"GEMMA3_INT4_BACKEND={first}: no such backend; there are {known}.")
    chosen = next(backend for backend in BACKENDS[names.index(first) :] if backend.why_not(*shape) is None)
    if asked and chosen.name != asked:
        logger.warning_once(f"GEMMA3_INT4_BACKEND={asked}: {reasons(*shape)[asked]}; {chosen.name} is used instead.")
    return chosen


def reasons(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> dict[str, str | None]:
    """Name of each backend -> what forbids it for such a matrix, or None."""
    return {backend.name: backend.why_not(device, dtype, outputs, inputs) for backend in BACKENDS}
