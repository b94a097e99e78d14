"""Name, dtype and shape of a tensor in a safetensors file, before there are values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes
import numpy as np

DTYPES = {
    "int32": ("I32", np.dtype(np.int32)),
    "uint32": ("U32", np.dtype(np.uint32)),
    "int64": ("I64", np.dtype(np.int64)),
    "float32": ("F32", np.dtype(np.float32)),
    "float16": ("F16", np.dtype(np.float16)),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
}
SCALES = "scales"  # dtype of a tensor of scales until the real one is chosen


@dataclass(frozen=True)
class TensorSpec:
    """One tensor to be written. `dtype` is a key of `DTYPES`, or `SCALES`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def nbytes(self, scale_dtype: str = "float32") -> int:
        return self.size * DTYPES[scale_dtype if self.dtype == SCALES else self.dtype][1].itemsize
