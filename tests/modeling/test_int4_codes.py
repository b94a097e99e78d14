"""Codes, scales and AWQ words against element-by-element definitions."""

import pytest
import torch
from gemma3_int4 import int4_codes, int4_repacking
from gemma3_int4.int4_codes import (
    Reference,
    dequantize,
    join_codes,
    pack_awq,
    recover_codes,
    row_blocks,
    split_codes,
    unpack_awq,
)
from gemma3_int4.int4_cpu_library import library
from gemma3_int4.int4_cpu_native import NativeCpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.modeling.matrices import DTYPES, linear_from, random_matrix
from tests.modeling.tiny_repo import pack_awq_by_hand


def test_awq_words_equal_hand_packed_ones(monkeypatch):
    monkeypatch.setattr(int4_codes, "BLOCK_WEIGHTS", 1000)  # several blocks, the last of them smaller
    codes, rows, _, _ = random_matrix(72, 64, torch.float32)
    by_hand = torch.from_numpy(pack_awq_by_hand(codes.numpy()))
    assert torch.equal(pack_awq(rows), by_hand)
    assert torch.equal(unpack_awq(by_hand), rows)


def test_row_major_codes_have_the_first_of_two_in_the_low_nibble():
    single = torch.tensor([[1, 2, 15, 0]], dtype=torch.uint8)
    assert join_codes(single).tolist() == [[0x21, 0x0F]]
    assert torch.equal(split_codes(join_codes(single)), single)


