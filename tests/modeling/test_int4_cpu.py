"""Our CPU kernels against element-by-element definitions. (Compiling them: test_int4_cpu_build.py.)"""

import ctypes
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from gemma3_int4 import int4_cpu
from gemma3_int4.int4_cpu import AtenCpu, NativeCpu
from gemma3_int4.int4_cpu_build import INSTRUCTION_SETS
from gemma3_int4.int4_cpu_library import Layer, Product, Step, library
from gemma3_int4.int4_layers import Int4Linear, Reference, choose_backend

from tests.conftest import ROOT
from tests.modeling.instruction_sets import only
from tests.modeling.test_int4_layers import DTYPES, embedding_from_plain, linear_from, random_matrix

CPU = torch.device("cpu")
native = pytest.mark.usefixtures("instruction_set")


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    """The kernels as they are compiled for each set of instructions, if this CPU has it."""
    with only(request.param, "gemma3_int4"):
        yield request.param


def random_rows(m: int, k: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(m, k, generator=torch.Generator().manual_seed(seed)).bfloat16()


def assert_rounded_to_bfloat16(found: torch.Tensor, exact: torch.Tensor, terms: torch.Tensor) -> None:
    """`found` is `exact` (float64) rounded to bfloat16 (half a unit of 8 bits), but for the error of a float32 sum."""
    slack = exact.abs() * 2**-8 + terms * 2**-21
    assert ((found.double() - exact).abs() <= slack).all()


@native
@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("shape", [(32, 32), (96, 64), (192, 96), (544, 160)])
def test_layout_word_by_word(shape, scale_dtype):
    codes, rows, scales, _ = random_matrix(*shape, scale_dtype)
    packed = NativeCpu.pack(rows, scales)
    expected = np.zeros((shape[0] // 16, shape[1] // 8, 16), dtype=np.uint32)
    for (n, k), code in np.ndenumerate(codes.numpy()):
        expected[n // 16, k // 8, n % 16] |= np.uint32(code + 8) << np.uint32(4 * (k % 8))
    assert torch.equal(packed["qweight"], torch.from_numpy(expected.view(np.int32)))
    assert packed["scales"].dtype == scale_dtype
    assert torch.equal(packed["scales"].transpose(1, 2).flatten(0, 1), scales)
    codes_back, scales_back = NativeCpu.unpack(packed)
    assert torch.equal(codes_back, rows)
    assert torch.equal(scales_back, scales)


@native
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [(32, 32), (160, 64), (288, 96), (1024, 640)])
def test_packing_from_awq_words_equals_packing_from_codes(shape, threads):
    codes, rows, scales, _ = random_matrix(*shape, torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        linear = linear_from(codes, scales, torch.bfloat16)
    finally:
        torch.set_num_threads(before)
    for name, expected in NativeCpu.pack(rows, scales).items():
        assert torch.equal(linear.tensors()[name], expected)


@pytest.fixture(params=[False, True], ids=["own product", "torch's GEMM"])
def amx(request, monkeypatch):
    """Many rows as on a CPU without AMX, and as on one with it."""
    monkeypatch.setattr(int4_cpu, "has_amx", lambda: request.param)


@native
@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("m", [*range(1, 10), 12, 13, 16, 17, 23, 24, 25, 33, 64])
def test_native_equals_the_dequantized_product(m, scale_dtype, amx, instruction_set):
    codes, _, scales, weight = random_matrix(160, 256, scale_dtype, seed=m)
    linear = linear_from(codes, scales, torch.bfloat16)
    assert linear.backend is NativeCpu
    x = random_rows(m, 256, seed=m)
    if m > int4_cpu.MAX_NATIVE_ROWS and (instruction_set == "AVX512" or int4_cpu.has_amx()):
        weight = weight.bfloat16().float()  # many rows are multiplied by bfloat16 weights
    terms = x.double().abs() @ weight.double().abs().T
    assert_rounded_to_bfloat16(linear(x), x.double() @ weight.double().T, terms)


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
    # fixed point keeps 22 bits below the largest |x| of a group
    largest = x.double().unflatten(1, (-1, 32)).abs().amax(-1).repeat_interleave(32, dim=1)
    terms = largest @ weight.abs().T
    assert_rounded_to_bfloat16(found, x.double() @ weight.T, terms)
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
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_do_not_vanish(bad):
    codes, _, scales, _ = random_matrix(32, 64, torch.bfloat16)
    x = random_rows(2, 64)
    x[1, 40] = bad
    y = linear_from(codes, scales, torch.bfloat16)(x)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


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
    for m in (1, 4, int4_cpu.MAX_NATIVE_ROWS):
        assert torch.equal(torch.cat([linear(part) for part in x.split(m)]), exact.bfloat16())


@native
def test_outputs_that_do_not_fill_the_blocks_go_elsewhere():
    codes, _, scales, weight = random_matrix(72, 64, torch.bfloat16)
    linear = linear_from(codes, scales, torch.bfloat16)
    assert linear.backend is Reference
    x = random_rows(3, 64)
    torch.testing.assert_close(linear(x).float(), x.float() @ weight.T, rtol=2e-2, atol=2e-2)


@native
def test_slices_and_batches_of_activations():
    codes, _, scales, weight = random_matrix(64, 64, torch.bfloat16)
    linear = linear_from(codes, scales, torch.bfloat16)
    x = random_rows(12, 128).view(2, 6, 128)[:, ::2, 32:96]
    torch.testing.assert_close(linear(x).float(), x.float() @ weight.T, rtol=1e-2, atol=1e-2)
    assert linear(x[:, :0]).shape == (2, 0, 64)


@native
@pytest.mark.parametrize("m", [1, 40])
def test_gradient_of_the_input(m, monkeypatch):
    monkeypatch.setattr(int4_cpu, "TILE_WEIGHTS", 3000)  # several tiles, the last of them narrower
    codes, _, scales, weight = random_matrix(160, 64, torch.float32)
    x = random_rows(m, 64).requires_grad_()
    out = random_rows(m, 160, seed=1)
    linear = linear_from(codes, scales, torch.bfloat16)
    linear(x).backward(out)
    exact = out.double() @ weight.double()
    assert (x.grad.double() - exact).norm() / exact.norm() < 5e-3


@native
@pytest.mark.parametrize("m", [1, 40])
def test_compiled_equals_eager(m):
    codes, _, scales, _ = random_matrix(64, 64, torch.bfloat16)
    linear = linear_from(codes, scales, torch.bfloat16)
    x = random_rows(m, 64)
    with torch.no_grad():
        compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), linear(x))


@native
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_memory_is_codes_and_scales_alone(scale_dtype):
    codes, rows, scales, _ = random_matrix(512, 512, scale_dtype)
    linear = linear_from(codes, scales, torch.bfloat16)
    assert linear.int4_bytes() == rows.nbytes + scales.nbytes


@native
def test_memory_of_weights_is_shared_out_once_and_given_back():
    shapes = [(2, 1, 16), (4, 3, 16), (1 << 24, 2, 1), (2, 5, 16), (1 << 20, 3, 4), (1 << 20, 3, 4)]
    tensors = [int4_cpu.weight_memory(shape, torch.int16) for shape in shapes]
    places = sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(places))
    assert all(start % 64 == 0 for start, _ in places)
    assert [tuple(tensor.shape) for tensor in tensors] == shapes
    pages = int4_cpu._scratch.pages
    assert pages() is not None
    del tensors
    assert pages() is None


@native
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_embedding_rows_to_the_bit(scale_dtype):
    _, _, scales, weight = random_matrix(192, 64, scale_dtype)
    embedding = embedding_from_plain(weight, scales, torch.float32, embed_scale=1.0)
    embedding.to(torch.bfloat16)
    assert embedding.backend is NativeCpu
    ids = torch.tensor([[0, 15, 16], [100, 191, 0]])
    assert torch.equal(embedding(ids), weight[ids].bfloat16())


@native
def test_a_product_for_which_there_is_no_memory_is_an_error_and_touches_nothing():
    """A petabyte of activations: what C allocates is checked before it is written to."""
    _, rows, scales, _ = random_matrix(32, 32, torch.bfloat16)
    tensors = NativeCpu.pack(rows, scales)
    matrix = int4_cpu.native_matrix(tensors["qweight"], tensors["scales"])
    with pytest.raises(MemoryError, match="int4"):
        library().int4_linear(Product(matrix, None, 1 << 44, None, None), 1)


@native
def test_a_layer_for_which_there_is_no_memory_is_an_error_and_touches_nothing():
    _, rows, scales, _ = random_matrix(32, 32, torch.bfloat16)
    tensors = NativeCpu.pack(rows, scales)
    matrix = int4_cpu.native_matrix(tensors["qweight"], tensors["scales"])
    layer = Layer(*[matrix] * 7, heads=1, kv_heads=1, head_dim=32, eps=1e-6, scaling=1.0)
    step = Step(layer=ctypes.addressof(layer), rows=1 << 40, few=1, length=1)  # the other addresses are null
    with pytest.raises(MemoryError, match="int4"):
        library().int4_decoder_layer(step, 1)


@native
def test_the_wrong_struct_is_refused():
    with pytest.raises(ctypes.ArgumentError):
        library().int4_rms_norm(Product(), 1)


# Choosing


@pytest.mark.parametrize("backend", [NativeCpu, AtenCpu, Reference])
def test_the_environment_names_the_first_backend_to_consider(backend, monkeypatch):
    monkeypatch.setenv("GEMMA3_INT4_BACKEND", backend.name)
    if not backend.supports(CPU, torch.bfloat16, 64, 64):
        pytest.skip(f"{backend.name} is not available here")
    assert choose_backend(CPU, torch.bfloat16, 64, 64) is backend
    assert choose_backend(CPU, torch.float32, 64, 64) is Reference
    codes, _, scales, weight = random_matrix(64, 64, torch.bfloat16)
    linear = linear_from(codes, scales, torch.bfloat16)
    assert linear.backend is backend
    x = random_rows(3, 64)
    torch.testing.assert_close(linear(x).float(), x.float() @ weight.T, rtol=2e-2, atol=2e-2)


def test_a_misspelled_backend_is_an_error(monkeypatch):
    monkeypatch.setenv("GEMMA3_INT4_BACKEND", "fast")
    with pytest.raises(ValueError, match="native-cpu, aten-cpu, reference"):
        choose_backend(CPU, torch.bfloat16, 64, 64)


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


def test_int4_linear_stays_a_linear():
    assert isinstance(Int4Linear(32, 32, torch.bfloat16), torch.nn.Linear)
