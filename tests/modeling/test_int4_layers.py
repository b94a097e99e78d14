"""Codes, scales and the two backends against element-by-element definitions."""

import copy

import numpy as np
import pytest
import torch
from gemma3_int4 import int4_cpu
from gemma3_int4.int4_cpu import AtenCpu, BlockLayout, join_scales, split_scales
from gemma3_int4.int4_layers import (
    AWQ_SYMMETRIC_ZEROS,
    Int4Embedding,
    Int4Linear,
    Int4LMHead,
    Reference,
    dequantize,
    pack_awq,
    recover_codes,
    unpack_awq,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from tests.modeling.tiny_repo import pack_awq_by_hand

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def random_matrix(outputs: int, inputs: int, scale_dtype: torch.dtype, seed: int = 0):
    """Codes -8..7 [N, K], the same as row-major bytes, scales [N, K/32], and float32(code * scale) [N, K]."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (outputs, inputs), generator=generator)
    scales = (torch.rand(outputs, inputs // 32, generator=generator) * 0.02 + 1e-3).to(scale_dtype)
    unsigned = (codes + 8).to(torch.uint8)
    rows = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
    return codes, rows, scales, codes * scales.float().repeat_interleave(32, dim=1)


def embedding_from_plain(weight, scales, disk_dtype: torch.dtype, embed_scale: float) -> Int4Embedding:
    """An int4 embedding as loading makes it from a plain one."""
    embedding = Int4Embedding(*weight.shape, embed_scale, scales.dtype, device="meta")
    embedding.plain_dtype = disk_dtype
    codes = recover_codes(weight, scales, disk_dtype)
    embedding.set_codes_and_scales(codes.to(weight.device), scales, weight.dtype)
    return embedding


def linear_from(codes, scales, compute_dtype) -> Int4Linear:
    """An Int4Linear filled as a loader fills it: with words in the layout of the file."""
    linear = Int4Linear(codes.shape[1], codes.shape[0], scales.dtype)
    linear.qweight = torch.from_numpy(pack_awq_by_hand(codes.numpy()))
    linear.qzeros = torch.full_like(linear.qzeros, AWQ_SYMMETRIC_ZEROS)
    linear.scales = scales.T.contiguous()
    linear.prepare(compute_dtype)
    return linear


def test_awq_words_equal_hand_packed_ones():
    codes, rows, _, _ = random_matrix(72, 64, torch.float32)
    by_hand = torch.from_numpy(pack_awq_by_hand(codes.numpy()))
    assert torch.equal(pack_awq(rows), by_hand)
    assert torch.equal(unpack_awq(by_hand), rows)


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_dequantize_is_code_times_scale_to_the_bit(scale_dtype):
    _, rows, scales, weight = random_matrix(16, 96, scale_dtype)
    assert torch.equal(dequantize(rows, scales, torch.float32), weight)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_split_scales_lose_nothing_and_round_to_nearest(dtype, data):
    values = data.draw(
        st_numpy.arrays(dtype, (2, 8), elements=st_numpy.from_dtype(np.dtype(dtype), min_value=2**-20, max_value=100))
    )
    scales = torch.from_numpy(values)
    rounded, rest = split_scales(scales)
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(join_scales(rounded, rest), scales)
    error = (rounded.double() - scales.double()).abs()
    assert (error <= (scales.to(torch.bfloat16).double() - scales.double()).abs()).all()


@pytest.mark.parametrize("layout", [BlockLayout(64, True), BlockLayout(32, True), BlockLayout(32, False)])
def test_block_layouts_split_what_they_join(layout):
    nibbles = torch.randint(0, 16, (3, 5, layout.outputs), dtype=torch.uint8)
    packed = layout.join(nibbles)
    assert packed.shape == (3, 5, layout.outputs // 2)
    assert torch.equal(layout.split(packed), nibbles)


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("backend", [Reference, AtenCpu])
def test_backends_unpack_what_they_pack(backend, scale_dtype):
    _, rows, scales, _ = random_matrix(192, 96, scale_dtype)
    codes_back, scales_back = backend.unpack(backend.pack(rows, scales))
    assert torch.equal(codes_back, rows)
    assert scales_back.dtype == scale_dtype
    assert torch.equal(scales_back, scales)


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("backend", [Reference, AtenCpu])
def test_a_backend_holds_the_weights_once(backend, scale_dtype):
    _, rows, scales, _ = random_matrix(512, 512, scale_dtype)
    on_disk = rows.nbytes + scales.nbytes + scales.numel() // 2  # qzeros: four bits a group
    in_memory = sum(tensor.nbytes for tensor in backend.pack(rows, scales).values())
    assert in_memory <= 1.12 * on_disk


@pytest.mark.parametrize(("has_bf16_gemm", "kernel_rows"), [(True, 8), (False, 8), (False, 256)])
@pytest.mark.parametrize("m", [1, 2, 8, 9, 33, 128])
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_aten_cpu_equals_the_dequantized_product_to_bfloat16_rounding(
    m, scale_dtype, has_bf16_gemm, kernel_rows, monkeypatch
):
    monkeypatch.setenv("GEMMA3_INT4_BACKEND", "aten-cpu")
    monkeypatch.setattr(int4_cpu, "MAX_KERNEL_ROWS", kernel_rows)  # more than those go by a GEMM
    monkeypatch.setattr(int4_cpu, "HAS_BF16_GEMM", has_bf16_gemm)
    codes, _, scales, weight = random_matrix(192, 256, scale_dtype, seed=m)
    x = torch.randn(m, 256, generator=torch.Generator().manual_seed(m)).bfloat16()
    linear = linear_from(codes, scales, torch.bfloat16)
    assert linear.backend is AtenCpu
    exact = x.double() @ weight.double().T
    relative = (linear(x).double() - exact).norm() / exact.norm()
    assert relative < 5e-3
    # and the reference, which multiplies by weights rounded to bfloat16, is no closer than that by much
    by_reference = Reference.linear(x, {"qweight": linear.codes_and_scales()[0], "scales": scales})
    assert (by_reference.double() - exact).norm() / exact.norm() < 5e-3


def test_float32_is_exact_and_uses_the_scales_as_stored():
    codes, _, scales, weight = random_matrix(40, 64, torch.float16)
    linear = linear_from(codes, scales, torch.float32)
    assert linear.backend is Reference
    x = torch.randn(2, 3, 64)
    assert torch.equal(linear(x), torch.nn.functional.linear(x.view(-1, 64), weight).view(2, 3, 40))


def test_blocks_of_rows_cover_everything(monkeypatch):
    monkeypatch.setattr("gemma3_int4.int4_layers.BLOCK_WEIGHTS", 1000)
    monkeypatch.setattr("gemma3_int4.int4_cpu.BLOCK_WEIGHTS", 1000)
    monkeypatch.setattr("gemma3_int4.int4_cpu.MAX_KERNEL_ROWS", 8)
    codes, rows, scales, weight = random_matrix(192, 64, torch.bfloat16)
    assert torch.equal(unpack_awq(pack_awq(rows)), rows)
    x = torch.randn(20, 64)
    torch.testing.assert_close(linear_from(codes, scales, torch.float32)(x), x @ weight.T)
    linear = linear_from(codes, scales, torch.bfloat16)
    torch.testing.assert_close(linear(x.bfloat16()).float(), x @ weight.T, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [3, 40])
def test_gradient_of_the_input(dtype, m):
    codes, _, scales, weight = random_matrix(128, 64, torch.bfloat16)
    x = torch.randn(m, 64).to(dtype).requires_grad_()
    out = torch.randn(m, 128).to(dtype)
    linear_from(codes, scales, dtype)(x).backward(out)
    exact = out.double() @ weight.double()
    assert (x.grad.double() - exact).norm() / exact.norm() < (1e-6 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_moving_between_dtypes_keeps_codes_and_scales(scale_dtype):
    codes, rows, scales, weight = random_matrix(128, 64, scale_dtype)
    linear = linear_from(codes, scales, torch.bfloat16)
    linear.to(torch.float32)
    assert linear.backend is Reference
    x = torch.randn(2, 64)
    assert torch.equal(linear(x), x @ weight.T)
    linear.bfloat16()
    assert linear.backend is not Reference
    codes_back, scales_back = linear.codes_and_scales()
    assert torch.equal(codes_back, rows)
    assert torch.equal(scales_back, scales)
    assert scales_back.dtype == scale_dtype
    with pytest.raises(TypeError, match="overflows float16"):
        linear.half()


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_state_dict_has_the_layout_of_the_file(compute_dtype):
    codes, _, scales, _ = random_matrix(128, 64, torch.float16)
    state = linear_from(codes, scales, compute_dtype).state_dict()
    assert set(state) == {"qweight", "qzeros", "scales"}
    assert torch.equal(state["qweight"], torch.from_numpy(pack_awq_by_hand(codes.numpy())))
    assert torch.equal(state["scales"], scales.T)
    assert (state["qzeros"] == AWQ_SYMMETRIC_ZEROS).all()


def test_asymmetric_zeros_are_refused():
    linear = Int4Linear(64, 32, torch.bfloat16)
    with pytest.raises(ValueError, match="not symmetric"):
        linear.prepare(torch.float32)


def test_shapes_that_cannot_be_packed_are_refused():
    with pytest.raises(ValueError, match="divisible by 32"):
        Int4Linear(48, 32, torch.bfloat16)


def test_load_state_dict_refuses_int4_weights_but_lets_adapters_pass():
    codes, _, scales, _ = random_matrix(128, 64, torch.bfloat16)
    linear = linear_from(codes, scales, torch.bfloat16)
    with pytest.raises(RuntimeError, match="read by from_pretrained"):
        linear.load_state_dict(linear.state_dict())
    linear.load_state_dict({}, strict=False)


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("disk_dtype", [torch.float32, torch.bfloat16])
def test_embedding_recovers_codes_from_the_plain_weight(scale_dtype, compute_dtype, disk_dtype):
    _, rows, scales, weight = random_matrix(192, 64, scale_dtype)
    stored = weight.to(disk_dtype)
    embedding = embedding_from_plain(stored.to(compute_dtype), scales, disk_dtype, embed_scale=8.0)
    codes_back, scales_back = embedding.codes_and_scales()
    assert torch.equal(codes_back, rows)
    assert torch.equal(scales_back, scales)
    ids = torch.tensor([[0, 1, 63], [64, 100, 191]])
    assert torch.equal(embedding(ids), weight[ids].to(compute_dtype) * 8.0)
    x = torch.randn(2, 64).to(compute_dtype)
    torch.testing.assert_close(
        Int4LMHead(embedding)(x).float(),
        x.float() @ weight.T,
        rtol=2e-2,
        atol=1e-6 if compute_dtype.itemsize == 4 else 2e-2,
    )


def test_embedding_scale_is_rounded_to_the_model_dtype():
    _, _, scales, weight = random_matrix(64, 64, torch.bfloat16)
    embedding = embedding_from_plain(weight.bfloat16(), scales, torch.bfloat16, embed_scale=1152**0.5)
    ids = torch.arange(64)
    assert torch.equal(embedding(ids), weight.bfloat16() * torch.tensor(1152**0.5).bfloat16())


def test_scales_of_another_embedding_are_noticed():
    _, _, scales, weight = random_matrix(64, 64, torch.bfloat16)
    with pytest.raises(ValueError, match="not codes"):
        embedding_from_plain(weight, scales * 1.5, torch.float32, embed_scale=8.0)


def test_head_and_embedding_share_one_storage():
    _, _, scales, weight = random_matrix(64, 64, torch.bfloat16)
    embedding = embedding_from_plain(weight, scales, torch.float32, embed_scale=8.0)
    head = Int4LMHead(embedding)
    assert list(head.parameters()) == []
    assert list(head.buffers()) == []
    both = copy.deepcopy(torch.nn.ModuleDict({"embedding": embedding, "head": head}))
    assert both["head"]._embedding[0] is both["embedding"]
