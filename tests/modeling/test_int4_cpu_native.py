"""Our CPU kernels against element-by-element definitions. (Compiling them: test_int4_cpu_build.py.)"""

import ctypes
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from gemma3_int4 import int4_cpu_native
from gemma3_int4.int4_cpu_hardware import INSTRUCTION_SETS, cpu
from gemma3_int4.int4_cpu_library import Layer, Product, Step, Steps, library
from gemma3_int4.int4_cpu_native import NativeCpu

from tests.conftest import ROOT
from tests.modeling.hardware import only
from tests.modeling.matrices import DTYPES, assert_rounded_to_bfloat16, linear_from, random_matrix, random_rows

native = pytest.mark.usefixtures("instruction_set")


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    """The kernels as they are compiled for each set of instructions, if this CPU has it."""
    with only(request.param, "gemma3_int4"):
        yield request.param


@native
@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("shape", [(32, 32), (96, 64), (192, 96), (544, 160)])
def test_layout_word_by_word(shape, scale_dtype):
    codes, rows, scales, _ = random_matrix(*shape, scale_dtype)
    packed = NativeCpu.pack(rows, scales)
    expected = np.zeros((shape[0] // 16, shape[1] // 8, 16), dtype=np.uint32)
    for (n, k), code in np.ndenumerate(codes.numpy()):
        expected[n // 16, k // 8, n % 16] |= np.uint32(code + 8) << np.uint32(4 * (k % 8))
    assert torch.equal(packed["block_codes"], torch.from_numpy(expected.view(np.int32)))
    assert packed["block_scales"].dtype == scale_dtype
    assert torch.equal(packed["block_scales"].transpose(1, 2).flatten(0, 1), scales)


@native
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(32, 32), (160, 64), (288, 96), (1024, 640), (4192, 64)])
def test_packing_from_awq_words_equals_packing_from_codes(shape, threads):
    codes, rows, scales, _ = random_matrix(*shape, torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        linear = linear_from(codes, scales, torch.bfloat16)
    finally:
        torch.set_num_threads(before)
    for name, expected in NativeCpu.pack(rows, scales).items():
        assert torch.equal(linear.packed[name], expected)


def terms_of_fixed_point(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Of x in fixed point times W.T, for `assert_rounded_to_bfloat16`: fixed point keeps 23 bits below the largest |x|
    of a group, or 15 where that is at most 32 times the mean of the others.
    """
    groups = x.double().unflatten(1, (-1, 32)).abs()
    largest = groups.amax(-1, keepdim=True)
    others = (groups.sum(-1, keepdim=True) - largest) / 31
    lost = torch.where(largest <= 32.001 * others, 2.0**-15, 2.0**-23) * largest
    return (largest + lost * 2**21).expand_as(groups).flatten(1) @ weight.abs().T


@native
@pytest.mark.parametrize("rows", [1, 2, 3, 60])
@pytest.mark.parametrize("outlier", [0, 24, 40, 1e4])
def test_what_fixed_point_rounds_away_is_little_beside_the_mean_of_a_group(outlier, rows):
    """Numbers of one size, all of which have to be rounded, beside none that is larger, one that is just not so much
    larger that all bits are kept, and ones for which they are; and codes that do not read the large one."""
    codes, _, _, _ = random_matrix(64, 128, torch.float32, seed=7)
    codes[:, 31::32] = 0
    x = (1 + torch.rand(rows, 128, generator=torch.Generator().manual_seed(8)) * 2**-3).bfloat16() * 2.0**-6
    x[:, 30::32] *= 2.0**-8
    x[:, 31::32] = 0
    x[-1, 31::32] = outlier * 2.0**-6  # in the last row alone: rows are multiplied two at a time, or more
    found = linear_from(codes, torch.ones(64, 4), torch.bfloat16)(x)
    exact = x.double() @ codes.double().T
    mean = x[:, :31].double().abs().mean()
    bound = exact.abs() * 2**-8 + mean * 2**-10 * codes.double().abs().sum(1)
    assert ((found.double() - exact).abs() <= bound).all()


@native
@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float32])
def test_few_rows_are_exact_for_scales_and_activations_of_any_size(scale_dtype):
    codes, _, _, _ = random_matrix(64, 128, scale_dtype, seed=5)
    generator = torch.Generator().manual_seed(6)
    scales = (10.0 ** (torch.rand(64, 4, generator=generator) * 40 - 20)).to(scale_dtype)
    x = random_rows(4, 128) * 10.0 ** (torch.rand(4, 128, generator=generator) * 12 - 6).bfloat16()
    x[1] = 0
    x[2, 32:64] *= 1e-30  # a group far below the others
    x[3, 5] = 3e4  # one outlier, as Gemma's hidden states have
    weight = codes.double() * scales.double().repeat_interleave(32, dim=1)
    found = linear_from(codes, scales, torch.bfloat16)(x)
    assert_rounded_to_bfloat16(found, x.double() @ weight.T, terms_of_fixed_point(x, weight))
    assert (found[1] == 0).all()


@native
def test_outliers_do_not_drown_their_neighbours():
    codes = torch.zeros(32, 32, dtype=torch.int64)
    codes[:, 1] = torch.arange(32) % 16 - 8  # reads the small activation only
    x = torch.zeros(1, 32).bfloat16()
    x[0, 0], x[0, 1] = 2.0**14, 1.0
    linear = linear_from(codes, torch.ones(32, 1), torch.bfloat16)
    assert torch.equal(linear(x)[0].float(), codes[:, 1].float())


@native
def test_numbers_are_rounded_to_the_nearest_bfloat16_and_to_the_even_one():
    """One input times one code: the float32 product is exact, and its only rounding is the output's."""
    codes = torch.zeros(128, 32, dtype=torch.int64)
    codes[:, 0] = torch.arange(128) % 7 + 1
    x = torch.zeros(64, 32).bfloat16()
    x[:, 0] = (torch.arange(128, 192).float() * 3 + 1).bfloat16()
    scales = (1 + torch.arange(128) / 128).bfloat16().float()[:, None]
    exact = x[:, :1].float() @ (codes[:, :1].float() * scales).T
    linear = linear_from(codes, scales, torch.bfloat16)
    for m in (1, 4, cpu().native_rows):
        assert torch.equal(torch.cat([linear(part) for part in x.split(m)]), exact.bfloat16())


@native
@pytest.mark.skipif(cpu().amx, reason="torch's GEMM multiplies many rows here")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_row_does_not_depend_on_how_many_there_are_beside_it(threads):
    """Nor on how they are shared out: 1,100 rows are several units of work, 1,120 outputs several rows of panels."""
    codes, _, scales, _ = random_matrix(1120, 672, torch.bfloat16, seed=9)
    linear, x = linear_from(codes, scales, torch.bfloat16), random_rows(1100, 672, seed=9)
    expected = torch.cat([linear(part) for part in x.split(100)])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = linear(x)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found, expected)
    weight = codes.double() * scales.double().repeat_interleave(32, dim=1)
    exact = x.double() @ weight.T
    assert (found.double() - exact).norm() < 5e-3 * exact.norm()


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 6, 7, 12, 13, 40])
@pytest.mark.parametrize("instruction_set", ["AVX512_VNNI", "AVX2_VNNI", "AVX2"])
def test_many_rows_in_fixed_point_are_few_ones_to_the_bit(instruction_set, rows, scale_dtype):
    """Of a tile's rows some have a low byte in a group, some are infinite, and some tiles are not full."""
    codes, _, scales, _ = random_matrix(96, 288, scale_dtype, seed=10)
    x = random_rows(rows, 288, seed=10)
    x[1::5, 40] *= 2**9
    x[3::7, 200] = float("inf")
    x[4::7, 100] = 0
    found = {}
    with only(instruction_set, "gemma3_int4"):
        packed = linear_from(codes, scales, torch.bfloat16).packed
        matrix = int4_cpu_native.native_matrix(**packed)
        for name in ("int4_linear", "int4_product"):
            work, y = torch.empty(rows + 12, 288, dtype=torch.float64), torch.empty(rows, 96, dtype=torch.bfloat16)
            getattr(library(), name)(Product(matrix, x.data_ptr(), rows, work.data_ptr(), y.data_ptr()), 2)
            found[name] = y
    assert found["int4_product"].isfinite().any()
    assert torch.equal(found["int4_product"].view(torch.int16), found["int4_linear"].view(torch.int16))


