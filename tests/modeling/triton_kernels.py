"""Where Triton's kernels can run: on a GPU, or, without one, in Triton's interpreter, in a process of its own.

A test that launches kernels is marked `on_kernels` and skipped elsewhere. The interpreter needs TRITON_INTERPRET=1
before anything imports triton, which `test_int4_gpu.py` sees to.
"""

import dataclasses
import os

import numpy as np
import pytest
import torch
from gemma3_int4 import int4_gpu_triton
from gemma3_int4.int4_gpu_tuning import Dequantize, ManyRows, OneRow

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")
CUDA = torch.device("cuda")
RUN_HERE = int4_gpu_triton.HAS_TRITON and (DEVICE.type == "cuda" or INTERPRETED)
WHY_NOT = "needs triton, and a GPU or TRITON_INTERPRET=1 (see test_kernels_in_tritons_interpreter)"
on_kernels = pytest.mark.skipif(not RUN_HERE, reason=WHY_NOT)
# Every kind of product, with blocks that N, M and K do not fill.
PLANS = [
    OneRow(8, 32, 1, 3),
    OneRow(16, 4, 2, 3),
    ManyRows(16, 16, 1, 4, 2, False),
    ManyRows(32, 16, 3, 4, 2, False),
    ManyRows(16, 32, 2, 4, 2, True),
    Dequantize(2000),
]


def patch_interpreter(monkeypatch) -> None:
    """Triton's interpreter (3.6 to 3.9) multiplies the bits of bfloat16 operands as integers, and truncates to it.

    It gives a comparison of scalars their own type, and that of 3.9 refuses the mask that such a comparison is part of.
    And half of its time goes into what has no effect: it exchanges the language's functions for its own again at every
    call of a function by a kernel, and looks for overflows that it does not report.
    """
    if not INTERPRETED or not int4_gpu_triton.HAS_TRITON:
        return
    from triton.runtime import interpreter

    tl, convert = interpreter.tl, interpreter._convert_float

    def exact(data, source, target, rounding):
        data = np.ascontiguousarray(data)
        if (source, target) == (tl.bfloat16, tl.float32):
            return torch.from_numpy(data.view(np.int16)).view(torch.bfloat16).float().numpy()
        if (source, target) == (tl.float32, tl.bfloat16):
            return torch.from_numpy(data).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return convert(data, source, target, rounding)

    def dot(self, a, b, total, *precision):
        a, b = (
            exact(x.data, tl.bfloat16, tl.float32, None) if x.dtype.scalar == tl.bfloat16 else x.data for x in (a, b)
        )
        return interpreter.TensorHandle(a @ b + total.data, total.dtype.scalar)

    def splat(self, kind, value):
        if value.data.dtype == np.bool_:
            return interpreter.TensorHandle(np.full(kind.shape, value.data), tl.int1)
        return create_splat(self, kind, value)

    def call(self, *args, **kwargs):
        if self.fn not in exchanged:
            exchanged.add(self.fn)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    exchanged = set()
    create_splat = interpreter.InterpreterBuilder.create_splat
    quiet = dataclasses.replace(interpreter.interpreter_builder.options, sanitize_overflow=False)
    monkeypatch.setattr(interpreter.interpreter_builder, "options", quiet)
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
    monkeypatch.setattr(interpreter, "_convert_float", exact)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_splat", splat)
