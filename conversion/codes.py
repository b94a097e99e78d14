"""What an int4 weight is: a code in -8..7, and a float scale for every 32 of them along the contraction axis."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

GROUP_SIZE = 32


@dataclass(frozen=True)
class CodeBlock:
    """Part of an int4 matrix: what a source gives and a writer takes.

    Attributes:
        tensor: which matrix, of those that a leaf stacks.
        outputs, inputs: which of its rows and columns.
        codes: int8 [outputs, inputs], values -8..7, any strides.
        scales: float32 [outputs, inputs/32], any strides.
        weights: float32 [outputs, inputs] that the source holds, zeros of either sign; None if not at hand.
        inexact: groups whose weights are not codes times scales, because they lie on no grid.
        worst: their largest |code * scale - w| / absmax.
    """

    tensor: int
    outputs: slice
    inputs: slice
    codes: np.ndarray
    scales: np.ndarray
    weights: np.ndarray | None = None
    inexact: int = 0
    worst: float = 0.0

    def rows(self, count: int) -> CodeBlock:
        """Its first rows, all if there are no more than so many."""
        outputs = slice(self.outputs.start, min(self.outputs.stop, self.outputs.start + count))
        weights = None if self.weights is None else self.weights[:count]
        return replace(self, outputs=outputs, codes=self.codes[:count], scales=self.scales[:count], weights=weights)


def dequantize(codes: np.ndarray, scales: np.ndarray, axis: int = 1) -> np.ndarray:
    """float32(code * scale): codes int8 [rows, columns], scales as from `recover` -> float32 [rows, columns]."""
    products = codes.astype(np.float32)
    rows, columns = codes.shape
    grouped = products.reshape((-1, GROUP_SIZE, columns) if axis == 0 else (rows, -1, GROUP_SIZE))
    grouped *= np.expand_dims(scales.astype(np.float32, copy=False), axis + 1)
    return grouped.reshape(rows, columns)


def representable(scales: np.ndarray, dtype: str) -> np.ndarray:
    """Which float32 scales `bfloat16`, `float16` or `float32` holds exactly; boolean, shape of the scales."""
    if dtype == "bfloat16":
        return (scales.view(np.uint32) & 0xFFFF) == 0
    if dtype == "float16":
        with np.errstate(over="ignore", under="ignore"):
            return scales.astype(np.float16).astype(np.float32) == scales
    return np.ones(scales.shape, bool)
