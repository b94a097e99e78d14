"""Who our product is compared with: from codes and scales to a function of x, or None where that cannot be.

They get matrices that share an input as one matrix.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from gemma3_int4.int4_codes import dequantize, row_blocks

from benchmarks.choices import PEERS


def cublas(codes: torch.Tensor, scales: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The dequantized matrix in bfloat16."""
    weight = torch.empty(codes.shape[0], codes.shape[1] * 2, dtype=torch.bfloat16, device=codes.device)
    for block in row_blocks(*weight.shape):
        weight[block] = dequantize(codes[block], scales[block], torch.bfloat16)
    return lambda x: x @ weight.T


def torch_int4(codes: torch.Tensor, scales: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """PyTorch's operator with the tensor-core layout; random codes, so the order of nibbles is of no interest."""
    if codes.device.type != "cuda" or codes.shape[1] * 2 % 128 or codes.shape[0] % 8:
        return None
    weight = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    pairs = torch.stack([scales.T, torch.zeros_like(scales.T)], dim=-1).contiguous()
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, weight, 32, pairs)


def gemlite(codes: torch.Tensor, scales: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    if codes.device.type != "cuda" or importlib.util.find_spec("gemlite") is None:
        return None
    from gemlite.helper import A16Wn

    single = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)  # uint8 [N, K]
    maker = A16Wn(device=str(codes.device), dtype=torch.bfloat16)
    zeros = torch.full_like(scales, 8)
    return maker.from_weights(single, scales, zeros, W_nbits=4, group_size=32).forward


MAKERS = dict(zip(PEERS, (cublas, torch_int4, gemlite), strict=True))
