"""Floats that are rounded products of int4 codes and scales -> the scales, proof included.

An embedding is often stored as what its codes stand for: float32(code * scale), rounded to bfloat16 or float16. The
rounding leaves each product somewhere between the halfway points to its neighbors, so every weight bounds its group's
scale from both sides. `recover_scales` takes the middle of what all 32 leave, in a dtype that is asked for, and
multiplies again: a group counts as recovered only if every product, rounded alike, is the stored weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from conversion.codes import GROUP_SIZE, dequantize, representable
from conversion.source.int4_grid import PREFERENCE, recover
from conversion.tensor_spec import DTYPES

TILE = 1 << 12  # groups handled at a time: 512 KiB of float32 and as much of temporaries stay in a core's cache


@dataclass(frozen=True)
class RecoveredScales:
    """Scales of some rows.

    Attributes:
        scales: [rows, columns/32] in the dtype that was asked for; 1 for a group of zeros.
        lost: how many groups are no rounded products of codes -8..7 with such a scale; theirs is 1.
    """

    scales: np.ndarray
    lost: int


def recover_scales(weights: np.ndarray, dtype: str) -> RecoveredScales:
    """Finds the scales with which codes give these weights in every element.

    Args:
        weights: [rows, columns], bfloat16, float16 or float32.
        dtype: of the scales: `bfloat16`, `float16` or `float32`.

    Raises:
        NonFinite: a weight in float32 is infinite or NaN. (In the narrower dtypes, its group is lost.)
    """
    rows, columns = weights.shape
    if weights.dtype == np.float32:
        scales, fits = _exact_scales(weights, dtype)
    else:
        groups = weights.reshape(-1, GROUP_SIZE)
        scales, fits = np.ones(len(groups), np.float32), np.zeros(len(groups), bool)
        for start in range(0, len(groups), TILE):
            part = slice(start, start + TILE)
            scales[part], fits[part] = _scales_of(groups[part], dtype)
    shape = (rows, columns // GROUP_SIZE)
    return RecoveredScales(scales.reshape(shape).astype(DTYPES[dtype][1]), int(np.count_nonzero(~fits)))


def _exact_scales(weights: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """float32 weights are the products themselves: scales, and which of them give the weights."""
    found = recover(weights)
    equal = (dequantize(found.codes, found.scales) == weights).reshape(*found.scales.shape, GROUP_SIZE).all(axis=-1)
    fits = equal & representable(np.ascontiguousarray(found.scales), dtype)
    return np.where(fits, found.scales, np.float32(1)), fits


def _scales_of(groups: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Scales of groups [n, 32], float32 [n], and which of them give the weights, bool [n]."""
    weights = groups.astype(np.float32)
    absmax = np.abs(weights).max(axis=1)
    scales, fits = np.ones(len(groups), np.float32), absmax == 0
    remaining = np.flatnonzero(~fits & np.isfinite(absmax))
    for largest in PREFERENCE:  # |code| of the largest weight
        if not remaining.size:
            break
        found, fit = _scales_for(groups[remaining], weights[remaining], absmax[remaining], largest, dtype)
        scales[remaining[fit]], fits[remaining[fit]] = found[fit], True
        remaining = remaining[~fit]
    return scales, fits


def _scales_for(
    groups: np.ndarray, weights: np.ndarray, absmax: np.ndarray, largest: int, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """As `_scales_of`, if the largest weight has a code of this magnitude."""
    codes = np.rint(weights * (np.float32(largest) / absmax)[:, None])
    sign = np.where(codes.max(axis=1) > 7, np.float32(-1), np.float32(1))  # there is a code -8, but no 8
    codes *= sign[:, None]
    low, high = _bounds(groups, np.abs(codes))
    fit = np.zeros(len(groups), bool)
    scales = np.ones(len(groups), np.float32)
    with np.errstate(all="ignore"):  # bounds of what is no product may be anything
        near = low <= high * np.float32(1 + 2**-20)
        for wanted in ((low + high) / 2, low, high):
            candidate = sign * wanted.astype(DTYPES[dtype][1]).astype(np.float32)
            tried = np.flatnonzero(near & ~fit)
            if not tried.size:
                break
            products = (codes[tried] * candidate[tried, None]).astype(groups.dtype)
            equal = (products == groups[tried]).all(axis=1) & (codes[tried].max(axis=1) <= 7)
            scales[tried[equal]], fit[tried[equal]] = candidate[tried[equal]], True
    return scales, fit


def _bounds(groups: np.ndarray, magnitudes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between which numbers the scale of each group lies: float32 [n] each.

    Args:
        groups: bfloat16 or float16 [n, 32].
        magnitudes: float32 |code|, of the same shape.
    """
    bits = groups.view(np.uint16) & np.uint16(0x7FFF)
    here = _floats(bits, groups.dtype)
    low, high = ((here + _floats(bits + np.uint16(step), groups.dtype)) / 2 for step in (0xFFFF, 1))
    none = magnitudes == 0
    divisor = np.where(none, np.float32(1), magnitudes)
    low, high = np.where(none, np.float32(0), low / divisor), np.where(none, np.float32(np.inf), high / divisor)
    return low.max(axis=1), high.min(axis=1)


def _floats(bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers of a dtype of 16 bits, as float32."""
    if dtype == ml_dtypes.bfloat16:
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(dtype).astype(np.float32)
