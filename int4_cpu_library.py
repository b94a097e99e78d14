# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The CPU kernels as Python calls them: the structs that go over the border, and the functions.

What this file offers:
    library               the kernels, loaded: a ctypes.CDLL; or None, with one warning that says why
    Matrix, Layer         what weights are to them
    Product, Step, ...    what their functions take; csrc/interface.h declares the same structs

Each function of the library takes a struct and a number of threads, and raises MemoryError where it needs memory of its
own and gets none. The structs hold addresses: the tensors must outlive the call.
"""

import ctypes
import functools
import subprocess

import torch  # noqa: F401  (the kernels' threads are those of the OpenMP runtime that comes with it)
from transformers.utils import logging

from .int4_cpu_build import Unavailable, build

logger = logging.get_logger(__name__)


class Matrix(ctypes.Structure):
    """An int4 matrix W [n, k] = (code - 8) * scale, in blocks of 16 outputs.

    codes: uint32 [n/16, k/8, 16], eight codes of consecutive inputs to a word, lowest nibble first
    scales: [n/16, k/32, 16]
    scale_type: 0 bfloat16, 1 float16, 2 float32
    """

    _fields_ = (
        ("codes", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
        ("scale_type", ctypes.c_int32),
        ("n", ctypes.c_int32),
        ("k", ctypes.c_int32),
    )


class Product(ctypes.Structure):
    """y [rows, n] = x [rows, k] W.T, both bfloat16.

    work: for int4_product, at a multiple of 64 bytes, nine bytes for two inputs of x and of 12 rows more; int4_linear
        needs none
    """

    _fields_ = (
        ("weight", Matrix),
        ("x", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("work", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
    )


class Dense(ctypes.Structure):
    """y [rows, n] = x [rows, k] weight.T + bias, all bfloat16; weight [n, k], bias [n] or None, k a multiple of 8.

    work: at a multiple of 64 bytes, five bytes for each number of x, of weight, and of 12 rows and 32 outputs more
    """

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "x")),
        *((name, ctypes.c_int64) for name in ("rows", "n", "k")),
        ("work", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
    )


class Dequantize(ctypes.Structure):
    """Outputs first .. first + count, multiples of 32, as bfloat16 columns: tile [k, count]."""

    _fields_ = (
        ("weight", Matrix),
        ("first", ctypes.c_int64),
        ("count", ctypes.c_int64),
        ("tile", ctypes.c_void_p),
    )


class Rows(ctypes.Structure):
    """The weights of some outputs, int64 [count], as bfloat16 rows [count, k]."""

    _fields_ = (
        ("weight", Matrix),
        ("outputs", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
    )


class PackAwq(ctypes.Structure):
    """AWQ's qweight [k, n/8] and scales [k/32, n], of 2 or 4 bytes -> the codes and scales of a Matrix."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qweight", "scales", "codes", "block_scales")),
        *((name, ctypes.c_int64) for name in ("bytes", "n", "k")),
    )


class PackAwqs(ctypes.Structure):
    """Several PackAwq. Calls with the same one can run at once: each takes the next that none has begun.

    first: the address of an array of `count`
    next: the first that none has begun
    in_files: qweight and scales are in mapped files, the pages of which can go when they were read
    """

    _fields_ = (
        ("first", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("next", ctypes.c_int64),
        ("in_files", ctypes.c_int32),
    )


class PackRows(ctypes.Structure):
    """Row-major words [n, k/8] -> the codes of a Matrix."""

    _fields_ = (
        ("words", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
    )


class Recover(ctypes.Structure):
    """Weights, bfloat16 [n, k], and their scales, float32 [n, k/32] -> row-major words [n, k/8].

    in_file: whether the weights are in a mapped file, whose pages are let go as they are read
    wrong: set to 1 where a weight is not the product of a code and its scale
    """

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "scales", "words")),
        *((name, ctypes.c_int64) for name in ("n", "k")),
        *((name, ctypes.c_int32) for name in ("in_file", "wrong")),
    )


class ReadAhead(ctypes.Structure):
    """A file to be read into the system's cache.

    file: its descriptor
    stopped: set to 1, it ends that
    """

    _fields_ = (("bytes", ctypes.c_int64), *((name, ctypes.c_int32) for name in ("file", "stopped")))


