# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The backend for bfloat16 models on GPUs with PyTorch's own int4 operator: NVIDIA, AMD, Apple, Intel.

What this file offers:
    AtenGpu      the backend
    Layout       where a code stands in the tensor that the operator reads, on each make of GPU
    layout_of    the layout for a device

| GPU    | operator                                    | where PyTorch's source has it, in aten/src/ATen/native/       |
|--------|---------------------------------------------|---------------------------------------------------------------|
| NVIDIA | `_weight_int4pack_mm`, Ampere and later     | cuda/int4mm.cu: tiles of 8 outputs, for mma.m16n8k16          |
| AMD    | `_weight_int4pack_mm`, CDNA2 and later      | there too: tiles of 16 outputs, for mfma_f32_16x16x16         |
| Apple  | `_weight_int4pack_mm`                       | mps/kernels/Quantized.metal: row-major codes                  |
| Intel  | `_weight_int4pack_mm_with_scales_and_zeros` | mkldnn/xpu/detail/WoQMatmul.cpp: row-major codes              |

The operator reads weights anew for every few rows, so many rows are multiplied by dequantized weights. It takes
bfloat16 scales; what a stored scale has beyond that is kept beside, so that unpacking gives back every bit of it, and
rows of the embedding are exact. Packing is plain torch, on whatever device the codes are.
"""

from enum import Enum

import torch

from .int4_codes import GROUP_SIZE, Packed, dequantize, from_awq, row_blocks
from .int4_cpu_aten import join_scales, scales_of, split_scales

# Rows of activations up to which the operator is called; reasoned from how often it reads the weights, not measured.
FEW_ROWS = {"cuda": 256, "mps": 16, "xpu": 256}
AMD_ARCHITECTURES = ("gfx90a", "gfx940", "gfx941", "gfx942")  # those that the operator accepts


class Layout(Enum):
    """The order of codes, by the outputs that form a tile; without tiles they are row-major."""

    NVIDIA = 8
    AMD = 16
    ROW_MAJOR = 1


def layout_of(device: torch.device) -> Layout:
    """What the operator wants on this device."""
    if device.type != "cuda":
        return Layout.ROW_MAJOR
    return Layout.AMD if torch.version.hip else Layout.NVIDIA


class AtenGpu:
    """Backend for bfloat16 models on GPUs.

    Tensors: int4pack int32 [N/8, K/128, 32, 4], for Intel [N, K/8]; scales_and_zeros bfloat16 [K/32, N, 2], the zeros 0
    (for Intel rounded_scales bfloat16 [K/32, N] and zeros int8 [K/32, N], all 8); scales_rest [K/32, N or N/2] where
    the scales on disk are not bfloat16.
    """

    name = "aten-gpu"

    @staticmethod
    def why_not(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> str | None:
        if device.type not in FEW_ROWS:
            return "runs on GPUs"
        if dtype != torch.bfloat16:
            return "computes in bfloat16"
        tile = max(layout_of(device).value, 8)
        if outputs % tile or inputs % 128:
            return f"wants outputs in {tile}s and inputs in 128s, not {outputs} and {inputs}"
        return _why_not_this_gpu(device) if device.type == "cuda" else None

    @staticmethod
    def pack(codes: torch.Tensor, scales: torch.Tensor) -> Packed:
        device, outputs = codes.device, codes.shape[0]
        rounded, rest = split_scales(scales.T.contiguous())
        packed = {} if rest is None else {"scales_rest": rest}
        if device.type == "xpu":
            zeros = torch.full_like(rounded, 8, dtype=torch.int8)
            return {
                "int4pack": codes.contiguous().view(torch.int32),
                "rounded_scales": rounded,
                "zeros": zeros,
            } | packed
        words = _tiled(codes, layout_of(device)).view(outputs // 8, -1, 32, 4)
        pairs = torch.stack([rounded, torch.zeros_like(rounded)], dim=-1)
        return {"int4pack": words, "scales_and_zeros": pairs} | packed

    @staticmethod
    def repack_awq(qweight: torch.Tensor, scales: torch.Tensor) -> Packed:
        return AtenGpu.pack(*from_awq(qweight, scales))

    @staticmethod
    def unpack(packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        rounded = _rounded_scales(packed)
        groups, outputs = rounded.shape
        codes = torch.empty(outputs, groups * GROUP_SIZE // 2, dtype=torch.uint8, device=rounded.device)
        for block in row_blocks(outputs, groups * GROUP_SIZE):
            codes[block] = _codes_of(_ids(block, rounded.device), packed)
        return codes, join_scales(rounded.contiguous(), packed.get("scales_rest")).T.contiguous()

    @staticmethod
    def linear(x: torch.Tensor, packed: Packed) -> torch.Tensor:
        outputs = _rounded_scales(packed).shape[1]
        if 0 < x.shape[0] <= FEW_ROWS[x.device.type]:
            zeros = packed.get("zeros")
            scales = packed["scales_and_zeros" if zeros is None else "rounded_scales"]
            return _operator(x.contiguous(), packed["int4pack"], scales, zeros)
        y = x.new_empty(x.shape[0], outputs)
        for block in row_blocks(outputs, x.shape[1]):
            y[:, block] = x @ AtenGpu.embedding(_ids(block, x.device), packed, x.dtype).T
        return y

    @staticmethod
    def grad_input(grad: torch.Tensor, packed: Packed) -> torch.Tensor:
        groups, outputs = _rounded_scales(packed).shape
        total = torch.zeros(grad.shape[0], groups * GROUP_SIZE, dtype=torch.float32, device=grad.device)
        for block in row_blocks(outputs, groups * GROUP_SIZE):  # summed in float32
            total += grad[:, block] @ AtenGpu.embedding(_ids(block, grad.device), packed, grad.dtype)
        return total.to(grad.dtype)

    @staticmethod
    def embedding(ids: torch.Tensor, packed: Packed, dtype: torch.dtype) -> torch.Tensor:
        scales = scales_of(ids, _rounded_scales(packed), packed.get("scales_rest"))
        return dequantize(_codes_of(ids, packed), scales.T, dtype)


def _operator(
    x: torch.Tensor, int4pack: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
) -> torch.Tensor:
    """x [M, K] -> [M, N], both bfloat16; Intel's GPUs have zeros apart."""
    if zeros is None:
        return torch.ops.aten._weight_int4pack_mm(x, int4pack, GROUP_SIZE, scales)
    return torch.ops.aten._weight_int4pack_mm_with_scales_and_zeros(x, int4pack, GROUP_SIZE, scales, zeros)


