"""Rules of what each query sees: the same as transformers' own masks, whatever these are composed of."""

import pytest
import torch
from gemma3_int4 import int4_attention, int4_masks
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache, masking_utils
from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model, get_block_sequence_ids_for_mask

from tests.modeling.tiny_repo import text_config

CACHE = "cache" if "cache" in masking_utils.create_causal_mask.__annotations__ else "past_key_values"
EXAMPLES = settings(max_examples=60, deadline=None)


def config_of(window: int, implementation: str):
    config = text_config(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"])
    config.sliding_window, config._attn_implementation = window, implementation
    return config


def filled(kind: str | None, window: int, batch: int, past: int, room: int):
    """A cache in which so many tokens are."""
    if kind is None:
        return None
    config = config_of(window, "eager")
    cache = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=room)
    for layer in range(2):
        if past:
            cache.update(*torch.zeros(2, batch, 1, past, 4), layer)
    return cache


@st.composite
def prompts(draw):
    """Arguments from which masks are made: batch, window, cache, padding, pictures."""
    batch, window, queries = draw(st.integers(1, 3)), draw(st.integers(2, 9)), draw(st.integers(2, 24))
    kind = draw(st.sampled_from([None, "dynamic", "static"]))
    past = draw(st.integers(0, 20)) if kind else 0
    total = past + queries
    bits = st.lists(st.booleans(), min_size=total, max_size=total)
    padding = draw(st.sampled_from(["none", "left", "right", "anywhere"]))
    mask = None
    if padding == "anywhere":
        mask = torch.tensor([draw(bits) for _ in range(batch)])
    elif padding != "none":
        lengths = torch.tensor([[draw(st.integers(0, total))] for _ in range(batch)])
        places = torch.arange(total)[None]
        mask = places < lengths if padding == "right" else places >= total - lengths
    pictures = draw(st.booleans())
    types = torch.tensor([draw(bits) for _ in range(batch)]).long() if pictures else None
    cache = filled(kind, window, batch, past, total + draw(st.integers(0, 5)))
    return {"batch": batch, "window": window, "queries": queries, "cache": cache, "mask": mask, "types": types}


def masks(implementation: str, *, batch, window, queries, cache, mask, types, positions=None, **functions) -> dict:
    arguments = {
        "config": config_of(window, implementation),
        "inputs_embeds": torch.zeros(batch, queries, 0),
        "attention_mask": mask,
        CACHE: cache,
        "position_ids": positions,
    }
    if types is not None:
        ids = get_block_sequence_ids_for_mask(types)
        return create_masks_for_vision_model(**arguments, block_sequence_ids=ids)
    return {
        "full_attention": masking_utils.create_causal_mask(**arguments, **functions),
        "sliding_attention": masking_utils.create_sliding_window_causal_mask(**arguments, **functions),
    }


def assert_same(given: dict, **functions) -> dict:
    """Every rule, and each block of it, is what eager attention's mask allows; no more is looked at than need be."""
    rules = masks(int4_attention.IMPLEMENTATION, **given, **functions)
    for kind, mask in masks("eager", **given, **functions).items():
        expected, rule = mask == 0, rules[kind]
        assert isinstance(rule, int4_masks.Rule)
        assert torch.equal(rule.dense().expand_as(expected), expected), kind
        for rows in (1, 3, 128):
            together = torch.zeros_like(expected)
            for queries, keys in rule.blocks(rows):
                together[:, :, queries, keys] = rule.visible(queries, keys)
                needed = expected[:, 0, queries].any(0).any(0).nonzero()
                if rule.seen is None:
                    assert keys.stop - keys.start == (int(needed.max() - needed.min()) + 1 if len(needed) else 0)
            assert torch.equal(together, expected), kind
    return rules


@EXAMPLES
@given(prompts())
def test_paddings_windows_pictures_and_caches(prompt):
    for rule in assert_same(prompt).values():
        assert rule.asks is None  # it was read, and not asked for


@EXAMPLES
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(2, 6))
def test_sequences_packed_into_one(lengths, window):
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    prompt = {"batch": 1, "window": window, "queries": sum(lengths), "cache": None, "mask": None, "types": None}
    if sum(lengths) > 1:
        for rule in assert_same(prompt | {"positions": positions}).values():
            assert rule.asks is None


@EXAMPLES
@given(prompts(), st.integers(2, 5))
def test_functions_of_the_user(prompt, modulus):
    """What may allow anything is asked block by block."""
    prompt["types"] = None
    assert_same(prompt, or_mask_function=lambda b, h, q, k: (q + k) % modulus == 0)
    assert_same(prompt, and_mask_function=lambda b, h, q, k: (q - k) % modulus != 1)


def test_blocks_that_come_again_are_not_taken_for_one_stretch():
    ids = torch.tensor([[0, 0, -1, 0, 1, 1]])
    prompt = {"batch": 1, "window": 3, "queries": 6, "cache": None, "mask": None, "types": None}
    assert_same(prompt, block_sequence_ids=ids)


def test_a_single_query_gets_the_stock_mask():
    prompt = {"batch": 2, "window": 4, "queries": 1, "cache": None, "types": None}
    for mask in masks(int4_attention.IMPLEMENTATION, **prompt, mask=torch.tensor([[True], [False]])).values():
        assert mask.shape == (2, 1, 1, 1)


@EXAMPLES
@given(prompts(), st.data())
def test_a_part_of_the_queries(prompt, data):
    """As chunks of a prompt have it: fewer queries, and keys that begin elsewhere."""
    rules = masks(int4_attention.IMPLEMENTATION, **prompt)
    for rule in rules.values():
        begin = data.draw(st.integers(0, rule.query_count - 1))
        rows = slice(begin, data.draw(st.integers(begin + 1, rule.query_count)))
        whole = rule.dense()[:, :, rows]
        shift = data.draw(st.integers(-3, 3))
        count = data.draw(st.integers(1, rule.key_count + 3))
        part = rule.part(rows, rule.offset + shift, count)
        padded = torch.nn.functional.pad(whole, (3, 3))
        expected = torch.nn.functional.pad(padded[..., 3 + shift :], (0, 6 + count))[..., :count]
        if part is None:
            assert expected.sum() < whole.sum() or rule.seen is not None
        else:
            assert torch.equal(part.dense().expand_as(expected), expected)


@pytest.mark.parametrize("length", [1 << 12, 1 << 17])
def test_a_rule_grows_with_the_length_and_not_with_its_square(length):
    types = torch.zeros(1, length, dtype=torch.long)
    types[:, 100:356] = 1
    prompt = {"batch": 1, "window": 512, "queries": length, "cache": None, "types": types}
    for rule in masks(int4_attention.IMPLEMENTATION, **prompt, mask=torch.ones(1, length, dtype=torch.bool)).values():
        assert rule.first.numel() == rule.end.numel() == length
        assert rule.seen is None
