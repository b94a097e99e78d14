"""PyTorch's int4 operator for GPUs as its source describes it, written out lane by lane and run on the CPU.

NVIDIA and AMD: aten/src/ATen/native/cuda/int4mm.cu (`matrix_to_m16n8k16_Bint4_layout` packs; `BLayout_TC_int4::load`
and `convert_i4x8_to_bf16x2x4` read). What a lane holds of the right operand is NVIDIA's and AMD's own definition of the
instructions (PTX: mma.m16n8k16, matrix fragments; AMD matrix instruction calculator: v_mfma_f32_16x16x16_bf16).
Apple: aten/src/ATen/native/mps/kernels/Quantized.metal (`weight_to_int4pack`, `int4pack_mm`).
Intel: aten/src/ATen/native/mkldnn/xpu/detail/WoQMatmul.cpp (u4, inputs side by side; zero points int8).
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from gemma3_int4.int4_gpu_aten import Layout

INNER_K_TILES = 8


def convert_weight_to_int4pack(codes: np.ndarray, layout: Layout) -> np.ndarray:
    """Codes 0..15 [N, K] -> int32 [N/8, K/128, 32, 4], as `_convert_weight_to_int4pack(..., 8)` does."""
    outputs, inputs = codes.shape
    if layout is Layout.ROW_MAJOR:  # the nibbles of each byte exchanged, the even input's being the high one
        packed = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
        return np.ascontiguousarray(packed).view(np.int32).reshape(outputs // 8, inputs // 128, 32, 4)
    lanes = 32 if layout is Layout.NVIDIA else 64
    given = (codes[:, 0::2] << 4 | codes[:, 1::2]).astype(np.uint32)
    out = np.zeros((outputs // layout.value, inputs // 128, lanes, INNER_K_TILES // 2), dtype=np.uint32)
    for tile, outer, t, inner in np.ndindex(out.shape):
        base = (outer * INNER_K_TILES + 2 * inner) * 16 // 2
        if layout is Layout.NVIDIA:
            n, first = tile * 8 + t // 4, base + t % 4
            bytes_ = [given[n, k] for k in (first, first + 4, first + 8, first + 12)]
        else:
            n, first = tile * 16 + t % 16, base + t // 16 * 2
            bytes_ = [given[n, k] for k in (first, first + 1, first + 8, first + 9)]
        for i, byte in enumerate(bytes_):
            out[tile, outer, t, inner] |= (byte & 0xF) << (16 + 4 * i) | (byte >> 4) << (4 * i)
    return out.view(np.int32).reshape(outputs // 8, inputs // 128, 32, 4)


def weights(int4pack: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, layout: Layout) -> torch.Tensor:
    """The bfloat16 matrix [N, K] that the operator multiplies by."""
    words = int4pack.numpy().view(np.uint32)
    apart = zeros is not None
    scales, zeros = (scales.T, zeros.T) if apart else scales.permute(2, 1, 0)
    outputs, inputs = scales.shape[0], scales.shape[1] * 32
    codes = np.zeros((outputs, inputs), dtype=np.uint8)
    if layout is Layout.ROW_MAJOR:
        single = words.reshape(outputs, -1).view(np.uint8)
        codes[:, 0::2], codes[:, 1::2] = single & 0xF, single >> 4
    else:
        lanes = 32 if layout is Layout.NVIDIA else 64
        tiles = words.reshape(outputs // layout.value, inputs // 128, lanes, 4)
        for tile, outer, lane, j in np.ndindex(tiles.shape):
            word = int(tiles[tile, outer, lane, j])
            for i in range(4):  # pairs of nibbles 16 bits apart, each a register or half of one
                pair = word >> (4 * i) & 0xF, word >> (4 * i + 16) & 0xF
                k_tile, half = 8 * outer + 2 * j + i // 2, i % 2
                if layout is Layout.NVIDIA:
                    n, k = tile * 8 + lane // 4, 16 * k_tile + lane % 4 * 2 + 8 * half
                else:
                    n, k = tile * 16 + lane % 16, 16 * k_tile + lane // 16 * 4 + 2 * half
                codes[n, k : k + 2] = pair
    codes = torch.from_numpy(codes).float().unflatten(1, (-1, 32))
    scales, zeros = (part.float().unsqueeze(-1) for part in (scales, zeros))
    weight = (codes - zeros) * scales if apart else (codes - 8) * scales + zeros
    return weight.flatten(1).bfloat16()


@functools.cache
def operator(layout: Layout) -> Callable:
    """The operator for one layout: products of bfloat16 numbers, summed in float32."""

    def multiply(
        x: torch.Tensor, int4pack: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
    ) -> torch.Tensor:
        return (x.float() @ weights(int4pack, scales, zeros, layout).float().T).bfloat16()

    made = torch.library.custom_op(f"aten_gpu_operator::{layout.name}", multiply, mutates_args=())
    made.register_fake(lambda x, int4pack, scales, zeros: x.new_empty(x.shape[0], scales.shape[1]))
    return made
