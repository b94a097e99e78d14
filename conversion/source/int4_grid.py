"""Floats that lie on an int4 grid -> (codes, scales), proof included.

A quantization-aware-trained matrix was stored as products: w = float32(code * scale) with a code in -8..7 and one scale
per group of 32 consecutive weights along the contraction axis. Neither is stored, so both are recovered here:

`recover` gives codes and scales of a block, exact wherever an exact pair exists: one for which `dequantize(codes,
scales) == w` in every element.

How. If |code| of the largest element is m, then scale is within two float32 steps of absmax/m. So the candidates are
m = 1..8 times five neighbors, and trying all of them is a complete search. Almost every group of a trained matrix is
settled by the first (m = 7, no step): that one is tried on whole blocks, the rest only where it fails or where a
candidate of fewer bits may exist.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from conversion.codes import GROUP_SIZE, representable

TILE = 1 << 16  # weights handled at a time: 256 KiB of float32 and as much of temporaries stay in a core's cache
SEARCH = 1 << 10  # groups searched at a time, for the same reason
UNRANKED = 1 << 30
STEPS = (0, 1, -1, 2, -2)  # float32 neighbors of absmax/m, in order of preference
PREFERENCE = (7, 6, 5, 4, 3, 2, 1, 8)  # |code| of a group's largest weight, in order of preference


class NonFinite(ValueError):
    """A weight is infinite or not a number; `index` is its place in the block."""

    def __init__(self, index: tuple[int, ...], value: float):
        super().__init__(f"value {value} at index {index}")
        self.index = index
        self.value = value


@dataclass(frozen=True)
class Recovered:
    """Codes and scales of a block of weights.

    Attributes:
        codes: int8, shape of the weights, values -8..7. In memory [in, out] whatever the axis: the contraction axis
            comes first, and for axis 1 `codes.T` is the contiguous one.
        scales: float32, shape of the weights with the grouped axis divided by 32; all positive; in memory likewise.
        inexact: number of groups for which no exact pair exists; they carry the least-squares scale.
        worst: largest |code * scale - w| / absmax over those groups, 0.0 if there are none.
    """

    codes: np.ndarray
    scales: np.ndarray
    inexact: int
    worst: float


def recover(weights: np.ndarray, axis: int = 1) -> Recovered:
    """Finds codes and scales with float32(code * scale) == weight in every element.

    Among exact pairs a group gets the scale that needs the fewest bits (bfloat16, float16, float32), then the largest
    m <= 7, then m = 8, then the nearest to absmax/m. A group of zeros gets scale 1 and codes 0.

    Args:
        weights: float32 [rows, columns].
        axis: the axis that is divided into groups of 32: 0 (down a column) or 1 (within a row).

    Raises:
        ValueError: the axis is not a multiple of 32 long.
        NonFinite: a weight is infinite or NaN.
    """
    standing = weights if axis == 0 else weights.T  # [in, out]: groups go down the columns
    ins, outs = standing.shape
    if ins % GROUP_SIZE:
        raise ValueError(f"axis {axis} of {weights.shape} is not a multiple of the group size {GROUP_SIZE}")
    shape = (ins // GROUP_SIZE, GROUP_SIZE, outs)
    grouped = standing.reshape(shape) if axis == 0 else weights.reshape(outs, *shape[:2]).transpose(1, 2, 0)
    codes = np.empty(shape, np.int8)
    scales = np.empty((shape[0], outs), np.float32)
    scratch, suspects = _Scratch(), np.zeros(scales.shape, bool)
    tall, wide = (1, TILE // GROUP_SIZE) if axis == 0 else (TILE // 64 // GROUP_SIZE, 64)
    for top, left in itertools.product(range(0, shape[0], tall), range(0, outs, wide)):
        rows, columns = slice(top, top + tall), slice(left, left + wide)
        suspects[rows, columns] = _settle_by_sevenths(
            grouped[rows, :, columns], codes[rows, :, columns], scales[rows, columns], scratch
        )
    suspects |= _may_be_narrower(codes, scales)
    row, column = np.nonzero(suspects)
    deviation = np.zeros(len(row))
    for start in range(0, len(row), SEARCH):
        part = slice(start, start + SEARCH)
        place = (row[part], slice(None), column[part])
        groups = np.ascontiguousarray(grouped[place].T)
        _check_finite(groups, row[part], column[part], axis)
        found, scales[row[part], column[part]], deviation[part] = _settle_by_search(groups)
        codes[place] = found.T
    codes = codes.reshape(ins, outs)
    if axis == 1:
        codes, scales = codes.T, scales.T
    return Recovered(codes, scales, int(np.count_nonzero(deviation)), float(deviation.max(initial=0)))


def _check_finite(groups: np.ndarray, row: np.ndarray, column: np.ndarray, axis: int) -> None:
    finite = np.isfinite(groups)
    if not finite.all():
        element, group = (int(i) for i in np.argwhere(~finite)[0])
        place = (int(row[group]) * GROUP_SIZE + element, int(column[group]))
        raise NonFinite(place if axis == 0 else place[::-1], float(groups[element, group]))


class _Scratch:
    """Room for the temporaries of one tile, made once: fresh memory costs more than the arithmetic done in it."""

    def __init__(self) -> None:
        self._weights = np.empty(TILE, np.float32)
        self._values = np.empty(TILE, np.float32)
        self._flags = np.empty(TILE, bool)

    def weights(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._weights[: math.prod(shape)].reshape(shape)

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._values[: math.prod(shape)].reshape(shape)

    def flags(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._flags[: math.prod(shape)].reshape(shape)


def _settle_by_sevenths(grouped: np.ndarray, codes: np.ndarray, scales: np.ndarray, scratch: _Scratch) -> np.ndarray:
    """Tries scale = float32(absmax/7) on every group of a tile; fills codes and scales.

    Args:
        grouped: float32 [g, 32, n], any strides.
        codes: int8, to be filled, of the same shape.
        scales: float32 [g, n], to be filled.

    Returns:
        Which groups this does not fit: bool [g, n].
    """
    values, exact = scratch.values(grouped.shape), scratch.flags(grouped.shape)
    if grouped.strides[2] != grouped.itemsize:
        weights = scratch.weights(grouped.shape)
        np.copyto(weights, grouped)
    else:
        weights = grouped
    with np.errstate(all="ignore"):  # infinities and NaN fail the comparison below and are looked at afterwards
        absmax = np.abs(weights, out=values).max(axis=1)
        np.divide(absmax, np.float32(7), out=scales)
        inverse = np.float32(7) / absmax
        if not absmax.all():
            zero = absmax == 0
            scales[zero] = 1
            inverse[zero] = 0
        np.multiply(weights, inverse[:, None], out=values)
        np.rint(values, out=values)
        np.copyto(codes, values, casting="unsafe")
        np.multiply(values, scales[:, None], out=values)
    return ~np.equal(values, weights, out=exact).all(axis=1)


def _may_be_narrower(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Which groups of m = 7 might also have a scale of fewer bits: a neighbor, or another m.

    Args:
        codes: int8 [g, 32, n].
        scales: float32 [g, n].

    Returns:
        bool [g, n]; true too often rather than too seldom.
    """
    bits = scales.view(np.uint32)
    wide = (bits & 0xFFFF) != 0  # not bfloat16, the narrowest there is
    if not wide.any():
        return wide
    # bfloat16 has 16 bits less than float32, float16 at least 13 less: neighbors up to 2 away end in that many zeros.
    narrower = wide & ((bits + 2) & 0xFFFF <= 4)
    near_float16 = wide & ((bits + 2) & 0x1FFF <= 4)
    near_float16[near_float16] = ~representable(scales[near_float16], "float16")
    narrower |= near_float16
    # Another m needs codes with a common factor, so with m = 7 only -7, 0 and 7. Four codes rule out almost all.
    row, column = np.nonzero(wide & _only_sevens(codes[:, :4]))
    narrower[row, column] |= _only_sevens(codes[row, :, column][..., None])[:, 0]
    return narrower