def _why_not_this_gpu(device: torch.device) -> str | None:
    if torch.version.hip:
        name = torch.cuda.get_device_properties(device).gcnArchName
        if not any(architecture in name for architecture in AMD_ARCHITECTURES):
            return f"PyTorch's int4 operator is for {', '.join(AMD_ARCHITECTURES)}, not {name}"
    elif torch.cuda.get_device_capability(device) < (8, 0):
        return "PyTorch's int4 operator is for Ampere and later"
    return None


def _rounded_scales(packed: Packed) -> torch.Tensor:
    """The bfloat16 scales [K/32, N]."""
    return packed["rounded_scales"] if "zeros" in packed else packed["scales_and_zeros"][..., 0]


def _ids(block: slice, device: torch.device) -> torch.Tensor:
    return torch.arange(block.start, block.stop, device=device)


# A lane of a tile has four int32 words of an output for each 128 inputs, one for each group of 32. Word c of a group
# (the GPUs call it lane) has nibble 4b + 2h + p for input 16h + 8p + 2c + b (NVIDIA) or 16h + 4c + 2p + b (AMD), which
# row-major codes have in half b of byte 8h + 4p + c or 8h + 2c + p of the group's sixteen.


def _tiled(codes: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Row-major codes, uint8 [N, K/2] -> int32 [N/8 * K/128 * 32 * 4], in the order of `layout`."""
    if layout is Layout.ROW_MAJOR:
        return codes.contiguous().view(torch.int32)
    outputs, inputs = codes.shape[0], codes.shape[1] * 2
    tiles = codes.new_empty(outputs // layout.value, inputs // 128 * layout.value * 16, dtype=torch.int32)
    for block in row_blocks(len(tiles), inputs * layout.value):
        part = codes[block.start * layout.value : block.stop * layout.value]
        if layout is Layout.NVIDIA:
            part = part.reshape(-1, inputs // 128, 4, 2, 2, 4).permute(0, 1, 2, 5, 3, 4)
        else:
            part = part.reshape(-1, inputs // 128, 4, 2, 4, 2).permute(0, 1, 2, 4, 3, 5)
        halves = torch.stack([part & 15, part >> 4], dim=4)  # [n, K/128, group, c, b, h, p]
        bytes_ = (halves[..., 0] | (halves[..., 1] << 4)).flatten(4)  # [n, K/128, group, c, b and h]
        words = bytes_.view(torch.int32).squeeze(-1).unflatten(0, (-1, layout.value))
        order = (0, 2, 1, 4, 3) if layout is Layout.NVIDIA else (0, 2, 4, 1, 3)
        tiles[block] = words.permute(order).flatten(1)
    return tiles


def _codes_of(ids: torch.Tensor, packed: Packed) -> torch.Tensor:
    """Row-major codes, uint8 [n, K/2], of these outputs."""
    words, layout = packed["int4pack"], layout_of(ids.device)
    groups, outputs = _rounded_scales(packed).shape
    if layout is Layout.ROW_MAJOR:
        return words.view(outputs, -1)[ids].view(torch.uint8)
    tile, row = ids // layout.value, ids % layout.value
    if layout is Layout.NVIDIA:
        words = words.view(-1, groups // 4, 8, 4, 4)[tile, :, row]
    else:
        words = words.view(-1, groups // 4, 4, 16, 4)[tile, :, :, row]
    # [n, K/128, group, c]; contiguous() would leave an empty tensor's strides as they are
    words = words.transpose(2, 3).clone(memory_format=torch.contiguous_format)
    part = words.view(torch.uint8).unflatten(3, (4, 2, 2))  # [n, K/128, group, c, b, h]
    halves = torch.stack([part & 15, part >> 4], dim=-1)  # [n, K/128, group, c, b, h, p]
    codes = halves[:, :, :, :, 0] | (halves[:, :, :, :, 1] << 4)  # [n, K/128, group, c, h, p]
    return codes.permute((0, 1, 2, 4, 5, 3) if layout is Layout.NVIDIA else (0, 1, 2, 4, 3, 5)).flatten(1)
