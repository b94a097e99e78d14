# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The backend for bfloat16 models on any other CPU: PyTorch's own int4 operator for few rows, its GEMM for many.

What this file offers:
    AtenCpu                      the backend
    split_scales, join_scales    scales of any dtype <-> bfloat16 ones and the bits beyond
    scales_of                    some outputs' scales, put together

The layout is the one that `aten::_weight_int4pack_mm_for_cpu` reads: blocks of B consecutive outputs, k-major inside a
block. B and the place of an output's nibble depend on the instruction set that torch runs on (`cpu().aten_layout`). The
operator takes bfloat16 pairs (scale, zero); the zero is always 0. What a stored scale has beyond bfloat16 is kept
beside, so that unpacking gives back every bit of it.
"""

import torch

from .int4_codes import GROUP_SIZE, Packed, dequantize, from_awq, join_codes, row_blocks
from .int4_cpu_hardware import bf16_matmul, cpu

# Weights that are repacked or dequantized at a time: 2 MB of bfloat16, so that a block stays in the cache until it is
# multiplied.
BLOCK_WEIGHTS = 1 << 20


class AtenCpu:
    """Backend for bfloat16 models on a CPU.

    Tensors: int4pack uint8 [N/B, K, B/2]; scales_and_zeros bfloat16 [K/32, N, 2]; scales_rest [K/32, N or N/2] where
    the scales on disk are not bfloat16.
    """

    name = "aten-cpu"

    @staticmethod
    def why_not(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> str | None:
        layout = cpu().aten_layout
        if device.type != "cpu":
            return "runs on a CPU"
        if dtype != torch.bfloat16:
            return "computes in bfloat16"
        if layout is None:
            return "this PyTorch lacks the operator, or packs weights for it in an unknown way"
        return f"wants outputs in {layout.outputs}s, not {outputs}" if outputs % layout.outputs else None

    @staticmethod
    def pack(codes: torch.Tensor, scales: torch.Tensor) -> Packed:
        layout = cpu().aten_layout
        blocks, inputs = codes.shape[0] // layout.outputs, codes.shape[1] * 2
        int4pack = torch.empty(blocks, inputs, layout.outputs // 2, dtype=torch.uint8)
        for block in row_blocks(blocks, inputs * layout.outputs, BLOCK_WEIGHTS):
            part = codes.view(blocks, layout.outputs, -1)[block].transpose(1, 2)  # [b, K/2, B]
            int4pack[block, 0::2] = layout.join(part & 15)
            int4pack[block, 1::2] = layout.join(part >> 4)
        rounded, rest = split_scales(scales.T.contiguous())
        packed = {"int4pack": int4pack, "scales_and_zeros": torch.stack([rounded, torch.zeros_like(rounded)], dim=-1)}
        return packed if rest is None else packed | {"scales_rest": rest}

    @staticmethod
    def repack_awq(qweight: torch.Tensor, scales: torch.Tensor) -> Packed:
        return AtenCpu.pack(*from_awq(qweight, scales))

    @staticmethod
    def unpack(packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        int4pack, layout = packed["int4pack"], cpu().aten_layout
        blocks, inputs = int4pack.shape[:2]
        codes = torch.empty(blocks, layout.outputs, inputs // 2, dtype=torch.uint8)
        for block in row_blocks(blocks, inputs * layout.outputs, BLOCK_WEIGHTS):
            codes[block] = join_codes(layout.split(int4pack[block]).transpose(1, 2))  # [b, B, K/2]
        scales = join_scales(packed["scales_and_zeros"][..., 0].contiguous(), packed.get("scales_rest"))
        return codes.flatten(0, 1), scales.T.contiguous()

    @staticmethod
    def linear(x: torch.Tensor, packed: Packed) -> torch.Tensor:
        int4pack, scales = packed["int4pack"], packed["scales_and_zeros"]
        outputs = scales.shape[1]
        if x.shape[0] <= cpu().aten_rows:
            weight = int4pack.view(outputs, -1)  # the operator wants the packed bytes called [N, K/2]
            return torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), weight, GROUP_SIZE, scales)
        y = torch.empty(x.shape[0], outputs, dtype=x.dtype)
        for block, columns in _column_blocks(int4pack):
            y[:, columns] = bf16_matmul(x, _dequantize_columns(int4pack[block], scales[:, columns, 0]))
        return y

    @staticmethod
    def grad_input(grad: torch.Tensor, packed: Packed) -> torch.Tensor:
        int4pack, scales = packed["int4pack"], packed["scales_and_zeros"]
        total = torch.zeros(grad.shape[0], int4pack.shape[1])  # summed over blocks in float32
        for block, columns in _column_blocks(int4pack):
            total += bf16_matmul(grad[:, columns], _dequantize_columns(int4pack[block], scales[:, columns, 0]).T)
        return total.to(grad.dtype)

    @staticmethod
    def embedding(ids: torch.Tensor, packed: Packed, dtype: torch.dtype) -> torch.Tensor:
        layout = cpu().aten_layout
        half = layout.outputs // 2
        lane = ids % layout.outputs
        byte, high = (lane % half, lane >= half) if layout.halves else (lane // 2, lane % 2 == 1)
        bytes_ = packed["int4pack"][ids // layout.outputs, :, byte]  # [n, K]
        codes = torch.where(high.unsqueeze(-1), bytes_ >> 4, bytes_ & 15)
        scales = scales_of(ids, packed["scales_and_zeros"][:, :, 0], packed.get("scales_rest"))
        return dequantize(join_codes(codes), scales.T, dtype)


def scales_of(ids: torch.Tensor, rounded: torch.Tensor, rest: torch.Tensor | None) -> torch.Tensor:
    """The scales [K/32, n] of outputs `ids`, as they are on disk, from what `split_scales` made of all of them."""
    if rest is None or rest.dtype != torch.uint8:
        return join_scales(rounded[:, ids], None if rest is None else rest[:, ids])
    pairs = rounded.unflatten(1, (-1, 2))[:, ids // 2].flatten(1)  # two outputs to a byte: fetch the pair, keep the one
    both = join_scales(pairs, rest[:, ids // 2]).unflatten(1, (-1, 2))
    return both[:, torch.arange(len(ids), device=ids.device), ids % 2]


def _column_blocks(int4pack: torch.Tensor) -> list[tuple[slice, slice]]:
    """(slice of blocks, slice of the outputs that they hold) for a packed matrix."""
    outputs = cpu().aten_layout.outputs
    blocks = row_blocks(int4pack.shape[0], int4pack.shape[1] * outputs, BLOCK_WEIGHTS)
    return [(block, slice(block.start * outputs, block.stop * outputs)) for block in blocks]


def _dequantize_columns(int4pack: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Blocks uint8 [b, K, B/2] and their bfloat16 scales [K/32, b*B] -> the transposed weights [K, b*B], bfloat16."""
    codes = cpu().aten_layout.split(int4pack).to(torch.int8) - 8  # [b, K, B]
    codes = codes.transpose(0, 1).flatten(1).unflatten(0, (-1, GROUP_SIZE))  # [K/32, 32, b*B]
    return (codes.to(torch.bfloat16) * scales.unsqueeze(1)).flatten(0, 1)


