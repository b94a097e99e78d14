"""Windows of a static cache as rings: what transformers' own windows give, which move all keys for each token."""

import shutil

import pytest
import torch
from gemma3_int4 import int4_cache
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache
from transformers.generation import CompileConfig

from tests.modeling.test_attention import FIRST_TURN, conversation
from tests.modeling.test_running import ids
from tests.modeling.tiny_repo import text_config

WINDOW, ROOM = 16, 96  # of the tiny models' sliding layers; of the caches here


@pytest.fixture(scope="module")
def model(text_repo):
    return AutoModelForCausalLM.from_pretrained(text_repo.path, trust_remote_code=True, dtype=torch.float32)


@pytest.fixture(scope="module")
def pictures(picture_repo):
    return AutoModelForCausalLM.from_pretrained(picture_repo.path, trust_remote_code=True, dtype=torch.float32)


def kinds(cache) -> set[str]:
    return {type(layer).__name__ for layer in cache.layers}


def padded(lengths: list[int]) -> dict[str, torch.Tensor]:
    """A batch of random rows, padded at the left."""
    width = max(lengths)
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return {"input_ids": ids(len(lengths), width).where(mask, 0), "attention_mask": mask.long()}


def assert_same(found, expected) -> None:
    assert torch.equal(found.sequences, expected.sequences)
    for ours, theirs in zip(found.logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


GREEDY = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True, "eos_token_id": None}


@pytest.mark.parametrize("lengths", [[1], [5], [15], [16], [17], [40], [3, 11], [9, 40], [16, 23]])
def test_tokens_and_logits(model, lengths):
    """Prompts within the window, at its edge and beyond; all of them go around it while decoding."""
    options = padded(lengths) | GREEDY | {"max_new_tokens": 2 * WINDOW + 3}
    found = model.generate(**options, cache_implementation="static")
    assert kinds(found.past_key_values) == {"RingLayer", "StaticLayer"}
    for cache in (StaticCache(config=model.config, max_cache_len=ROOM), DynamicCache(config=model.config)):
        assert_same(found, model.generate(**options, past_key_values=cache))
        assert "RingLayer" not in kinds(cache)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_other_attentions(model, implementation):
    ours = model.config._attn_implementation
    try:
        model.set_attn_implementation(implementation)
        options = padded([9, 20]) | GREEDY | {"max_new_tokens": 12}
        found = model.generate(**options, cache_implementation="static")
        assert "RingLayer" in kinds(found.past_key_values)
        assert_same(found, model.generate(**options))
    finally:
        model.set_attn_implementation(ours)


@torch.no_grad()
@pytest.mark.parametrize(
    "parts", [[1] * 40, [7, 1, 1, 12, 1, 19, 1], [16, 1, 16, 1, 17, 1], [40, 1, 1, 5], [15, 2, 30]]
)
@pytest.mark.parametrize("mask", ["none", "whole"])
def test_a_forward_with_any_number_of_tokens(model, parts, mask):
    """As a user calls it, with padding or with nothing said, and again after `reset`."""
    batch = padded([sum(parts), sum(parts) - 6])
    batch["attention_mask"] = batch["attention_mask"] if mask == "whole" else torch.ones_like(batch["input_ids"])
    expected = model(**batch).logits
    cache = model._prepare_static_cache("static", 2, ROOM, prefill_chunk_size=None, model_kwargs={})
    assert "RingLayer" in kinds(cache)
    for _ in range(2):
        found, end = [], 0
        for new in parts:
            begin, end = end, end + new
            seen = batch["attention_mask"][:, :end] if mask == "whole" else None
            found.append(model(batch["input_ids"][:, begin:end], attention_mask=seen, past_key_values=cache).logits)
        real = batch["attention_mask"].bool()
        torch.testing.assert_close(torch.cat(found, dim=1)[real], expected[real], rtol=0, atol=5e-5)
        assert int(cache.get_seq_length()) == end
        cache.reset()
        assert int(cache.get_seq_length()) == 0


