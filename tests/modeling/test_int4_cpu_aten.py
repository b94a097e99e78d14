"""The layout of PyTorch's int4 operator, and scales with more bits than it takes."""

import numpy as np
import pytest
import torch
from gemma3_int4.int4_cpu_aten import join_scales, split_scales
from gemma3_int4.int4_cpu_hardware import BlockLayout, _find_aten_layout, cpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@given(data=st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_split_scales_lose_nothing_and_round_to_nearest(dtype, data):
    finite = st_numpy.from_dtype(np.dtype(dtype), min_value=-1e4, max_value=1e4, allow_nan=False)
    scales = torch.from_numpy(data.draw(st_numpy.arrays(dtype, (2, 8), elements=finite)))
    rounded, rest = split_scales(scales)
    assert rounded.dtype == torch.bfloat16
    joined = join_scales(rounded, rest)
    assert torch.equal(joined, scales)
    assert torch.equal(joined.signbit(), scales.signbit())
    error = (rounded.double() - scales.double()).abs()
    assert (error <= (scales.to(torch.bfloat16).double() - scales.double()).abs()).all()


@pytest.mark.parametrize("layout", [BlockLayout(64, True), BlockLayout(32, True), BlockLayout(32, False)])
def test_block_layouts_split_what_they_join(layout):
    nibbles = torch.randint(0, 16, (3, 5, layout.outputs), dtype=torch.uint8)
    packed = layout.join(nibbles)
    assert packed.shape == (3, 5, layout.outputs // 2)
    assert torch.equal(layout.split(packed), nibbles)


def test_the_layout_of_this_machine_is_known():
    assert cpu().aten_layout is not None
    with torch.device("meta"):  # where models without weights are built
        assert _find_aten_layout() == cpu().aten_layout
