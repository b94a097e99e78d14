"""The `weight` of int4 modules: the values of the matrix, of as few rows as are asked for, and never a change."""

import pytest
import torch
from gemma3_int4.int4_layers import Int4LMHead
from gemma3_int4.int4_weight import Int4Weight

from tests.modeling.matrices import embedding_from, linear_from, random_matrix


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def matrix(request):
    codes, _, scales, weight = random_matrix(64, 128, torch.bfloat16)
    return linear_from(codes, scales, request.param), weight.to(request.param)


def test_shape_dtype_and_device_without_any_floats(matrix, monkeypatch):
    linear, expected = matrix
    monkeypatch.setattr(type(linear), "floats", lambda *args: pytest.fail("made floats"))
    weight = linear.weight
    assert (weight.shape, weight.dtype, weight.device) == (expected.shape, expected.dtype, expected.device)
    assert isinstance(weight.detach(), Int4Weight)
    assert isinstance(weight.data, Int4Weight)
    assert not weight.requires_grad


def test_a_slice_of_rows_makes_floats_of_these_alone(matrix, monkeypatch):
    linear, expected = matrix
    floats, asked = type(linear).floats, []
    monkeypatch.setattr(type(linear), "floats", lambda self, rows: asked.append(rows) or floats(self, rows))
    for rows in (slice(8, 24), slice(None, 8), slice(-8, None), slice(60, 999), slice(9, 3)):
        assert torch.equal(linear.weight[rows], expected[rows])
    assert max(rows.stop - rows.start for rows in asked) == 16


OPERATIONS = {
    "float": lambda w, x: w.float(),
    "columns": lambda w, x: w[:, 3:9],
    "every other row": lambda w, x: w[::2],
    "rows by index": lambda w, x: w[[5, 0, 5]],
    "one row": lambda w, x: w[3],
    "norm": lambda w, x: w.norm(dim=1),
    "linear": lambda w, x: torch.nn.functional.linear(x, w),
    "matmul": lambda w, x: x @ w.t(),
    "lookup": lambda w, x: torch.nn.functional.embedding(torch.tensor([3, 1]), w),
    "out": lambda w, x: torch.mm(x, w.t(), out=torch.empty(3, 64, dtype=x.dtype)),
    "sum": lambda w, x: w + 2 * w,
}


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_any_other_operation_has_the_value_of_the_floats(matrix, operation, inference):
    linear, expected = matrix
    with torch.inference_mode(inference):
        x = torch.arange(3 * 128).view(3, 128).to(expected.dtype) / 128
        assert torch.equal(operation(linear.weight, x), operation(expected, x))


def test_a_product_with_it_has_a_derivative_for_the_other_factor(matrix):
    linear, expected = matrix
    gradients = []
    for weight in (linear.weight, expected):
        x = torch.ones(3, 128, dtype=expected.dtype, requires_grad=True)
        torch.nn.functional.linear(x, weight).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


CHANGES = {
    "in place": lambda w: w.add_(1),
    "merging": lambda w: w.data.add_(1),
    "copy": lambda w: w.copy_(torch.zeros(64, 128)),
    "out": lambda w: torch.add(torch.zeros(64, 128), 1, out=w),
    "assignment": lambda w: setattr(w, "data", torch.zeros(64, 128)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_no_change(matrix, change):
    linear, expected = matrix
    with pytest.raises(TypeError, match="stored as int4 codes and stays as it is"):
        change(linear.weight)
    assert torch.equal(linear.weight.dequantize(), expected)


def test_no_training(matrix):
    linear, expected = matrix
    with pytest.raises(TypeError, match="int4 weights cannot be trained"):
        linear.requires_grad_()
    with pytest.raises(TypeError, match="int4 weights cannot be trained"):
        linear.weight.index_copy(0, torch.tensor([1]), expected[:1])


def test_the_heads_weight_is_the_embeddings():
    _, rows, scales, weight = random_matrix(64, 128, torch.bfloat16)
    embedding = embedding_from(rows, scales, torch.float32, embed_scale=11.0)
    head = Int4LMHead(embedding)
    assert torch.equal(head.weight.dequantize(), weight)
    assert torch.equal(embedding.weight.dequantize(), weight)  # not scaled by sqrt(D)
    assert head.bias is None
    with pytest.raises(TypeError, match="int4_embedding=False"):
        head.requires_grad_()