@pytest.mark.parametrize("parts", [[5], [16], [17], [40], [5, 1, 1], [15, 1, 1, 20, 1], [1, 1, 3]])
def test_each_position_is_in_its_slot(parts):
    """And is there alone: a single token writes one slot, and what it sees is the memory itself."""
    config = text_config(num_hidden_layers=1, layer_types=["sliding_attention"])
    cache = StaticCache(config=config, max_cache_len=ROOM)
    int4_cache.use_rings(cache, ROOM)
    (layer,) = cache.layers
    keys = torch.randn(1, 2, sum(parts), 4)
    end = 0
    for new in parts:
        begin, end = end, end + new
        shown = layer.update(keys[:, :, begin:end], -keys[:, :, begin:end])
        first = max(begin - WINDOW + 1, 0)
        if new == 1:
            assert shown[0] is layer.keys
            assert shown[1] is layer.values
        else:
            assert torch.equal(shown[0], keys[:, :, first:end])
            assert torch.equal(shown[1], -keys[:, :, first:end])
        for position in range(max(end - WINDOW, 0), end):
            assert torch.equal(layer.keys[:, :, position % WINDOW], keys[:, :, position])
            assert torch.equal(layer.values[:, :, position % WINDOW], -keys[:, :, position])
        assert not layer.keys[:, :, end:].any()


def test_many_turns_with_one_cache(model):
    """Also after a turn of one token, and with a cache that `generate` has made."""
    text = padded([6, 9])
    options = GREEDY | {"max_new_tokens": 5}
    found = model.generate(**text, **options, cache_implementation="static", max_cache_len=ROOM)
    cache, other = found.past_key_values, StaticCache(config=model.config, max_cache_len=ROOM)
    assert "RingLayer" in kinds(cache)
    assert_same(found, model.generate(**text, **options, past_key_values=other))
    for turn, new in enumerate((3, 1, 20, 2)):
        said = torch.cat([found.sequences, ids(2, new, seed=turn)], dim=1)
        seen = torch.cat([text["attention_mask"], torch.ones(2, said.shape[1] - 9, dtype=torch.long)], dim=1)
        given = {"input_ids": said, "attention_mask": seen} | options
        found = model.generate(**given, past_key_values=cache)
        assert found.past_key_values is cache
        assert_same(found, model.generate(**given, past_key_values=other))
        assert_same(found, model.generate(**given))


def test_beams(model):
    options = padded([9, 24]) | {"num_beams": 3, "max_new_tokens": 20, "do_sample": False}
    assert torch.equal(model.generate(**options, cache_implementation="static"), model.generate(**options))


def test_pictures(pictures):
    """The prompt is longer than the window, and a picture lies across its edge."""
    inputs = conversation()
    assert inputs["input_ids"].shape[1] > FIRST_TURN > WINDOW
    options = GREEDY | {"max_new_tokens": WINDOW + 4}
    found = pictures.generate(**inputs, **options, cache_implementation="static")
    assert "RingLayer" in kinds(found.past_key_values)
    assert_same(found, pictures.generate(**inputs, **options))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_a_compiled_step_is_one_graph_that_moves_no_key(model):
    """Before the window is full and after: where Python counts tokens, torch.compile makes three of it."""
    graphs = []

    def record(graph, _):
        graphs.append(graph)
        return graph.forward

    compiling = CompileConfig(backend=record, fullgraph=True, mode=None)
    compiling._compile_all_devices = True
    options = padded([5, 9]) | GREEDY | {"max_new_tokens": WINDOW + 6}
    torch._dynamo.reset()
    model._compiled_call = None
    found = model.generate(**options, cache_implementation="static", compile_config=compiling)
    model._compiled_call = None
    assert_same(found, model.generate(**options))
    (graph,) = graphs
    called = [str(node.target) for node in graph.graph.nodes]
    assert "scaled_dot_product_attention" in str(called)
    assert not {"roll", "copy_", "clone"}.intersection(called)
