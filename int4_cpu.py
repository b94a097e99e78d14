# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Fast paths for CPUs, in bfloat16: an int4 kernel for few rows of activations, dequantize and multiply for many.

What this file offers:
    NativeCpu        the backend with our own kernels (`csrc/`): 4.5 bits a weight, the scales as stored
    AtenCpu          the backend with PyTorch's own int4 operator, where ours cannot be had
    HAS_BF16_GEMM    whether torch has more than plain loops to multiply bfloat16 matrices on this CPU

AtenCpu's layout is the one that `aten::_weight_int4pack_mm_for_cpu` reads: blocks of B consecutive outputs, k-major
inside a block, uint8 [N/B, K, B/2]. B and the place of an output's nibble depend on the instruction set that torch runs
on, so they are found by asking torch to pack a random matrix (`LAYOUT`), not by knowing. The kernel takes bfloat16
pairs (scale, zero) [K/32, N, 2]; the zero is always 0. What a stored scale has beyond bfloat16 is kept in
`scales_rest`, so that unpacking gives back every bit of it.
"""

import contextlib
import hashlib
import math
import mmap
import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .int4_cpu_build import has_amx, instruction_set
from .int4_cpu_library import Dequantize, Matrix, PackAwq, Product, library

GROUP_SIZE = 32
# Rows of activations up to which an int4 kernel beats multiplying by dequantized weights (see benchmarks/RESULTS.md);
# with AVX2 `int4_product` has a way of its own for 2 to 12.
MAX_NATIVE_ROWS = 1 if instruction_set() == "AVX2" else 24 if has_amx() else 16
MAX_KERNEL_ROWS = 256 if torch.backends.cpu.get_cpu_capability() == "AVX2" else 8
PRODUCT_ROWS = 12  # `int4_product` takes its rows 6 or 12 at a time
# Weights that are dequantized, or activations that are rearranged, at a time. AtenCpu: 2 MB of bfloat16, so that a
# block stays in the cache until it is multiplied. NativeCpu: 16 MB, because it dequantizes faster than a GEMM of few
# columns runs.
BLOCK_WEIGHTS = 1 << 20
TILE_WEIGHTS = 1 << 23


def _has_bf16_gemm() -> bool:
    """What oneDNN says. Without it torch's plain loops take 9 to more than 100 times as long as float32's GEMM."""
    ask = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return ask is not None and ask()


HAS_BF16_GEMM = _has_bf16_gemm()


class NativeCpu:
    """Backend for bfloat16 models on x86 CPUs with AVX512 or AVX2: the kernels of `csrc/`.

    Tensors, in blocks of 16 outputs: qweight int32 [N/16, K/8, 16], a word holding the codes of 8 consecutive inputs,
    lowest nibble first; scales [N/16, K/32, 16] in their dtype on disk.
    """

    name = "native-cpu"

    @staticmethod
    def supports(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> bool:
        return device.type == "cpu" and dtype == torch.bfloat16 and outputs % 32 == 0 and library() is not None

    @staticmethod
    def pack(codes: torch.Tensor, scales: torch.Tensor) -> dict[str, torch.Tensor]:
        words = codes.contiguous().view(torch.int32).unflatten(0, (-1, 16))  # [N/16, 16, K/8]
        return {"qweight": _blocked(words), "scales": _blocked(scales.unflatten(0, (-1, 16)))}

    @staticmethod
    def pack_awq(qweight: torch.Tensor, scales: torch.Tensor) -> dict[str, torch.Tensor]:
        """AWQ's qweight int32 [K, N/8] and scales [K/32, N] -> the backend's tensors, with no copy between."""
        inputs, outputs = qweight.shape[0], qweight.shape[1] * 8
        blocks = weight_memory((outputs // 16, inputs // 8, 16), torch.int32)
        source = qweight.contiguous()
        call = PackAwq(source.data_ptr(), blocks.data_ptr(), outputs, inputs)
        library().int4_pack_awq(call, torch.get_num_threads())
        scales = scales.unflatten(1, (-1, 16)).transpose(0, 1)
        return {"qweight": blocks, "scales": weight_memory(scales.shape, scales.dtype).copy_(scales)}

    @staticmethod
    def unpack(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        words, scales = (tensors[name].transpose(1, 2).flatten(0, 1) for name in ("qweight", "scales"))
        return words.view(torch.uint8), scales

    @staticmethod
    def linear(x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """x [M, K] bfloat16 -> [M, N]."""
        if torch.compiler.is_compiling():
            return _compiled_linear(x, tensors["qweight"], tensors["scales"])
        return _native_linear(x, tensors["qweight"], tensors["scales"])

    @staticmethod
    def grad_input(grad: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """grad [M, N] of the output -> grad @ W [M, K] of the input, summed over tiles in float32."""
        total = torch.zeros(grad.shape[0], tensors["qweight"].shape[1] * 8)
        for columns, tile in _tiles(tensors["qweight"], tensors["scales"]):
            total += _matmul(grad[:, columns], tile.T)
        return total.to(grad.dtype)

    @staticmethod
    def embedding(ids: torch.Tensor, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """ids [n] -> rows [n, K] in `dtype`; touches only these rows."""
        words, scales = (tensors[name][ids // 16, :, ids % 16] for name in ("qweight", "scales"))
        codes = words.contiguous().view(torch.uint8)
        return _weights(torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1), scales, dtype)


def _native_linear(x: torch.Tensor, qweight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x [M, K] -> [M, N]: the scale multiplies a float32 sum for few rows (AVX2: to 12), and is in the weight for many.

    For many rows the weights are multiplied where they are dequantized, in the first cache; or, on a CPU with AMX, by
    torch's GEMM, a tile at a time.
    """
    x = x.contiguous()
    rows, outputs = x.shape[0], qweight.shape[0] * 16
    y = empty((rows, outputs), torch.bfloat16)
    matrix, threads = native_matrix(qweight, scales), torch.get_num_threads()
    if rows <= MAX_NATIVE_ROWS:
        library().int4_linear(Product(matrix, x.data_ptr(), rows, None, y.data_ptr()), threads)
    elif not has_amx():
        step = max(TILE_WEIGHTS // x.shape[1] // PRODUCT_ROWS, 1) * PRODUCT_ROWS
        packed = _buffer(2 * (step + PRODUCT_ROWS) * x.shape[1])  # in float32
        for part, out in zip(x.split(step), y.split(step), strict=True):
            call = Product(matrix, part.data_ptr(), len(part), packed.data_ptr(), out.data_ptr())
            library().int4_product(call, threads)
    else:
        for columns, tile in _tiles(qweight, scales):
            torch.mm(x, tile, out=y[:, columns])
    return y


# Compiled graphs need an operator by name. The name has a hash of the module's, because transformers imports this file
# once for each revision of each repo, and a name can be taken only once.
_compiled_linear = torch.library.custom_op(
    f"gemma3_int4_{hashlib.sha256(__name__.encode()).hexdigest()[:16]}::linear",
    _native_linear,
    mutates_args=(),
    device_types="cpu",
)


@_compiled_linear.register_fake
def _(x: torch.Tensor, qweight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[0], qweight.shape[0] * 16)


_scratch = threading.local()


def native_matrix(qweight: torch.Tensor, scales: torch.Tensor) -> Matrix:
    """What the C code calls a matrix. It points into the tensors, which must outlive it."""
    kind = (torch.bfloat16, torch.float16, torch.float32).index(scales.dtype)
    return Matrix(qweight.data_ptr(), scales.data_ptr(), kind, qweight.shape[0] * 16, qweight.shape[1] * 8)


def _tiles(qweight: torch.Tensor, scales: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The transposed weights in bfloat16 [K, n], n outputs at a time, in one buffer that is used again and again."""
    outputs, inputs = qweight.shape[0] * 16, qweight.shape[1] * 8
    width = min(max(TILE_WEIGHTS // inputs // 32, 1) * 32, outputs)
    buffer = _buffer(inputs * width)
    matrix = native_matrix(qweight, scales)
    for start in range(0, outputs, width):
        count = min(width, outputs - start)
        tile = buffer[: inputs * count].view(inputs, count)
        library().int4_dequantize(Dequantize(matrix, start, count, tile.data_ptr()), torch.get_num_threads())
        yield slice(start, start + count), tile


def _buffer(count: int) -> torch.Tensor:
    """So many bfloat16 numbers, uninitialised. Kept: touching new memory costs as much as what is written into it."""
    buffer = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.numel() < count:
        buffer = _scratch.buffer = empty((count,), torch.bfloat16)
    return buffer


def _blocked(parts: torch.Tensor) -> torch.Tensor:
    """[N/16, 16, k] -> [N/16, k, 16], contiguous."""
    blocked = parts.transpose(1, 2)
    return weight_memory(blocked.shape, parts.dtype).copy_(blocked)


def weight_memory(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor for codes or scales, side by side with others on pages of 2 MB (see `empty`).

    Most of them are too small for such a page of their own. The memory goes back to the system with the last tensor in
    it. Every size is a multiple of 64 bytes, because outputs come in 32s.
    """
    count = math.prod(shape)
    nbytes = count * dtype.itemsize
    pages = getattr(_scratch, "pages", lambda: None)()
    if pages is None or pages.tell() + nbytes > len(pages):
        pages = mmap.mmap(-1, max(nbytes, 1 << 26), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without such pages
            pages.madvise(mmap.MADV_HUGEPAGE)
        _scratch.pages = weakref.ref(pages)  # the tensors hold it
    tensor = torch.frombuffer(pages, dtype=dtype, count=count, offset=pages.tell()).view(shape)
    pages.seek(nbytes, os.SEEK_CUR)
    return tensor


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor; a large one on pages of 2 MB, where the system gives them.

    Walking the tables of small pages costs a fifth of the bandwidth of reading weights, and touching fresh ones for the
    first time more than what a prefill computes in between.
    """
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.nbytes >= 1 << 22:
        library().int4_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def _matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b of bfloat16; in float32, where the CPU computes no other."""
    return a @ b if HAS_BF16_GEMM else a.float() @ b.float()


def _weights(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """uint8 codes [n, K] and scales [n, K/32] -> float32(code * scale), rounded to `dtype`."""
    signed = (codes.to(torch.int8) - 8).unflatten(1, (-1, GROUP_SIZE))
    return (signed.float() * scales.float().unsqueeze(-1)).flatten(1).to(dtype)


@dataclass(frozen=True)
class BlockLayout:
    """Where the nibbles of one block of outputs stand in its B/2 bytes (per input).

    halves: output n < B/2 is the low nibble of byte n, output n + B/2 the high nibble of byte n; else output 2n is the
    low and 2n + 1 the high nibble of byte n.
    """

    outputs: int
    halves: bool

    def join(self, nibbles: torch.Tensor) -> torch.Tensor:
        """uint8 [..., B] of codes -> uint8 [..., B/2]."""
        half = self.outputs // 2
        low, high = (
            (nibbles[..., :half], nibbles[..., half:]) if self.halves else (nibbles[..., ::2], nibbles[..., 1::2])
        )
        return low | (high << 4)

    def split(self, packed: torch.Tensor) -> torch.Tensor:
        """uint8 [..., B/2] -> uint8 [..., B] of codes."""
        low, high = packed & 15, packed >> 4
        return torch.cat([low, high], dim=-1) if self.halves else torch.stack([low, high], dim=-1).flatten(-2)


def _find_layout() -> BlockLayout | None:
    """The layout of this machine's ATen kernel, or None where it is unknown to us or the kernel is missing."""
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return None
    codes = (torch.arange(128 * 32, dtype=torch.int32) * 2654435761 >> 13) % 16  # any sequence without symmetries
    codes = codes.to(torch.int32).view(128, 32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1).flatten()
    for layout in (BlockLayout(64, True), BlockLayout(32, True), BlockLayout(32, False), BlockLayout(16, False)):
        blocks = codes.to(torch.uint8).view(-1, layout.outputs, 32).transpose(1, 2)
        if torch.equal(layout.join(blocks).flatten(), packed):
            return layout
    return None


LAYOUT = _find_layout()


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


class AtenCpu:
    """Backend for bfloat16 models on a CPU.

    Tensors: qweight uint8 [N/B, K, B/2]; scales bfloat16 [K/32, N, 2]; scales_rest [K/32, N or N/2] where the scales
    on disk are not bfloat16.
    """

    name = "aten-cpu"

    @staticmethod
    def supports(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> bool:
        return device.type == "cpu" and dtype == torch.bfloat16 and LAYOUT is not None and outputs % LAYOUT.outputs == 0

    @staticmethod
    def pack(codes: torch.Tensor, scales: torch.Tensor) -> dict[str, torch.Tensor]:
        blocks, inputs = codes.shape[0] // LAYOUT.outputs, codes.shape[1] * 2
        qweight = torch.empty(blocks, inputs, LAYOUT.outputs // 2, dtype=torch.uint8)
        for block in _blocks(blocks, inputs * LAYOUT.outputs):
            part = codes.view(blocks, LAYOUT.outputs, -1)[block].transpose(1, 2)  # [b, K/2, B]
            qweight[block, 0::2] = LAYOUT.join(part & 15)
            qweight[block, 1::2] = LAYOUT.join(part >> 4)
        rounded, rest = split_scales(scales.T.contiguous())
        tensors = {"qweight": qweight, "scales": torch.stack([rounded, torch.zeros_like(rounded)], dim=-1)}
        return tensors if rest is None else tensors | {"scales_rest": rest}

    @staticmethod
    def unpack(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        qweight = tensors["qweight"]
        blocks, inputs = qweight.shape[:2]
        codes = torch.empty(blocks, LAYOUT.outputs, inputs // 2, dtype=torch.uint8)
        for block in _blocks(blocks, inputs * LAYOUT.outputs):
            nibbles = LAYOUT.split(qweight[block]).transpose(1, 2)  # [b, B, K]
            codes[block] = nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)
        scales = join_scales(tensors["scales"][..., 0].contiguous(), tensors.get("scales_rest"))
        return codes.flatten(0, 1), scales.T.contiguous()

    @staticmethod
    def linear(x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """x [M, K] bfloat16 -> [M, N]."""
        qweight, scales = tensors["qweight"], tensors["scales"]
        outputs = scales.shape[1]
        if x.shape[0] <= MAX_KERNEL_ROWS:
            packed = qweight.view(outputs, -1)  # the kernel wants the packed bytes called [N, K/2]
            return torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), packed, GROUP_SIZE, scales)
        y = torch.empty(x.shape[0], outputs, dtype=x.dtype)
        for block, columns in _column_blocks(qweight):
            y[:, columns] = _matmul(x, _dequantize_columns(qweight[block], scales[:, columns, 0]))
        return y

    @staticmethod
    def grad_input(grad: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """grad [M, N] of the output -> grad @ W [M, K] of the input, summed over blocks in float32."""
        qweight, scales = tensors["qweight"], tensors["scales"]
        total = torch.zeros(grad.shape[0], qweight.shape[1])
        for block, columns in _column_blocks(qweight):
            total += _matmul(grad[:, columns], _dequantize_columns(qweight[block], scales[:, columns, 0]).T)
        return total.to(grad.dtype)

    @staticmethod
    def embedding(ids: torch.Tensor, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """ids [n] -> rows [n, K] in `dtype`; touches only these rows, with the scales as they are on disk."""
        qweight = tensors["qweight"]
        half = LAYOUT.outputs // 2
        lane = ids % LAYOUT.outputs
        byte, high = (lane % half, lane >= half) if LAYOUT.halves else (lane // 2, lane % 2 == 1)
        packed = qweight[ids // LAYOUT.outputs, :, byte]  # [n, K]
        codes = torch.where(high.unsqueeze(-1), packed >> 4, packed & 15)
        rest = tensors.get("scales_rest")
        if rest is not None and rest.dtype == torch.uint8:  # two outputs to a byte: fetch the pair, keep the one
            pair = tensors["scales"][:, :, 0].unflatten(1, (-1, 2))[:, ids // 2].flatten(1)
            both = join_scales(pair, rest[:, ids // 2]).unflatten(1, (-1, 2))
            scales = both[:, torch.arange(len(ids)), ids % 2]
        else:
            scales = join_scales(tensors["scales"][:, ids, 0], None if rest is None else rest[:, ids])
        return _weights(codes, scales.T, dtype)


def _blocks(count: int, weights: int) -> list[slice]:
    """Slices over `count` blocks of `weights` weights each, about BLOCK_WEIGHTS weights to a slice."""
    step = max(BLOCK_WEIGHTS // weights, 1)
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def _column_blocks(qweight: torch.Tensor) -> list[tuple[slice, slice]]:
    """(slice of blocks, slice of the outputs that they hold) for a packed matrix."""
    outputs = LAYOUT.outputs
    blocks = _blocks(qweight.shape[0], qweight.shape[1] * outputs)
    return [(block, slice(block.start * outputs, block.stop * outputs)) for block in blocks]


def _dequantize_columns(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Blocks uint8 [b, K, B/2] and their bfloat16 scales [K/32, b*B] -> the transposed weights [K, b*B], bfloat16."""
    codes = LAYOUT.split(packed).to(torch.int8) - 8  # [b, K, B]
    codes = codes.transpose(0, 1).flatten(1).unflatten(0, (-1, GROUP_SIZE))  # [K/32, 32, b*B]
    return (codes.to(torch.bfloat16) * scales.unsqueeze(1)).flatten(0, 1)
