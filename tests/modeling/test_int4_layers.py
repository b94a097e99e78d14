"""The int4 modules: from the layout of the file to that of a backend and back, wherever they are moved."""

import copy
import pickle

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from gemma3_int4.int4_codes import AWQ_SYMMETRIC_ZEROS, Reference
from gemma3_int4.int4_layers import AwqLinear, Int4Linear, Int4LMHead, PackedEmbedding, prepare_linears

from tests.modeling.matrices import (
    DTYPES,
    embedding_from,
    embedding_from_plain,
    linear_from,
    random_matrix,
    stored_linear,
)
from tests.modeling.tiny_repo import pack_awq_by_hand


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


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_stored_scales_are_not_cast_before_they_are_prepared(scale_dtype):
    codes, _, scales, _ = random_matrix(128, 64, scale_dtype)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        moved = stored_linear(codes, scales).to(dtype)
        assert moved.scales.dtype == scale_dtype
        assert torch.equal(moved.scales, scales.T)
        assert moved.qweight.dtype == torch.int32
    assert stored_linear(codes, scales).to("meta").qweight.is_meta


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_state_dict_has_the_layout_of_the_file(compute_dtype):
    codes, _, scales, _ = random_matrix(128, 64, torch.float16)
    state = linear_from(codes, scales, compute_dtype).state_dict()
    assert set(state) == {"qweight", "qzeros", "scales"}
    assert torch.equal(state["qweight"], torch.from_numpy(pack_awq_by_hand(codes.numpy())))
    assert torch.equal(state["scales"], scales.T)
    assert (state["qzeros"] == AWQ_SYMMETRIC_ZEROS).all()


def test_an_int4_linear_is_a_linear_without_a_weight():
    codes, _, scales, _ = random_matrix(128, 64, torch.bfloat16)
    linear = linear_from(codes, scales, torch.bfloat16)
    assert isinstance(linear, torch.nn.Linear)
    assert (linear.in_features, linear.out_features, linear.bias) == (64, 128, None)
    assert list(linear.named_parameters()) == []
    assert (linear.weight.shape, linear.weight.dtype, linear.weight.device.type) == ((128, 64), torch.bfloat16, "cpu")
    with pytest.raises(TypeError, match="Keep the LoRA adapter beside the model"):
        linear.weight.data += 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_compute_the_same_and_are_moved_alone(copied):
    codes, rows, scales, _ = random_matrix(128, 64, torch.bfloat16)
    linear = linear_from(codes, scales, torch.bfloat16)
    other = copied(linear)
    x = torch.randn(3, 64).bfloat16()
    assert torch.equal(other(x), linear(x))
    assert other.backend is linear.backend
    other.float()
    assert linear.compute_dtype == torch.bfloat16
    assert torch.equal(other.codes_and_scales()[0], rows)


def test_preparing_a_model_takes_each_layer_as_it_is():
    codes, _, scales, _ = random_matrix(64, 64, torch.bfloat16)
    model = torch.nn.ModuleDict({"a": stored_linear(codes, scales), "b": torch.nn.Sequential(torch.nn.Linear(2, 2))})
    model["b"].append(stored_linear(codes, scales))
    model.eval()
    prepare_linears(model, torch.float32)
    assert not any(isinstance(module, AwqLinear) for module in model.modules())
    assert not any(module.training for module in model.modules())
    assert torch.equal(model["a"](torch.ones(1, 64)), model["b"][1](torch.ones(1, 64)))


def test_asymmetric_zeros_are_refused():
    with pytest.raises(ValueError, match="not symmetric"):
        AwqLinear(64, 32, torch.bfloat16, torch.float32).prepare(torch.float32)