def _only_sevens(codes: np.ndarray) -> np.ndarray:
    """Which groups hold no codes but -7, 0 and 7: int8 [g, k, n] -> bool [g, n]."""
    return ((codes == 0) | (codes == 7) | (codes == -7)).all(axis=1)


def _settle_by_search(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The complete search.

    Args:
        groups: finite float32 [32, n], a group per column.

    Returns:
        codes int8 [32, n], scales float32 [n], deviation float64 [n]: 0 where exact, else max |error| / absmax.
    """
    n = groups.shape[1]
    codes, scales, deviation = np.zeros(groups.shape, np.int8), np.ones(n, np.float32), np.zeros(n)
    absmax = np.abs(groups).max(axis=0)
    best = np.where(absmax == 0, 0, UNRANKED)
    remaining = np.flatnonzero(absmax)
    for multiple in (7, 6, 8, 5, 4, 3, 2, 1):
        code, near = _on_grid_of(multiple, groups[:, remaining], absmax[remaining])
        near = np.flatnonzero(near)
        if not near.size:
            continue
        candidates, code = remaining[near], code[:, near]
        _try_steps(multiple, candidates, code, groups, absmax, best, codes, scales)
        # Codes with no common factor fit no other m, but for the multiples of this one, which came before.
        alone = np.gcd.reduce(code.astype(np.int8), axis=0) == 1
        remaining = np.delete(remaining, near[alone])
    lost = np.flatnonzero(best == UNRANKED)
    if lost.size:
        codes[:, lost], scales[lost], deviation[lost] = _nearest(groups[:, lost], absmax[lost])
    return codes, scales, deviation


def _try_steps(
    multiple: int,
    which: np.ndarray,
    code: np.ndarray,
    groups: np.ndarray,
    absmax: np.ndarray,
    best: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
) -> None:
    """Tries absmax/m and its neighbors on groups that look right for this m; keeps what ranks better in `best`."""
    base = absmax[which] / np.float32(multiple)
    for place, step in enumerate(STEPS):
        scale = _neighbor(base, step)
        exact = (code * scale == groups[:, which]).all(axis=0) & (scale > 0)
        rank = 100 * _bits(scale) + 10 * PREFERENCE.index(multiple) + place
        won = exact & (rank < best[which])
        group = which[won]
        best[group], scales[group], codes[:, group] = rank[won], scale[won], code[:, won]
        unsettled = best[which] >= 100  # not bfloat16 yet
        if not unsettled.any():
            return
        which, code, base = which[unsettled], code[:, unsettled], base[unsettled]


def _on_grid_of(multiple: int, groups: np.ndarray, absmax: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float32 codes if the largest weight has this |code|, and which groups look as if it had.

    An exact group is on its grid to about 1e-6. There is a code -8, but no 8.
    """
    ratio = groups * (multiple / absmax.astype(np.float64))
    code = np.rint(ratio)
    ratio -= code
    near = (np.abs(ratio, out=ratio).max(axis=0) < 1e-3) & (code.max(axis=0) <= 7)
    return code.astype(np.float32), near


def _nearest(groups: np.ndarray, absmax: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, least-squares scales and deviations of groups that lie on no grid: the best of m = 1..8."""
    best_codes = np.zeros(groups.shape, np.int8)
    best_scales = np.ones(len(absmax), np.float32)
    best = np.full(len(absmax), np.inf)
    for multiple in PREFERENCE:
        code = np.clip(np.rint(groups * (multiple / absmax.astype(np.float64))), -8, 7)
        scale = ((code * groups).sum(axis=0) / (code * code).sum(axis=0)).astype(np.float32)
        error = np.abs(code.astype(np.float32) * scale - groups.astype(np.float64)).max(axis=0) / absmax
        better = (error < best) & (scale > 0)
        best[better], best_scales[better], best_codes[:, better] = error[better], scale[better], code[:, better]
    return best_codes, best_scales, best


def _neighbor(scales: np.ndarray, step: int) -> np.ndarray:
    """The positive float32 value `step` places up or down; 0 where there is none."""
    moved = np.maximum(scales.view(np.int32) + np.int32(step), 0).view(np.float32)
    return np.where(np.isfinite(moved), moved, np.float32(0))


def _bits(scales: np.ndarray) -> np.ndarray:
    """0 where bfloat16 holds the scale, 1 where float16 does, 2 where only float32 does."""
    return np.where(representable(scales, "bfloat16"), 0, np.where(representable(scales, "float16"), 1, 2))
