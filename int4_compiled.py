# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The backend for accelerators that have torch.compile and nothing faster: the reference's arithmetic as one kernel.

What this file offers:
    Compiled    the backend, in the reference's layout

| rows of activations | what torch.compile makes                                      | bytes a weight (bfloat16)     |
|---------------------|---------------------------------------------------------------|-------------------------------|
| 1                   | the product as one sum, the weights never in memory           | 0.56                          |
| more                | the dequantization as one pass; the device's GEMM after it    | 4.6, the GEMM's 2 among them  |
"""

import functools
from collections.abc import Callable

import torch
from torch import nn

from .int4_codes import GROUP_SIZE, Packed, Reference, dequantize, row_blocks
from .int4_gpu_triton import HAS_TRITON, has_compiler


class Compiled(Reference):
    """Backend for any dtype on accelerators. Tensors as the reference's."""

    name = "compiled"

    @staticmethod
    def why_not(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> str | None:
        if device.type in ("cpu", "meta"):
            return "runs on accelerators: on CPUs the code that torch.compile makes of it is slower than PyTorch's own"
        if device.type in ("cuda", "xpu") and not (HAS_TRITON and has_compiler()):
            return "torch.compile needs triton there, and that a C compiler and Python's header files"
        return None

    @staticmethod
    def linear(x: torch.Tensor, packed: Packed) -> torch.Tensor:
        codes, scales = packed["row_codes"], packed["row_scales"]
        if x.shape[0] == 1:
            return _compiled(_one_row)(x, codes, scales)
        blocks = row_blocks(codes.shape[0], x.shape[1])
        weights = (_compiled(dequantize)(codes[block], scales[block], x.dtype) for block in blocks)
        return torch.cat([nn.functional.linear(x, weight) for weight in weights], dim=1)


def _one_row(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x [1, K] -> [1, N], summed in float32; the scale multiplies the sum of a group."""
    pairs = codes.unflatten(1, (-1, GROUP_SIZE // 2))  # [N, K/32, 16]
    even, odd = x.float().view(-1, GROUP_SIZE // 2, 2).unbind(-1)
    terms = ((pairs & 15).float() - 8) * even + ((pairs >> 4).float() - 8) * odd
    return (terms * scales.float().unsqueeze(-1)).sum((1, 2)).to(x.dtype).unsqueeze(0)


def _compiled(function: Callable) -> Callable:
    """The function compiled, for any sizes; as it is where a graph is being made already."""
    return function if torch.compiler.is_compiling() else _make(function)


@functools.cache
def _make(function: Callable) -> Callable:
    return torch.compile(function, dynamic=True)  # not at import, which would bring torch's compiler with it