class Norm(ctypes.Structure):
    """Gemma3RMSNorm of x [rows, n] -> y [rows, n], bfloat16; weight [n], n a multiple of 16."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("weight", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("n", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("y", ctypes.c_void_p),
    )


class Gated(ctypes.Structure):
    """y = gelu_tanh(gate) * up, or without up, gelu_tanh(gate); n bfloat16 numbers each, n a multiple of 16."""

    _fields_ = (
        ("gate", ctypes.c_void_p),
        ("up", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("y", ctypes.c_void_p),
    )


class Layer(ctypes.Structure):
    """What a decoder layer is made of.

    norms: input, q, k, post_attention, pre_feedforward, post_feedforward; bfloat16
    """

    _fields_ = (
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        ("norms", ctypes.c_void_p * 6),
        ("heads", ctypes.c_int32),
        ("kv_heads", ctypes.c_int32),
        ("head_dim", ctypes.c_int32),
        ("eps", ctypes.c_float),
        ("scaling", ctypes.c_float),
    )


class Step(ctypes.Structure):
    """One token of each of `rows` sequences through a decoder layer; all numbers bfloat16, all strides in numbers.

    layer: address of a Layer
    few: up to how many rows products are as int4_linear's, beyond them as int4_product's
    hidden, out: [rows, width]
    cos, sin: [rows, head_dim], `table_stride` apart: 0 where all rows share one
    keys, values: [rows, kv_heads, length, head_dim], heads `head_stride` apart, the last position still to be written
    mask: bool [rows, length], `mask_stride` apart, or None: attend to all
    """

    _fields_ = (
        ("layer", ctypes.c_void_p),
        ("rows", ctypes.c_int64),
        ("few", ctypes.c_int64),
        ("hidden", ctypes.c_void_p),
        ("cos", ctypes.c_void_p),
        ("sin", ctypes.c_void_p),
        ("table_stride", ctypes.c_int64),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("head_stride", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("mask", ctypes.c_void_p),
        ("mask_stride", ctypes.c_int64),
        ("out", ctypes.c_void_p),
    )


class Steps(ctypes.Structure):
    """Some Steps, one after the other. first: the address of an array of `count`."""

    _fields_ = (
        ("first", ctypes.c_void_p),
        ("count", ctypes.c_int64),
    )


class Attention(ctypes.Structure):
    """Attention of many queries; all numbers bfloat16, strides those of batch, head and row, in numbers.

    query: [batch, heads, queries, dim], dim a multiple of 8
    key, value: [batch, kv_heads, keys, dim]
    first, end: int32 [batch, queries], the keys that each query sees, sequences `rule_stride` apart: 0 where all share
        one; or None: all keys
    seen: bool [batch, keys], `seen_stride` apart, False where a key is not seen after all; or None
    out: [batch, queries, heads, dim]
    """

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "key", "value")),
        *((f"{name}_strides", ctypes.c_int64 * 3) for name in ("query", "key", "value")),
        ("first", ctypes.c_void_p),
        ("end", ctypes.c_void_p),
        ("rule_stride", ctypes.c_int64),
        ("seen", ctypes.c_void_p),
        ("seen_stride", ctypes.c_int64),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "kv_heads", "queries", "keys", "dim")),
        ("scaling", ctypes.c_float),
        ("out", ctypes.c_void_p),
    )


STRUCTS = (
    Matrix,
    Product,
    Dense,
    Dequantize,
    Rows,
    PackAwq,
    PackAwqs,
    PackRows,
    Recover,
    ReadAhead,
    Norm,
    Gated,
    Layer,
    Step,
    Steps,
    Attention,
)


def _check(code: int) -> None:
    if code:
        raise MemoryError("no memory for what an int4 CPU kernel computes in")


# name -> what it takes beside a number of threads, and what becomes of its result
FUNCTIONS = {
    "int4_linear": (Product, _check),
    "int4_product": (Product, None),
    "int4_dense": (Dense, None),
    "int4_dequantize": (Dequantize, None),
    "int4_decoder_layers": (Steps, _check),
    "int4_attention": (Attention, _check),
    "int4_rms_norm": (Norm, None),
    "int4_gated": (Gated, None),
    "int4_rows": (Rows, None),
    "int4_pack_awq": (PackAwqs, None),
    "int4_pack_rows": (PackRows, None),
    "int4_recover": (Recover, None),
    "int4_read_ahead": (ReadAhead, None),
}


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, compiled or found on the first call. None where that fails: one warning then says why."""
    try:
        return _declared(build())
    except (Unavailable, OSError, subprocess.SubprocessError) as error:
        logger.warning(f"int4 CPU kernels not available, PyTorch's own int4 operator is used instead: {error}")
        return None


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the signatures of its functions.

    Raises:
        Unavailable: It is none of these kernels, or its structs are others than those above.
    """
    try:
        for struct in STRUCTS:
            size = ctypes.c_int32.in_dll(loaded, f"int4_sizeof_{struct.__name__}").value
            if size != ctypes.sizeof(struct):
                raise Unavailable(f"{struct.__name__} has {size} bytes in C, {ctypes.sizeof(struct)} in Python")
        for name, (struct, result) in FUNCTIONS.items():
            function = getattr(loaded, name)
            function.argtypes, function.restype = (ctypes.POINTER(struct), ctypes.c_int), result
        loaded.int4_huge_pages.argtypes, loaded.int4_huge_pages.restype = (ctypes.c_void_p, ctypes.c_int64), None
    except (AttributeError, ValueError) as error:  # a symbol that is missing: of a function, of a number
        raise Unavailable(f"the compiled library is not whole: {error}") from error
    return loaded
