# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The backend for bfloat16 models on x86 and Arm CPUs: kernels of our own, 4.5 bits a weight, the scales as stored.

What this file offers:
    NativeCpu              the backend; its C code is in `csrc/`
    packed_scales          a matrix's tensors, with scales and not yet with codes
    pack_rows              row-major codes into them
    to_pack                a matrix as AWQ has it, and its tensors, to be filled by C
    native_matrix          its tensors, as C has them
    weight_memory, empty   memory on pages of 2 MB
    dense                  products with weights that are no codes

| rows of activations         | how they are multiplied                                                               |
|-----------------------------|---------------------------------------------------------------------------------------|
| up to `cpu().native_rows`   | by the codes, in integers; the scale multiplies a group's sum in float32              |
| more                        | by weights that are dequantized where they are multiplied, in the first cache         |
| more, with AVX2, or with    | by the codes, in integers, as few rows, to the bit                                    |
| AVX512, VNNI and no BF16    |                                                                                       |
| more, on a CPU with AMX     | by weights that are dequantized a tile at a time, with torch's GEMM                   |
"""

import contextlib
import ctypes
import math
import mmap
import os
import threading
import weakref
from collections.abc import Iterator

import torch

from .int4_codes import GROUP_SIZE, Packed, dequantize
from .int4_cpu_hardware import bf16_matmul, cpu, threads
from .int4_cpu_library import Dense, Dequantize, Matrix, PackAwq, PackAwqs, PackRows, Product, Rows, library
from .int4_operator import operator

PRODUCT_ROWS = 12  # `int4_product` takes its rows 6 or 12 at a time
# Weights that are dequantized, or activations that are rearranged, at a time: 16 MB of bfloat16.
TILE_WEIGHTS = 1 << 23


class NativeCpu:
    """Backend for bfloat16 models on CPUs with AVX512, AVX2 or NEON: the kernels of `csrc/`.

    Tensors, in blocks of 16 outputs: block_codes int32 [N/16, K/8, 16], a word holding the codes of 8 consecutive
    inputs, lowest nibble first; block_scales [N/16, K/32, 16] in their dtype on disk.
    """

    name = "native-cpu"

    @staticmethod
    def why_not(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> str | None:
        if device.type != "cpu":
            return "runs on a CPU"
        if dtype != torch.bfloat16:
            return "computes in bfloat16"
        if outputs % 32:
            return f"wants outputs in 32s, not {outputs}"
        return None if library() is not None else "its kernels are not available (a warning said why)"

    @staticmethod
    def pack(codes: torch.Tensor, scales: torch.Tensor) -> Packed:
        packed = packed_scales(scales)
        pack_rows(codes, packed["block_codes"])
        return packed

    @staticmethod
    def repack_awq(qweight: torch.Tensor, scales: torch.Tensor) -> Packed:
        qweight, scales = qweight.contiguous(), scales.contiguous()
        call, packed = to_pack(qweight, scales)
        library().int4_pack_awq(PackAwqs(ctypes.addressof(call), 1), threads())
        return packed

    @staticmethod
    def unpack(packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        words, scales = (packed[name].transpose(1, 2).flatten(0, 1) for name in ("block_codes", "block_scales"))
        return words.view(torch.uint8), scales

    @staticmethod
    def linear(x: torch.Tensor, packed: Packed) -> torch.Tensor:
        run = _linear_op if torch.compiler.is_compiling() else _linear
        return run(x, packed["block_codes"], packed["block_scales"])

    @staticmethod
    def grad_input(grad: torch.Tensor, packed: Packed) -> torch.Tensor:
        run = _grad_input_op if torch.compiler.is_compiling() else _grad_input
        return run(grad, packed["block_codes"], packed["block_scales"])

    @staticmethod
    def embedding(ids: torch.Tensor, packed: Packed, dtype: torch.dtype) -> torch.Tensor:
        if torch.compiler.is_compiling() or dtype != torch.bfloat16:
            words, scales = (packed[name][ids // 16, :, ids % 16] for name in ("block_codes", "block_scales"))
            return dequantize(words.contiguous().view(torch.uint8), scales, dtype)
        matrix, ids = native_matrix(**packed), ids.long().contiguous()
        rows = torch.empty(len(ids), matrix.k, dtype=dtype)
        call = Rows(matrix, ids.data_ptr(), len(ids), rows.data_ptr())
        library().int4_rows(call, threads() if len(ids) > 16 else 1)
        return rows


def packed_scales(scales: torch.Tensor) -> Packed:
    """A matrix's tensors with its scales [N, K/32]; the codes are still to be filled in."""
    packed = _new_packed(scales.shape[0], scales.shape[1] * GROUP_SIZE, scales.dtype)
    packed["block_scales"].copy_(scales.unflatten(0, (-1, 16)).transpose(1, 2))
    return packed


