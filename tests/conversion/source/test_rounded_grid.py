"""Scales of rounded products: found again in every dtype, the products equal in every element, or nothing is claimed.

Run: pytest tests/conversion/source/test_rounded_grid.py
"""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion.source.rounded_grid import recover_scales
from conversion.tensor_spec import DTYPES

NAMES = ("bfloat16", "float16", "float32")
STORED = (np.dtype(ml_dtypes.bfloat16), np.dtype(np.float16), np.dtype(np.float32))


def trained(dtype: str, rows: int = 64, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [rows, 256] with a 7 or -7 in every group, and scales float32 [rows, 8] of a dtype."""
    groups = np.random.default_rng(seed).standard_normal((rows, 8, 32)).astype(np.float32) * 0.05
    scales = (np.abs(groups).max(axis=2) / 7).astype(DTYPES[dtype][1]).astype(np.float32)
    codes = np.rint(groups / scales[:, :, None]).clip(-7, 7)
    return codes.astype(np.int8).reshape(rows, -1), scales


def products(codes: np.ndarray, scales: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return (codes.astype(np.float32) * np.repeat(scales.astype(np.float32), 32, axis=1)).astype(dtype)


def codes_of(weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    divisor = np.repeat(scales.astype(np.float32), 32, axis=1)
    return np.rint(weights.astype(np.float32) / divisor).astype(np.int8)


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_every_product_is_given_again_and_every_code_found(stored, name):
    codes, scales = trained(name)
    weights = products(codes, scales, stored)
    found = recover_scales(weights, name)
    assert found.lost == 0
    assert found.scales.dtype == DTYPES[name][1]
    np.testing.assert_array_equal(products(codes, found.scales, stored), weights)
    np.testing.assert_array_equal(codes_of(weights, found.scales), codes)


@pytest.mark.parametrize("stored", STORED, ids=str)
def test_bfloat16_scales_are_the_very_same(stored):
    codes, scales = trained("bfloat16", rows=512)
    found = recover_scales(products(codes, scales, stored), "bfloat16")
    np.testing.assert_array_equal(found.scales.astype(np.float32), scales)


@pytest.mark.parametrize("stored", STORED[1:], ids=str)
def test_float16_scales_are_the_very_same_where_the_rounding_lets_them_be_told(stored):
    codes, scales = trained("float16", rows=512)
    found = recover_scales(products(codes, scales, stored), "float16")
    np.testing.assert_array_equal(found.scales.astype(np.float32), scales)


def test_what_bfloat16_scales_cannot_give_is_lost_in_bfloat16_alone():
    codes, scales = trained("float16")
    weights = products(codes, scales, STORED[0])
    assert recover_scales(weights, "bfloat16").lost > weights.size // 32 // 4
    assert recover_scales(weights, "float16").lost == 0


def test_negative_scales_and_the_code_minus_eight_as_llama_cpp_quantizes():
    groups = np.random.default_rng(1).standard_normal((400, 32)).astype(np.float32)
    largest = groups[np.arange(400), np.abs(groups).argmax(axis=1)]
    scales = (largest / -8).astype(np.float16).astype(np.float32)[:, None]
    codes = np.rint(groups / scales).clip(-8, 7).astype(np.int8)
    found = recover_scales(products(codes, scales, np.dtype(np.float16)), "float16")
    assert found.lost == 0
    np.testing.assert_array_equal(found.scales.astype(np.float32), scales)
    assert (found.scales < 0).any()


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_one_changed_weight_loses_its_group_and_no_other(stored, name):
    codes, scales = trained(name)
    weights = products(codes, scales, stored)
    weights[5, 40] = np.float32(weights[5, 40]) * 1.03 + 1e-3
    assert recover_scales(weights, name).lost == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_lost(bad):
    codes, scales = trained("bfloat16")
    weights = products(codes, scales, STORED[0])
    weights[0, 0] = bad
    assert recover_scales(weights, "bfloat16").lost == 1


def test_floats_on_no_grid_are_lost_in_every_dtype():
    weights = np.random.default_rng(2).standard_normal((32, 256)).astype(ml_dtypes.bfloat16)
    assert all(recover_scales(weights, name).lost == 256 for name in NAMES)


def test_zeros_have_the_scale_one():
    found = recover_scales(np.zeros((4, 64), ml_dtypes.bfloat16), "bfloat16")
    assert (found.lost, found.scales.tolist()) == (0, [[1, 1]] * 4)


@given(
    codes=st.lists(st.integers(-8, 7), min_size=32, max_size=32),
    scale=st.floats(2.0**-20, 2.0**20, width=32),
    stored=st.sampled_from(STORED[:2]),
    name=st.sampled_from(NAMES[:2]),
    negative=st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_no_group_of_products_is_lost(codes, scale, stored, name, negative):
    """Whatever its codes: the scale need not be the one it was made with, the products must be."""
    if name == "float16" or stored == np.float16:
        scale = max(min(scale, 1000.0), 2.0**-10)  # within float16's normal range, products too
    scale = np.array([[-scale if negative else scale]], np.float32).astype(DTYPES[name][1])
    weights = products(np.array([codes], np.int8), scale, stored)
    found = recover_scales(weights, name)
    assert found.lost == 0
    again = products(codes_of(weights, found.scales), found.scales, stored)
    np.testing.assert_array_equal(again.astype(np.float32), weights.astype(np.float32))
