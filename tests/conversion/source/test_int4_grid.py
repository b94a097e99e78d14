"""The int4 grid: products exact in every bit, for any group; and what is said of groups that lie on no grid.

Run: pytest tests/conversion/source/test_int4_grid.py
"""

import itertools

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from conversion.codes import GROUP_SIZE, dequantize, representable
from conversion.source.int4_grid import NonFinite, recover

CODES = st.one_of(
    hnp.arrays(np.int8, GROUP_SIZE, elements=st.integers(-8, 7)),
    hnp.arrays(np.int8, GROUP_SIZE, elements=st.integers(-2, 2)),
    hnp.arrays(np.int8, GROUP_SIZE, elements=st.sampled_from([-8, -6, -4, -2, 0, 2, 4, 6])),
    hnp.arrays(np.int8, GROUP_SIZE, elements=st.sampled_from([-7, 0, 7])),
    hnp.arrays(np.int8, GROUP_SIZE, elements=st.just(0)),
    st.tuples(st.integers(0, GROUP_SIZE - 1), st.integers(-8, 7)).map(
        lambda one: np.where(np.arange(GROUP_SIZE) == one[0], one[1], 0).astype(np.int8)
    ),
)
FLOATS = st.floats(float(np.float32(1e-7)), 1e2, width=32)
SCALES = st.one_of(
    FLOATS,
    FLOATS.map(lambda scale: float(np.float32(scale).astype(ml_dtypes.bfloat16))),
    st.floats(2.0**-14, 1e2, width=16),
)
SUBNORMAL = st.floats(2.0**-149, 2.0**-100, width=32)


@st.composite
def grids(draw, scales=SCALES):
    """Four groups, each code array with its scale, laid out along either axis."""
    codes = np.stack([draw(CODES) for _ in range(4)])
    drawn = np.array([draw(scales) for _ in range(4)], np.float32)
    steps = np.array([draw(st.integers(-1, 1)) for _ in range(4)], np.int32)
    drawn = np.maximum(drawn.view(np.int32) + steps, 1).view(np.float32)  # 1-ulp neighbors
    return codes, drawn[:, None]


@settings(max_examples=300, deadline=None)
@given(grids(SCALES | SUBNORMAL), st.sampled_from([0, 1]))
def test_products_are_exact_for_any_group(grid, axis):
    weights = dequantize(*grid)
    if axis == 0:
        weights = np.ascontiguousarray(weights.T)
    found = recover(weights, axis)
    assert found.inexact == 0
    assert found.worst == 0.0
    assert (dequantize(found.codes, found.scales, axis) == weights).all()
    assert (found.scales > 0).all()
    assert found.codes.min() >= -8
    assert found.codes.max() <= 7


@settings(max_examples=300, deadline=None)
@given(grids())
def test_the_choice_is_the_one_of_a_plain_search(grid):
    weights = dequantize(*grid)
    found = recover(weights, 1)
    for group, codes, scale in zip(weights, found.codes, found.scales[:, 0], strict=True):
        expected = _plain_search(group)
        assert scale == expected[1]
        assert (codes == expected[0]).all()


def _plain_search(group):
    """The rule in words, one candidate after the other: fewest bits, then largest m <= 7, then 8, then nearest."""
    absmax = np.abs(group).max()
    if absmax == 0:
        return np.zeros(GROUP_SIZE, np.int8), np.float32(1)
    found = []
    for place, (m, step) in enumerate(itertools.product((7, 6, 5, 4, 3, 2, 1, 8), (0, 1, -1, 2, -2))):
        nearest = np.float32(absmax / np.float32(m)).view(np.int32) + np.int32(step)
        if nearest <= 0 or nearest >= np.float32(np.inf).view(np.int32):
            continue
        scale = nearest.view(np.float32)
        codes = np.rint(group.astype(np.float64) / np.float64(scale))
        if codes.min() < -8 or codes.max() > 7 or not (codes.astype(np.float32) * scale == group).all():
            continue
        bits = next(d for d in ("bfloat16", "float16", "float32") if representable(np.array([scale]), d)[0])
        found.append((("bfloat16", "float16", "float32").index(bits), place, codes.astype(np.int8), scale))
    return min(found, key=lambda candidate: candidate[:2])[2:]


