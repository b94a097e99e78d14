"""The CPU kernel of attention: what float32 attention gives, to the rounding of bfloat16."""

import pytest
import torch
from gemma3_int4 import int4_attention, int4_cpu_attention
from gemma3_int4.int4_cpu_hardware import INSTRUCTION_SETS
from gemma3_int4.int4_masks import Rule
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.modeling.hardware import cpu_with, only
from tests.modeling.test_attention import eager, random_inputs

DIMS = [256, 128, 72, 64, 32]  # the language models', the tower's, the tests'


@pytest.fixture(params=INSTRUCTION_SETS)
def kernel(request):
    with only(request.param, "gemma3_int4"):
        yield int4_cpu_attention


def assert_close(found, query, key, value, mask, scaling, rounded=1e-6):
    """Weights and results are rounded to bfloat16, each to one part in 256; all sums are float32."""
    expected = eager(query.float(), key.float(), value.float(), mask, scaling)
    magnitude = eager(query.float(), key.float(), value.float().abs(), mask, scaling)
    assert found.dtype == torch.bfloat16
    assert ((found.float() - expected).abs() <= magnitude / 128 + rounded).all()


@st.composite
def rules(draw):
    """Stretches of any kind, as no model has them either, and padding in between."""
    batch, queries, keys = draw(st.integers(1, 2)), draw(st.integers(1, 150)), draw(st.integers(1, 200))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shape = draw(st.sampled_from([1, batch])), queries
    places = torch.randint(0, keys + 1, (2, *shape), generator=generator, dtype=torch.int32).sort(0).values
    seen = torch.rand(batch, keys, generator=generator) > 0.3 if draw(st.booleans()) else None
    return batch, Rule(places[0].contiguous(), places[1].contiguous(), seen, start=0, offset=0, key_count=keys)


@settings(max_examples=40, deadline=None)
@given(rules(), st.sampled_from(DIMS), st.sampled_from([(1, 1), (4, 1), (8, 4), (6, 2)]))
@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
def test_any_rule(instruction_set, rule, dim, heads):
    batch, rule = rule
    with only(instruction_set, "gemma3_int4"):
        shape = {"heads": heads[0], "key_heads": heads[1], "size": dim, "dtype": torch.bfloat16}
        inputs = random_inputs(batch, rule.query_count, rule.key_count, **shape)
        assert int4_cpu_attention.why_not(*inputs, rule) is None
        assert_close(int4_cpu_attention.attend(*inputs, rule, 0.1), *inputs, rule.dense(), 0.1)


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("length", [1, 64, 65, 500])
def test_a_square(kernel, dim, length):
    inputs = random_inputs(2, length, length, heads=2, key_heads=2, size=dim, dtype=torch.bfloat16)
    found = kernel.attend(*inputs, None, None)
    assert_close(found, *inputs, torch.ones(1, 1, length, length, dtype=torch.bool), dim**-0.5)


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (4, 2)])
def test_a_square_of_more_queries_than_keys_in_parts_of_a_head(kernel, heads, key_heads):
    """And of views, with scores far apart of which the highest come last.

    In fixed point scores are rounded, by 2^-15 of what they may be, and values, by 2^-10 of the mean of a column.
    """
    shape = {"heads": heads, "key_heads": key_heads, "size": 72}
    query, key, value = (x.transpose(1, 2).contiguous() for x in random_inputs(1, 150, 100, **shape))
    query, key = query * 2, key * torch.linspace(0, 3, 100).view(1, 100, 1, 1)
    value[:, 40:50] *= 8
    inputs = [x.bfloat16().transpose(1, 2) for x in (query, key, value)]
    mask, average = torch.ones(1, 1, 150, 100, dtype=torch.bool), inputs[2].float().abs().mean(2).max()
    assert_close(kernel.attend(*inputs, None, 0.5), *inputs, mask, 0.5, rounded=average * 2**-10)


def test_a_square_of_sums_as_large_as_they_get(kernel):
    """Scores that are all the same, and values that are; and keys and queries that are each other's multiples."""
    for query, key in ((0.0, 1.0), (1.0, 1.0), (1e-3, -300.0)):
        inputs = [torch.full((1, 1, 200, 256), number).bfloat16() for number in (query, key, -3.0)]
        found = kernel.attend(*inputs, None, 1.0)
        assert ((found.float() + 3).abs() <= 3 / 128).all()


def test_what_is_not_finite_in_a_square_is_not_hidden(kernel):
    shape = {"heads": 2, "key_heads": 2, "size": 72, "dtype": torch.bfloat16}
    query, key, value = random_inputs(1, 90, 90, **shape)
    expected = kernel.attend(query, key, value, None, 0.1)
    query[0, 0, 33, 71], value[0, 1, 80, 5] = torch.nan, torch.inf
    found = kernel.attend(query, key, value, None, 0.1)
    others = torch.ones_like(found, dtype=torch.bool)
    others[0, 33, 0] = others[0, :, 1, 5] = False
    assert torch.equal(found[others], expected[others])
    assert not found[~others].isfinite().any()


def test_scores_far_apart_and_views(kernel):
    """The highest score comes last, with each block higher; and heads lie as projections leave them."""
    query, key, value = (x.transpose(1, 2).contiguous() for x in random_inputs(1, 70, 300, size=64))
    query, key = query * 30, key * torch.linspace(0, 30, 300).view(1, 300, 1, 1)
    inputs = [x.bfloat16().transpose(1, 2) for x in (query, key, value)]
    end = torch.arange(231, 301, dtype=torch.int32)[None]
    rule = Rule(torch.zeros_like(end), end, None, start=0, offset=0, key_count=300)
    assert_close(kernel.attend(*inputs, rule, 1.0), *inputs, rule.dense(), 1.0)


def test_what_is_not_seen_has_no_weight_at_all(kernel):
    """The least of weights would show with the largest of values; with small ones sums would be denormal, and slow."""
    query, key, value = random_inputs(1, 70, 300, size=64, dtype=torch.bfloat16)
    end = torch.arange(231, 301, dtype=torch.int32)[None]
    rule = Rule((end - 200).clamp(min=0), end, None, start=0, offset=0, key_count=300)
    expected = kernel.attend(query, key, value, rule, 0.1)
    value[:, :, :66] = torch.finfo(torch.bfloat16).max
    assert torch.equal(kernel.attend(query, key, value, rule, 0.1)[:, 35:], expected[:, 35:])


def test_what_it_cannot_compute_it_is_not_asked_for(kernel):
    inputs = random_inputs(1, 8, 8, size=64, dtype=torch.bfloat16)
    assert kernel.why_not(*inputs, None) is None
    assert kernel.why_not(*(x.float() for x in inputs), None)
    assert kernel.why_not(inputs[0].requires_grad_(), *inputs[1:], None)
    assert kernel.why_not(*random_inputs(1, 8, 8, size=20, dtype=torch.bfloat16), None)
    with cpu_with("gemma3_int4", amx=True):
        assert kernel.why_not(*(x.detach() for x in inputs), None)


def test_a_causal_model_without_a_mask_stays_causal(kernel):
    query, key, value = random_inputs(1, 9, 9, size=64, dtype=torch.bfloat16)
    for causal in (True, False):
        module = torch.nn.Module()
        module.is_causal, module.num_key_value_groups = causal, 2
        found, _ = int4_attention.attention(module, query, key, value, None, scaling=0.1)
        mask = torch.ones(9, 9, dtype=torch.bool)
        assert_close(found, query, key, value, mask.tril() if causal else mask, 0.1)