def split_scales(scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales of any dtype -> (bfloat16 rounding, exactly what it misses).

    The rest counts units of the last of the 16 bits that float32 has beyond bfloat16: int16 for float32 scales. For
    float16 scales only its top three bits can be set, and two such signed nibbles share a byte. None for bfloat16.
    """
    if scales.dtype == torch.bfloat16:
        return scales, None
    bits = scales.float().contiguous().view(torch.int32)
    high = (bits + 0x8000) >> 16  # round half away from zero: the rest then fits 16 signed bits
    rest = bits - (high << 16)
    rounded = (high << 16).view(torch.float32).to(torch.bfloat16)
    if scales.dtype == torch.float32:
        return rounded, rest.to(torch.int16)
    nibbles = ((rest >> 13) & 15).to(torch.uint8)
    return rounded, nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def join_scales(rounded: torch.Tensor, rest: torch.Tensor | None) -> torch.Tensor:
    """The inverse of split_scales."""
    if rest is None:
        return rounded
    bits = rounded.float().view(torch.int32)
    if rest.dtype == torch.int16:
        return (bits + rest).view(torch.float32)
    nibbles = torch.stack([rest & 15, rest >> 4], dim=-1).flatten(-2).to(torch.int32)
    return (bits + (((nibbles ^ 8) - 8) << 13)).view(torch.float32).to(torch.float16)