def _new_packed(outputs: int, inputs: int, scale_dtype: torch.dtype) -> Packed:
    return {
        "block_codes": weight_memory((outputs // 16, inputs // 8, 16), torch.int32),
        "block_scales": weight_memory((outputs // 16, inputs // GROUP_SIZE, 16), scale_dtype),
    }


def pack_rows(codes: torch.Tensor, block_codes: torch.Tensor) -> None:
    """Row-major codes, uint8 [N, K/2] -> their blocks [N/16, K/8, 16], which are part of a matrix."""
    words = codes.contiguous().view(torch.int32)
    outputs, octets = words.shape
    library().int4_pack_rows(PackRows(words.data_ptr(), block_codes.data_ptr(), outputs, octets * 8), threads())


def to_pack(qweight: torch.Tensor, scales: torch.Tensor) -> tuple[PackAwq, Packed]:
    """What `int4_pack_awq` is to do with AWQ's qweight int32 [K, N/8] and scales [K/32, N], both contiguous, and the
    tensors that it fills then. It points into all of them, which must outlive it."""
    inputs, outputs = qweight.shape[0], qweight.shape[1] * 8
    packed = _new_packed(outputs, inputs, scales.dtype)
    pointers = (tensor.data_ptr() for tensor in (qweight, scales, *packed.values()))
    return PackAwq(*pointers, scales.itemsize, outputs, inputs), packed


def _linear(x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x [M, K] -> [M, N]: the scale multiplies a float32 sum for few rows, and mostly is in the weight for many.

    For many rows the weights are multiplied where they are dequantized, in the first cache (`csrc/cell_tiles.h`), if
    they have to be (`csrc/fixed_tiles.h`); or, on a CPU with AMX, by torch's GEMM, a tile at a time.
    """
    x = x.contiguous()
    rows, outputs = x.shape[0], codes.shape[0] * 16
    y = empty((rows, outputs), torch.bfloat16)
    matrix = native_matrix(codes, scales)
    if rows <= cpu().native_rows:
        library().int4_linear(Product(matrix, x.data_ptr(), rows, None, y.data_ptr()), threads())
    elif not cpu().amx:
        step = max(TILE_WEIGHTS // x.shape[1] // PRODUCT_ROWS, 1) * PRODUCT_ROWS
        packed = _buffer(9 * (step + PRODUCT_ROWS) * x.shape[1] // 4)  # nine bytes for two of x
        for part, out in zip(x.split(step), y.split(step), strict=True):
            call = Product(matrix, part.data_ptr(), len(part), packed.data_ptr(), out.data_ptr())
            library().int4_product(call, threads())
    else:
        for columns, tile in _tiles(codes, scales):
            torch.mm(x, tile, out=y[:, columns])
    return y


def dense(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x [..., K] times bfloat16 weight [N, K], plus bias [N] -> [..., N], rounded once; K is a multiple of 8.

    In fixed point (`csrc/pairs.h`) or in cells (`csrc/cell_tiles.h`), as the CPU has it.
    """
    rows, outputs, inputs = x.flatten(0, -2).contiguous(), *weight.shape
    y = empty((len(rows), outputs), torch.bfloat16)
    step = max(TILE_WEIGHTS // inputs // PRODUCT_ROWS, 1) * PRODUCT_ROWS
    work = _buffer(5 * (min(step, len(rows)) + PRODUCT_ROWS + outputs + 32) * inputs // 2)
    weight, bias = weight.contiguous(), None if bias is None else bias.contiguous()
    for part, out in zip(rows.split(step), y.split(step), strict=True):
        call = Dense(
            weight=weight.data_ptr(),
            bias=None if bias is None else bias.data_ptr(),
            x=part.data_ptr(),
            rows=len(part),
            n=outputs,
            k=inputs,
            work=work.data_ptr(),
            y=out.data_ptr(),
        )
        library().int4_dense(call, threads())
    return y.view(*x.shape[:-1], outputs)


def _grad_input(grad: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """grad [M, N] -> [M, K], summed over tiles in float32."""
    total = torch.zeros(grad.shape[0], codes.shape[1] * 8)
    for columns, tile in _tiles(codes, scales):
        total += bf16_matmul(grad[:, columns], tile.T)
    return total.to(grad.dtype)


_linear_op = operator("native_linear", _linear, lambda x, codes, scales: x.new_empty(x.shape[0], codes.shape[0] * 16))
_grad_input_op = operator(
    "native_grad_input", _grad_input, lambda grad, codes, scales: grad.new_empty(grad.shape[0], codes.shape[1] * 8)
)

_scratch = threading.local()


def native_matrix(block_codes: torch.Tensor, block_scales: torch.Tensor) -> Matrix:
    """What the C code calls a matrix. It points into the tensors, which must outlive it."""
    kind = (torch.bfloat16, torch.float16, torch.float32).index(block_scales.dtype)
    rows, columns = block_codes.shape[0] * 16, block_codes.shape[1] * 8
    return Matrix(block_codes.data_ptr(), block_scales.data_ptr(), kind, rows, columns)


def _tiles(codes: torch.Tensor, scales: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The transposed weights in bfloat16 [K, n], n outputs at a time, in one buffer that is used again and again."""
    outputs, inputs = codes.shape[0] * 16, codes.shape[1] * 8
    width = min(max(TILE_WEIGHTS // inputs // 32, 1) * 32, outputs)
    buffer = _buffer(inputs * width)
    matrix = native_matrix(codes, scales)
    for start in range(0, outputs, width):
        count = min(width, outputs - start)
        tile = buffer[: inputs * count].view(inputs, count)
        library().int4_dequantize(Dequantize(matrix, start, count, tile.data_ptr()), threads())
        yield slice(start, start + count), tile


def _buffer(count: int) -> torch.Tensor:
    """So many bfloat16 numbers, uninitialized. Kept: touching new memory costs as much as what is written into it."""
    buffer = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.numel() < count:
        buffer = _scratch.buffer = empty((count,), torch.bfloat16)
    return buffer


def weight_memory(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialized tensor for codes or scales, side by side with others on pages of 2 MB (see `empty`).

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
    """An uninitialized tensor; a large one on pages of 2 MB, where the system gives them.

    Walking the tables of small pages costs a fifth of the bandwidth of reading weights, and touching fresh ones for the
    first time more than what a prefill computes in between.
    """
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.nbytes >= 1 << 22:
        library().int4_huge_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor
