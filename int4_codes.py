# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""What an int4 weight is: codes and scales, AWQ's words for them, and the reference arithmetic that defines them.

What this file offers:
    unpack_awq, pack_awq      AWQ words on disk <-> row-major codes
    from_awq                  AWQ words and scales as on disk -> row-major codes and scales
    split_codes, join_codes   row-major codes <-> one code a byte
    dequantize                row-major codes and scales -> floats
    recover_codes             plain floats and their scales -> row-major codes
    row_blocks                a matrix in slices of rows, so that nothing large stands in memory beside it
    Reference                 the backend for any device and dtype, slow and exact; the truth in tests

A weight matrix W [N, K] (N outputs, K inputs) is `W[n, k] = (code[n, k] - 8) * scale[n, k // 32]`, codes in 0..15.
*Row-major codes* are the form in which codes travel between layouts: uint8 [N, K/2], input 2j of a row in the low
nibble of byte j, input 2j+1 in the high one. Scales travel as [N, K/32] in the dtype that they have on disk.
"""

import torch
from torch import nn

GROUP_SIZE = 32
# Nibble i (low to high) of an AWQ word holds output 8j + AWQ_ORDER[i]. Source of the format: AutoAWQ's "gemm" packing.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# Eight codes of 8: the zero point of a symmetric AWQ group, eight outputs to a word.
AWQ_SYMMETRIC_ZEROS = 0x88888888 - (1 << 32)
# Weights that a slice of rows holds at most, where nothing else is asked for: 64 MB in float32.
BLOCK_WEIGHTS = 1 << 24

CACHED_WEIGHTS = 1 << 20  # likewise, where they are looked at several times and a CPU's caches are to hold them
NOT_PRODUCTS = "the embedding is not codes * scales"

Packed = dict[str, torch.Tensor]  # a matrix in the layout of one backend, by the names that the backend gives


def row_blocks(rows: int, columns: int, weights: int | None = None, multiple: int = 1) -> list[slice]:
    """Slices that cover `rows`, each of at most `weights` weights and starting at a multiple of `multiple`.

    Args:
        rows: of the matrix.
        columns: weights in a row.
        weights: None: BLOCK_WEIGHTS. A slice has `multiple` rows at least.
        multiple: of rows.
    """
    step = max((weights or BLOCK_WEIGHTS) // (columns * multiple), 1) * multiple
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def split_codes(codes: torch.Tensor) -> torch.Tensor:
    """Row-major codes, uint8 [..., K/2] -> one code a byte, uint8 [..., K]."""
    return torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)


def join_codes(single: torch.Tensor) -> torch.Tensor:
    """One code a byte, uint8 [..., K] -> row-major codes, uint8 [..., K/2]."""
    return single[..., 0::2] | (single[..., 1::2] << 4)


def unpack_awq(qweight: torch.Tensor) -> torch.Tensor:
    """AWQ words, int32 [K, N/8] -> row-major codes, uint8 [N, K/2]."""
    inputs, words = qweight.shape
    codes = torch.empty(words * 8, inputs // 2, dtype=torch.uint8, device=qweight.device)
    for block in row_blocks(words, inputs * 8):
        part = qweight[:, block]
        nibbles = torch.stack([(part >> (4 * AWQ_ORDER.index(n))) & 15 for n in range(8)], dim=-1)  # [K, words, 8]
        codes[block.start * 8 : block.stop * 8] = join_codes(nibbles.to(torch.uint8).flatten(1).T)
    return codes


def pack_awq(codes: torch.Tensor) -> torch.Tensor:
    """Row-major codes, uint8 [N, K/2] -> AWQ words, int32 [K, N/8]."""
    outputs, pairs = codes.shape
    qweight = torch.empty(pairs * 2, outputs // 8, dtype=torch.int32, device=codes.device)
    for block in row_blocks(outputs // 8, pairs * 16):
        part = codes[block.start * 8 : block.stop * 8]
        columns = split_codes(part).T.unflatten(1, (-1, 8))  # [K, words, 8]
        word = torch.zeros(columns.shape[:2], dtype=torch.int32, device=codes.device)
        for i, n in enumerate(AWQ_ORDER):
            word |= columns[:, :, n].to(torch.int32) << (4 * i)
        qweight[:, block] = word
    return qweight


def from_awq(qweight: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """AWQ words, int32 [K, N/8], and scales [K/32, N] -> row-major codes, uint8 [N, K/2], and scales [N, K/32]."""
    return unpack_awq(qweight), scales.T.contiguous()


def dequantize(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weights from codes: float32(code * scale), then rounded to `dtype`.

    Args:
        codes: row-major codes, uint8 [n, K/2].
        scales: [n, K/32], any floating dtype.
        dtype: of the result.

    Returns:
        [n, K] in `dtype`.
    """
    if torch.compiler.is_compiling():  # a compiler makes one pass of it
        signed = (split_codes(codes).to(torch.int8) - 8).unflatten(1, (-1, GROUP_SIZE))
        return (signed.float() * scales.float().unsqueeze(-1)).flatten(1).to(dtype)
    # Four passes over memory, 7 bytes a weight for bfloat16. A product has at most 4 bits beyond its scale's, so that
    # float32 holds it, and it is rounded once.
    single = codes.new_empty(*codes.shape, 2)
    torch.bitwise_and(codes, 15, out=single[..., 0])
    torch.bitwise_right_shift(codes, 4, out=single[..., 1])
    signed = single.view(torch.int8).view(*scales.shape, GROUP_SIZE)
    signed -= 8
    factors = scales.to(torch.promote_types(scales.dtype, dtype)).unsqueeze(-1)
    return torch.mul(signed, factors, out=codes.new_empty(signed.shape, dtype=dtype)).flatten(1)