@given(
    rows=st.integers(1, 5000),
    columns=st.integers(1, 5000),
    weights=st.integers(1, 1 << 20),
    multiple=st.sampled_from([1, 8, 256]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine is no failure
def test_blocks_of_rows_cover_everything_once(rows, columns, weights, multiple):
    blocks = row_blocks(rows, columns, weights, multiple)
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(rows))
    assert all(block.start % multiple == 0 for block in blocks)
    assert all(block.stop - block.start <= max(weights // columns, multiple) for block in blocks)


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_dequantize_is_code_times_scale_to_the_bit(scale_dtype):
    _, rows, scales, weight = random_matrix(16, 96, scale_dtype)
    assert torch.equal(dequantize(rows, scales, torch.float32), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_dequantize_rounds_the_float32_product_once(scale_dtype, dtype):
    codes, rows, _, _ = random_matrix(48, 96, scale_dtype)
    scales = torch.randn(48, 3).to(scale_dtype)
    scales[0], scales[1], scales[2] = torch.tensor([[0.0] * 3, [2**-24, -(2**-24), -0.0], [3e3, -7e3, float("inf")]])
    exact = codes.float() * scales.float().repeat_interleave(32, dim=1)
    expected = exact.to(dtype).nan_to_num(123)
    torch.compiler.reset()  # which compiles a function for so many dtypes at most
    compiled = torch.compile(dequantize, fullgraph=True, backend="aot_eager")
    for run in (dequantize, compiled):
        found = run(rows, scales, dtype)
        assert found.dtype == dtype
        assert torch.equal(found.nan_to_num(123), expected)
        assert torch.equal(found.signbit()[:2], expected.signbit()[:2])
        assert run(rows[:0], scales[:0], dtype).shape == (0, 96)


class BytesMoved(TorchDispatchMode):
    """Counts the bytes of the tensors that operations read and write; views and memory that is only taken move none."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in operation._schema.returns)
        if not views and operation is not torch.ops.aten.new_empty.default:
            read = {name: value for name, value in (kwargs or {}).items() if name != "out"}
            self.count += sum(t.nbytes for t in tree_leaves((args, read, result)) if isinstance(t, torch.Tensor))
        return result


@pytest.mark.parametrize(
    ("dtype", "scale_dtype", "most"),
    [(torch.bfloat16, torch.bfloat16, 9.1), (torch.bfloat16, torch.float16, 9.4), (torch.float32, torch.float32, 13.2)],
)
def test_a_product_of_the_reference_moves_few_bytes(dtype, scale_dtype, most):
    """29.3, 29.3 and 25.2 before it was four passes; 2 and 4 of them are the GEMM's."""
    _, rows, scales, _ = random_matrix(512, 512, scale_dtype)
    with BytesMoved() as moved:
        Reference.linear(torch.ones(1, 512, dtype=dtype), Reference.pack(rows, scales))
    assert moved.count / (512 * 512) <= most


def recover_by_kernels(weight: torch.Tensor, scales: torch.Tensor, disk_dtype: torch.dtype) -> torch.Tensor:
    if not library():
        pytest.skip("no kernels on this machine")
    rows, found_scales = NativeCpu.unpack(int4_repacking.recover(weight, scales, disk_dtype))
    assert torch.equal(found_scales, scales)
    return rows


@pytest.fixture(params=[recover_codes, recover_by_kernels], ids=["in floats", "by kernels for bfloat16"])
def recover(request):
    return request.param


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("disk_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [32, 64, 608])
def test_codes_are_recovered_from_floats(scale_dtype, disk_dtype, inputs, recover):
    _, rows, scales, weight = random_matrix(192, inputs, scale_dtype)
    assert torch.equal(recover(weight.to(disk_dtype), scales, disk_dtype), rows)
    assert torch.equal(recover(weight.to(disk_dtype).float(), scales, disk_dtype), rows)
    assert torch.equal(recover(weight.bfloat16(), scales, disk_dtype), rows)


@pytest.mark.parametrize("disk_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_codes_under_negative_scales_and_zero(disk_dtype, recover):
    _, rows, scales, _ = random_matrix(192, 64, torch.float16)
    scales[::2] *= -1
    scales[::5] = 0
    weight = dequantize(rows, scales, disk_dtype) + 0  # no -0
    found = recover(weight, scales, disk_dtype)
    assert torch.equal(found[scales[:, 0] != 0], rows[scales[:, 0] != 0])
    assert (found[scales[:, 0] == 0] == 0x88).all()
    weight[5, 40] = 1e-3
    with pytest.raises(ValueError, match="not codes"):
        recover(weight, scales, disk_dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_of_another_matrix_are_noticed(dtype, recover):
    _, _, scales, weight = random_matrix(64, 64, torch.bfloat16)
    with pytest.raises(ValueError, match="not codes"):
        recover(weight.to(dtype), scales * 1.5, torch.float32)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 8 * 2.0**-6, -9 * 2.0**-6, 1.5 * 2.0**-6])
@pytest.mark.parametrize("place", [(0, 0), (2, 63), (31, 90), (31, 95)])
def test_one_weight_that_is_no_product_is_noticed(wrong, place, recover):
    weight, scales = torch.zeros(32, 96, dtype=torch.bfloat16), torch.full((32, 3), 2.0**-6)
    assert (recover(weight, scales, torch.bfloat16) == 0x88).all()
    weight[place] = wrong
    with pytest.raises(ValueError, match="not codes"):
        recover(weight, scales, torch.bfloat16)


def test_scales_of_any_size_recover_the_same(recover):
    """Down to where a reciprocal would overflow, and up to where products are infinite."""
    codes, rows, _, _ = random_matrix(32, 32, torch.float32)
    scales = torch.tensor([2.0**e for e in range(-126, 126, 8)])[:, None]
    weight = (codes * scales).bfloat16()
    assert torch.equal(recover(weight, scales, torch.bfloat16), rows)
    assert weight.abs().max() < float("inf")
    assert weight.abs().amax(1)[0] < 2.0**-120


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 5])
def test_the_kernel_recovers_without_floats(scale_dtype, count, monkeypatch):
    """In blocks of rows, the last of which has fewer, and by threads whose shares end between 8 words."""
    monkeypatch.setattr(int4_repacking, "threads", lambda: count)
    _, rows, scales, weight = random_matrix(32 * 11, 96, scale_dtype)
    monkeypatch.setattr(int4_repacking, "recover_codes", None)
    monkeypatch.setattr(int4_repacking, "CACHED_WEIGHTS", 48 * 96)
    assert torch.equal(recover_by_kernels(weight.bfloat16(), scales, torch.bfloat16), rows)


def test_float32_is_exact_and_uses_the_scales_as_stored():
    codes, _, scales, weight = random_matrix(40, 64, torch.float16)
    linear = linear_from(codes, scales, torch.float32)
    assert linear.backend is Reference
    x = torch.randn(2, 3, 64)
    assert torch.equal(linear(x), torch.nn.functional.linear(x.view(-1, 64), weight).view(2, 3, 40))


def test_float32_gradients():
    codes, _, scales, weight = random_matrix(128, 64, torch.bfloat16)
    x, out = torch.randn(3, 64).requires_grad_(), torch.randn(3, 128)
    linear_from(codes, scales, torch.float32)(x).backward(out)
    exact = out.double() @ weight.double()
    assert (x.grad.double() - exact).norm() < 1e-6 * exact.norm()