DENSE = [(1, 32, 8), (7, 40, 72), (13, 33, 264), (50, 144, 1152), (12, 96, 520), (1100, 300, 296)]


@native
@pytest.mark.parametrize(("rows", "outputs", "inputs"), DENSE)
def test_weights_that_are_no_codes(rows, outputs, inputs):
    """Some inputs are outliers; what is rounded beside the result is little beside the lengths of the two rows."""
    generator = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(n, inputs, generator=generator) for n in (rows, outputs))
    x[:, 3] *= 40
    weight[5] *= 1e-3
    x, weight, bias = x.bfloat16(), weight.bfloat16(), torch.randn(outputs, generator=generator).bfloat16()
    lengths = x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)
    for added in (bias, None):
        exact = torch.nn.functional.linear(x.double(), weight.double(), None if added is None else added.double())
        found = int4_cpu_native.dense(x, weight, added)
        assert found.dtype == torch.bfloat16
        assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + lengths * 2**-13).all()


@native
def test_a_row_of_a_dense_product_depends_on_nothing_beside_it(monkeypatch):
    """Not on the other rows, nor on how they are shared out or split; and what is not finite stays in its row."""
    x, weight = (torch.randn(n, 264, generator=torch.Generator().manual_seed(n)).bfloat16() for n in (60, 70))
    expected = torch.cat([int4_cpu_native.dense(row, weight, None) for row in x.split(1)])
    assert torch.equal(int4_cpu_native.dense(x.view(2, 30, 264), weight, None).view(60, 70), expected)
    monkeypatch.setattr(int4_cpu_native, "TILE_WEIGHTS", 24 * 264)
    x[17, 263], x[40, 0] = torch.inf, torch.nan
    found = int4_cpu_native.dense(x, weight, None)
    others = torch.ones(60, dtype=torch.bool).index_fill(0, torch.tensor([17, 40]), False)
    assert torch.equal(found[others], expected[others])
    assert not found[~others].isfinite().any()