def recover_codes(weight: torch.Tensor, scales: torch.Tensor, disk_dtype: torch.dtype) -> torch.Tensor:
    """Row-major codes of a plain matrix: round(weight / scale), and 8, which stands for 0, where the scale is 0.

    Args:
        weight: [N, K], as loaded.
        scales: [N, K/32], the exact scales, of either sign or 0, on the same device.
        disk_dtype: dtype of `weight` on disk; narrower than the loaded one where the user asked for float32.

    Returns:
        uint8 [N, K/2], on the CPU, so that a GPU need not hold them beside the plain matrix.

    Raises:
        ValueError: `scales` do not belong to `weight`: some code * scale, rounded alike, is another float.
    """
    codes = torch.empty(weight.shape[0], weight.shape[1] // 2, dtype=torch.uint8)
    for block in row_blocks(*weight.shape, CACHED_WEIGHTS if weight.device.type == "cpu" else None):
        grouped = weight[block].float().unflatten(1, (-1, GROUP_SIZE))
        divisor = scales[block].float().unsqueeze(-1)
        signed = (grouped / divisor.where(divisor != 0, 1)).round().clamp(-8, 7).flatten(1)
        part = join_codes((signed + 8).to(torch.uint8))
        again = dequantize(part, scales[block], disk_dtype).to(weight.dtype)
        if not torch.equal(again, weight[block]):
            raise ValueError(NOT_PRODUCTS)
        codes[block] = part
    return codes


class Reference:
    """Dequantize, then multiply: any device, any dtype.

    Tensors: row_codes uint8 [N, K/2], row-major codes; row_scales [N, K/32] in their dtype on disk.

    The matrix is dequantized in blocks of rows, so that a 262,208-row head needs no full-size temporary.
    """

    name = "reference"

    @staticmethod
    def why_not(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> str | None:
        return None

    @staticmethod
    def pack(codes: torch.Tensor, scales: torch.Tensor) -> Packed:
        return {"row_codes": codes, "row_scales": scales}

    @staticmethod
    def repack_awq(qweight: torch.Tensor, scales: torch.Tensor) -> Packed:
        return Reference.pack(*from_awq(qweight, scales))

    @staticmethod
    def unpack(packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        return packed["row_codes"], packed["row_scales"]

    @staticmethod
    def linear(x: torch.Tensor, packed: Packed) -> torch.Tensor:
        codes, scales = packed["row_codes"], packed["row_scales"]
        blocks = row_blocks(codes.shape[0], x.shape[1])
        parts = [nn.functional.linear(x, dequantize(codes[block], scales[block], x.dtype)) for block in blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    @staticmethod
    def grad_input(grad: torch.Tensor, packed: Packed) -> torch.Tensor:
        codes, scales = packed["row_codes"], packed["row_scales"]
        blocks = row_blocks(codes.shape[0], codes.shape[1] * 2)
        return sum(grad[:, block] @ dequantize(codes[block], scales[block], grad.dtype) for block in blocks)

    @staticmethod
    def embedding(ids: torch.Tensor, packed: Packed, dtype: torch.dtype) -> torch.Tensor:
        return dequantize(packed["row_codes"][ids], packed["row_scales"][ids], dtype)