@pytest.mark.parametrize("shape", [(48, 32), (32, 36)])
def test_shapes_that_cannot_be_packed_are_refused(shape):
    with pytest.raises(ValueError, match="divisible by 32"):
        AwqLinear(*shape, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_load_state_dict_takes_what_state_dict_gives(compute_dtype):
    ours, theirs = (linear_from(*random_matrix(128, 64, torch.bfloat16, seed)[::2], compute_dtype) for seed in (0, 1))
    ours.load_state_dict(theirs.state_dict())
    for mine, its in zip(ours.codes_and_scales(), theirs.codes_and_scales(), strict=True):
        assert torch.equal(mine, its)
    ours.load_state_dict({}, strict=False)  # as an adapter's


def test_a_module_takes_over_the_hook_of_the_one_before_it():
    """Where a model is spread over devices, accelerate's hooks bring what a module gets to the device that it is on."""
    codes, _, scales, _ = random_matrix(128, 64, torch.bfloat16)
    model = torch.nn.Sequential(stored_linear(codes, scales))
    add_hook_to_module(model[0], AlignDevicesHook(execution_device="cpu"))
    prepare_linears(model, torch.float32)
    assert isinstance(model[0], Int4Linear)
    assert isinstance(model[0]._hf_hook, AlignDevicesHook)
    assert model(torch.ones(1, 64)).shape == (1, 128)


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("disk_dtype", [torch.float32, torch.bfloat16])
def test_an_embedding_from_the_plain_weight_is_saved_as_it_was(scale_dtype, compute_dtype, disk_dtype):
    _, rows, scales, weight = random_matrix(192, 64, scale_dtype)
    stored = weight.to(disk_dtype)
    embedding = embedding_from_plain(stored.to(compute_dtype), scales, disk_dtype, embed_scale=8.0)
    codes_back, scales_back = embedding.codes_and_scales()
    assert torch.equal(codes_back, rows)
    assert torch.equal(scales_back, scales)
    ids = torch.tensor([[0, 1, 63], [64, 100, 191]])
    assert torch.equal(embedding(ids), weight[ids].to(compute_dtype) * 8.0)
    x = torch.randn(2, 64).to(compute_dtype)
    atol = 1e-6 if compute_dtype.itemsize == 4 else 2e-2
    torch.testing.assert_close(Int4LMHead(embedding)(x).float(), x.float() @ weight.T, rtol=2e-2, atol=atol)
    (saved,) = embedding.state_dict().values()
    assert torch.equal(saved.to(disk_dtype), stored)


def test_a_packed_embedding_is_saved_as_it_was():
    _, rows, scales, weight = random_matrix(192, 64, torch.float16)
    stored = PackedEmbedding(192, 64, 8.0, torch.float16)
    stored.qweight, stored.scales = rows.view(torch.int32), scales
    embedding = stored.prepare(torch.bfloat16)
    assert torch.equal(embedding(torch.tensor([0, 191])), weight[[0, 191]].bfloat16() * 8)
    saved = embedding.state_dict()
    assert saved.keys() == stored.state_dict().keys()
    assert torch.equal(saved["qweight"], stored.qweight)
    assert torch.equal(saved["scales"], scales)


def test_embedding_scale_is_rounded_to_the_model_dtype():
    _, rows, scales, weight = random_matrix(64, 64, torch.bfloat16)
    embedding = embedding_from(rows, scales, torch.bfloat16, 1152**0.5)
    ids = torch.arange(64)
    assert torch.equal(embedding(ids), weight.bfloat16() * torch.tensor(1152**0.5).bfloat16())
    assert torch.equal(embedding.float()(ids), weight * torch.tensor(1152**0.5))


def test_a_copied_head_reads_the_copied_embedding():
    _, _, scales, weight = random_matrix(64, 64, torch.bfloat16)
    embedding = embedding_from_plain(weight, scales, torch.float32, embed_scale=8.0)
    both = copy.deepcopy(torch.nn.ModuleDict({"embedding": embedding, "head": Int4LMHead(embedding)}))
    assert both["head"]._embedding[0] is both["embedding"]