@native
@pytest.mark.parametrize("size", [1.0, 3e-20, 1e18])
def test_dense_sums_as_large_as_they_get(size):
    """Rows that are each other's multiples, with all numbers the same, or a single one."""
    x = torch.zeros(3, 512)
    x[0], x[1], x[2, 300] = size, -1 / size, size
    weight = torch.stack([torch.ones(512), torch.arange(512) % 7 - 3, -torch.ones(512)])
    exact = x.bfloat16().double() @ weight.double().T
    found = int4_cpu_native.dense(x.bfloat16(), weight.bfloat16(), None).double()
    assert ((found - exact).abs() <= x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1) * 2**-9).all()


@native
def test_memory_of_weights_is_shared_out_once_and_given_back():
    shapes = [(2, 1, 16), (4, 3, 16), (1 << 24, 2, 1), (2, 5, 16), (1 << 20, 3, 4), (1 << 20, 3, 4)]
    tensors = [int4_cpu_native.weight_memory(shape, torch.int16) for shape in shapes]
    places = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    assert all(start % 64 == 0 for start, _ in places)
    assert [tuple(tensor.shape) for tensor in tensors] == shapes
    pages = int4_cpu_native._scratch.pages
    assert pages() is not None
    del tensors
    assert pages() is None


@native
def test_a_product_for_which_there_is_no_memory_is_an_error_and_touches_nothing():
    """A petabyte of activations: what C allocates is checked before it is written to."""
    _, rows, scales, _ = random_matrix(32, 32, torch.bfloat16)
    matrix = int4_cpu_native.native_matrix(**NativeCpu.pack(rows, scales))
    with pytest.raises(MemoryError, match="int4"):
        library().int4_linear(Product(matrix, None, 1 << 44, None, None), 1)


@native
def test_a_layer_for_which_there_is_no_memory_is_an_error_and_touches_nothing():
    _, rows, scales, _ = random_matrix(32, 32, torch.bfloat16)
    matrix = int4_cpu_native.native_matrix(**NativeCpu.pack(rows, scales))
    layer = Layer(*[matrix] * 7, heads=1, kv_heads=1, head_dim=32, eps=1e-6, scaling=1.0)
    step = Step(layer=ctypes.addressof(layer), rows=1 << 40, few=1, length=1)  # the other addresses are null
    with pytest.raises(MemoryError, match="int4"):
        library().int4_decoder_layers(Steps(ctypes.addressof(step), 1), 1)


@native
def test_the_wrong_struct_is_refused():
    with pytest.raises(ctypes.ArgumentError):
        library().int4_rms_norm(Product(), 1)


def test_importing_changes_no_thread_setting():
    code = """if True:
        import sys, types, torch
        sys.modules["package"] = types.ModuleType("package")
        sys.modules["package"].__path__ = ["."]
        before = torch.get_num_threads(), torch.get_num_interop_threads()
        import package.int4_layers
        assert before == (torch.get_num_threads(), torch.get_num_interop_threads())
        """
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
