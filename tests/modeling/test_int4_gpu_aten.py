"""PyTorch's int4 operator on GPUs: its layouts against a model of its source, and which GPU may have it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gemma3_int4 import int4_gpu_aten
from gemma3_int4.int4_codes import dequantize
from gemma3_int4.int4_gpu_aten import AtenGpu, Layout, layout_of
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.modeling import aten_gpu_operator
from tests.modeling.matrices import DTYPES, random_matrix

CUDA = torch.device("cuda")


@pytest.fixture(params=list(Layout), ids=lambda layout: layout.name)
def layout(request, monkeypatch):
    monkeypatch.setattr(int4_gpu_aten, "layout_of", lambda device: request.param)
    return request.param


def test_words_are_those_that_pytorch_would_pack(layout):
    codes, rows, scales, _ = random_matrix(48, 384, torch.bfloat16)
    expected = aten_gpu_operator.convert_weight_to_int4pack((codes + 8).numpy(), layout)
    assert np.array_equal(AtenGpu.pack(rows, scales)["int4pack"].numpy(), expected)


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_the_operator_reads_the_weights_with_scales_rounded_to_bfloat16(layout, scale_dtype):
    _, rows, scales, _ = random_matrix(48, 384, scale_dtype)
    packed = AtenGpu.pack(rows, scales)
    read = aten_gpu_operator.weights(packed["int4pack"], packed["scales_and_zeros"], None, layout)
    assert torch.equal(read, dequantize(rows, packed["scales_and_zeros"][..., 0].T, torch.bfloat16))
    assert ("scales_rest" in packed) == (scale_dtype != torch.bfloat16)
    assert packed["scales_and_zeros"].dtype == torch.bfloat16


def test_intels_operator_gets_scales_and_zeros_apart():
    _, rows, scales, _ = random_matrix(40, 128, torch.float16)
    packed = AtenGpu.pack(rows, scales)
    like_intel = {
        "int4pack": rows.view(torch.int32),
        "rounded_scales": packed["scales_and_zeros"][..., 0].contiguous(),
        "zeros": torch.full((4, 40), 8, dtype=torch.int8),
        "scales_rest": packed["scales_rest"],
    }
    expected = dequantize(rows, like_intel["rounded_scales"].T, torch.bfloat16)
    operands = [like_intel[name] for name in ("int4pack", "rounded_scales", "zeros")]
    assert torch.equal(aten_gpu_operator.weights(*operands, Layout.ROW_MAJOR), expected)
    for found, stored in zip(AtenGpu.unpack(like_intel), (rows, scales), strict=True):
        assert torch.equal(found, stored)
    ids = torch.tensor([3, 39])
    assert torch.equal(AtenGpu.embedding(ids, like_intel, torch.float32), dequantize(rows, scales, torch.float32)[ids])


def test_the_operators_have_the_arguments_that_are_given():
    """On fake tensors, which PyTorch checks as it does for torch.compile."""
    with FakeTensorMode():
        x, pairs = torch.empty(3, 256, dtype=torch.bfloat16), torch.empty(8, 48, 2, dtype=torch.bfloat16)
        tiles, rows = (torch.empty(*shape, dtype=torch.int32) for shape in [(6, 2, 32, 4), (48, 32)])
        zeros = torch.empty(8, 48, dtype=torch.int8)
        assert int4_gpu_aten._operator(x, tiles, pairs, None).shape == (3, 48)
        assert int4_gpu_aten._operator(x, rows, pairs[..., 0], zeros).shape == (3, 48)


@pytest.mark.parametrize(("device", "outputs"), [("cpu", 64), ("meta", 64), ("cuda", 60), ("mps", 60)])
def test_where_it_does_not_run(device, outputs):
    assert AtenGpu.why_not(torch.device(device), torch.bfloat16, outputs, 128)


@pytest.mark.parametrize("device", ["mps", "xpu"])
def test_on_apple_and_intel(device):
    assert layout_of(torch.device(device)) is Layout.ROW_MAJOR
    assert AtenGpu.why_not(torch.device(device), torch.bfloat16, 64, 128) is None
    assert "128s" in AtenGpu.why_not(torch.device(device), torch.bfloat16, 64, 96)
    assert "bfloat16" in AtenGpu.why_not(torch.device(device), torch.float32, 64, 128)


@pytest.mark.parametrize(("capability", "fits"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_on_nvidia_from_ampere_on(monkeypatch, capability, fits):
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert layout_of(CUDA) is Layout.NVIDIA
    assert (AtenGpu.why_not(CUDA, torch.bfloat16, 8, 128) is None) == fits


@pytest.mark.parametrize(("name", "fits"), [("gfx90a:sramecc+:xnack-", True), ("gfx942", True), ("gfx1100", False)])
def test_on_amd_from_cdna2_on(monkeypatch, name, fits):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=name))
    assert layout_of(CUDA) is Layout.AMD
    assert (AtenGpu.why_not(CUDA, torch.bfloat16, 16, 128) is None) == fits
    assert "outputs in 16s" in AtenGpu.why_not(CUDA, torch.bfloat16, 8, 128)