def test_many_random_groups_match_the_plain_search():
    rng = np.random.default_rng(1)
    codes = rng.integers(-8, 8, (3000, GROUP_SIZE)).astype(np.int8)
    codes[::3] = np.clip(codes[::3], -7, 7)
    codes[1::5] //= rng.integers(1, 8, (600, 1)).astype(np.int8)
    codes[2::7] *= rng.random((429, GROUP_SIZE)) < 0.05
    scales = np.float32(10) ** rng.uniform(-7, 2, (3000, 1)).astype(np.float32)
    scales[::2] = scales[::2].astype(ml_dtypes.bfloat16)
    scales[1::4] = scales[1::4].astype(np.float16)
    scales = np.maximum(scales, np.float32(1e-7))
    weights = dequantize(codes, scales)
    found = recover(weights, 1)
    assert found.inexact == 0
    for group, code, scale in zip(weights, found.codes, found.scales[:, 0], strict=True):
        expected_code, expected_scale = _plain_search(group)
        assert scale == expected_scale
        assert (code == expected_code).all()


def test_degenerate_groups_do_not_spoil_a_bfloat16_checkpoint():
    scale = np.float32(0.01).astype(ml_dtypes.bfloat16).astype(np.float32)
    codes = np.zeros((5, GROUP_SIZE), np.int8)
    codes[0, 3] = 5  # one non-zero code: absmax/7 would need float32
    codes[1] = 2  # equal codes
    codes[2, :2] = 6, -4  # even codes
    codes[3, :2] = -8, 7
    weights = dequantize(codes, np.full((5, 1), scale))
    found = recover(weights, 1)
    assert representable(found.scales, "bfloat16").all()
    assert (dequantize(found.codes, found.scales) == weights).all()
    assert found.scales[4, 0] == 1  # zeros


def test_negative_zero_is_zero():
    weights = np.full((1, GROUP_SIZE), -0.0, np.float32)
    weights[0, 0] = 0.07
    found = recover(weights, 1)
    assert found.inexact == 0
    assert not found.codes[0, 1:].any()


@pytest.mark.parametrize("axis", [0, 1])
def test_large_blocks_of_every_kind(axis):
    """More weights than a tile holds, both axes, mixed scales, against the codes they were made of."""
    rng = np.random.default_rng(2)
    rows, columns = 416, 1184
    codes = rng.integers(-7, 8, (rows, columns)).astype(np.int8)
    codes[:: GROUP_SIZE if axis == 0 else 1, :: 1 if axis == 0 else GROUP_SIZE] = 7
    shape = (rows // GROUP_SIZE, columns) if axis == 0 else (rows, columns // GROUP_SIZE)
    scales = rng.uniform(1e-4, 1e-1, shape).astype(np.float32)
    scales[::3] = scales[::3].astype(ml_dtypes.bfloat16)
    weights = dequantize(codes, scales, axis)
    found = recover(weights, axis)
    assert found.inexact == 0
    assert (found.codes == codes).all()
    assert (dequantize(found.codes, found.scales, axis) == weights).all()


def test_an_inexact_group_gets_the_least_squares_scale():
    rng = np.random.default_rng(3)
    codes = rng.integers(-7, 8, (6, GROUP_SIZE)).astype(np.int8)
    codes[:, 0] = 7
    weights = dequantize(codes, np.full((6, 1), 0.01, np.float32))
    noisy = weights.copy()
    noisy[2] += rng.uniform(-1e-6, 1e-6, GROUP_SIZE).astype(np.float32)
    found = recover(noisy, 1)
    assert found.inexact == 1
    assert (found.codes == codes).all()
    expected = (codes[2] * noisy[2].astype(np.float64)).sum() / (codes[2].astype(np.float64) ** 2).sum()
    assert found.scales[2, 0] == np.float32(expected)
    deviation = np.abs(codes[2].astype(np.float32) * found.scales[2, 0] - noisy[2].astype(np.float64)).max()
    assert found.worst == pytest.approx(deviation / np.abs(noisy[2]).max())


def test_a_tensor_off_the_grid_is_seen_as_such():
    weights = np.random.default_rng(4).standard_normal((64, 256)).astype(np.float32)
    found = recover(weights, 1)
    assert found.inexact == found.scales.size
    assert 0.03 < found.worst < 0.2


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [0, 1])
def test_non_finite_values_are_named_by_their_place(value, axis):
    weights = np.ones((96, 160), np.float32)
    weights[70, 130] = value
    with pytest.raises(NonFinite) as caught:
        recover(weights, axis)
    assert caught.value.index == (70, 130)


def test_axis_must_divide():
    with pytest.raises(ValueError, match="multiple of the group size 32"):
        recover(np.ones((4, 40), np.float32), 1)


def test_representable():
    scales = np.array([1.0, 1.0 + 2**-7, 1.0 + 2**-10, 1.0 + 2**-20, 2.0**-24, 2.0**-25, 1e5], np.float32)
    assert representable(scales, "bfloat16").tolist() == [True, True, False, False, True, True, False]
    assert representable(scales, "float16").tolist() == [True, True, True, False, True, False, False]
    assert representable(scales, "float32").all()
