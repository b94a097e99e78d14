"""Scales are counted by what rounding does to their magnitudes; signs and zeros do no harm.

Run: pytest tests/conversion/test_facts.py
"""

import numpy as np
import pytest

from conversion.convert.scale_dtype import choose_scale_dtype, exact_dtype
from conversion.facts import ScaleFacts


def facts(*scales: float) -> ScaleFacts:
    found = ScaleFacts()
    found.add(np.array(scales, np.float32))
    return found


def test_magnitudes_count_and_zeros_do_not():
    found = facts(-0.5, 0, 0.25, -0.0)
    assert (found.count, found.smallest, found.largest) == (4, 0.25, 0.5)
    found.merge(facts(0))
    found.merge(facts(-2, 0.125))
    assert (found.count, found.smallest, found.largest) == (7, 0.125, 2)
    assert (facts(0).smallest, facts(0).largest) == (0, 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_is_relative_to_the_magnitude(sign):
    found = facts(sign * (1 + 2**-10), 1)
    assert found.inexact == {"bfloat16": 1, "float16": 0, "float32": 0}
    assert found.worst_relative["bfloat16"] == pytest.approx(2**-10, rel=0.01)
    assert exact_dtype(found) == choose_scale_dtype("auto", found) == "float16"


@pytest.mark.parametrize(
    ("scales", "dtype"),
    [
        ((0.5, -0.25, 0), "bfloat16"),
        ((0, 0), "bfloat16"),
        ((2**-24, -(1 + 2**-10)), "float16"),  # float16's smallest: beyond its normal range, and exact
        ((-1 / 3, 0), "float16"),  # rounded, but in the normal range
        ((-1 / 3, 1e-7), "float32"),
    ],
)
def test_the_narrowest_dtype_that_the_numbers_allow(scales, dtype):
    assert choose_scale_dtype("auto", facts(*scales)) == dtype
