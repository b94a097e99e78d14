"""Long prompts read in chunks: the logits and the cache of reading all at once, and memory that does not grow."""

import sys

import pytest
import torch
from gemma3_int4 import int4_memory
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from tests.modeling.test_attention import FIRST_TURN, conversation
from tests.modeling.test_running import ids
from tests.modeling.tiny_repo import build, multimodal_config, text_config


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    repo = build(tmp_path_factory.mktemp("text"), text_config())
    return AutoModelForCausalLM.from_pretrained(repo.path, trust_remote_code=True, dtype=torch.float32), repo.reference


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    repo = build(tmp_path_factory.mktemp("pictures"), multimodal_config())
    return AutoModelForCausalLM.from_pretrained(repo.path, trust_remote_code=True, dtype=torch.float32), repo.reference


def prefill_module(model):
    names = [each.__module__ for each in type(model.get_decoder()).__mro__]
    return sys.modules[next(name for name in names if name.endswith("int4_prefill"))]


@pytest.fixture
def in_chunks(monkeypatch):
    """Lets a model read so many tokens at a time; gives the list of chunks that it reads."""

    hooks = []

    def cut(model, tokens: int) -> list[int]:
        module = prefill_module(model)
        monkeypatch.setattr(module, "CPU_TOKENS", tokens)
        monkeypatch.setattr(module, "FEWEST_TOKENS", 1)
        chunks, layer = [], model.get_decoder().layers[0]
        hooks.append(layer.register_forward_pre_hook(lambda module, args: chunks.append(args[0].shape[1])))
        return chunks

    yield cut
    for hook in hooks:
        hook.remove()


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 7, 16, 39])
@pytest.mark.parametrize("cache", [None, DynamicCache, StaticCache])
def test_a_text(text, in_chunks, tokens, cache):
    model, reference = text
    chunks = in_chunks(model, tokens)
    room = {"max_cache_len": 64} if cache is StaticCache else {}
    given = {"past_key_values": cache(config=model.config, **room)} if cache else {}
    found = model(ids(1, 40), **given)
    assert chunks == [tokens] * (40 // tokens) + ([40 % tokens] if 40 % tokens else [])
    assert (found.logits - reference(ids(1, 40)).logits).abs().max() < 1e-4
    again = model(ids(1, 3, 1), past_key_values=found.past_key_values).logits
    expected = reference(torch.cat([ids(1, 40), ids(1, 3, 1)], 1)).logits[:, 40:]
    assert (again - expected).abs().max() < 1e-4


@torch.no_grad()
def test_without_a_cache_none_comes_out(text, in_chunks):
    model, reference = text
    chunks = in_chunks(model, 16)
    found = model(ids(1, 40), use_cache=False)
    assert found.past_key_values is None
    assert chunks == [16, 16, 8]
    assert (found.logits - reference(ids(1, 40)).logits).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 5, 16, 30])
def test_no_chunk_ends_within_a_picture(pictures, in_chunks, tokens):
    model, reference = pictures
    chunks = in_chunks(model, tokens)
    inputs = conversation()
    found = model(**inputs).logits
    assert len(chunks) > 1
    assert sum(chunks) == inputs["input_ids"].shape[1]
    pictured = inputs["token_type_ids"][0].tolist()
    for edge in torch.tensor(chunks).cumsum(0).tolist()[:-1]:
        assert not (pictured[edge - 1] and pictured[edge])
    assert (found - reference(**inputs).logits).abs().max() < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
def test_generation_over_turns_and_paddings(pictures, in_chunks, kind):
    model, reference = pictures
    chunks = in_chunks(model, 8)
    inputs = conversation()
    pixels = inputs.pop("pixel_values")
    room = {"max_cache_len": 96} if kind is StaticCache else {}
    cache = kind(config=model.config.get_text_config(), **room)
    options = {"past_key_values": cache, "max_new_tokens": 1, "do_sample": False}
    model.generate(**{name: x[:, :FIRST_TURN] for name, x in inputs.items()}, pixel_values=pixels[:1], **options)
    assert len(chunks) > 1
    options |= {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    found = model.generate(**inputs, pixel_values=pixels[1:], **options)
    options["past_key_values"] = None
    expected = reference.generate(**inputs, pixel_values=pixels, **options)
    assert torch.equal(found.sequences, expected.sequences)
    assert max((a - b).abs().max() for a, b in zip(found.logits, expected.logits, strict=True)) < 1e-4


@torch.no_grad()
def test_a_padded_batch(text, in_chunks):
    model, reference = text
    chunks = in_chunks(model, 24)  # 12 of each
    prompt, mask = ids(2, 40), torch.ones(2, 40, dtype=torch.long)
    mask[1, :17] = 0
    options = {"max_new_tokens": 8, "do_sample": False}
    found = model.generate(prompt, attention_mask=mask, **options)
    assert chunks[:4] == [12, 12, 12, 4]
    assert torch.equal(found, reference.generate(prompt, attention_mask=mask, **options))


def test_what_is_asked_of_every_token_is_not_cut(text, in_chunks):
    model, _ = text
    chunks = in_chunks(model, 8)
    with torch.no_grad():
        states = model(ids(1, 40), output_hidden_states=True).hidden_states
        assert states[-1].shape[1] == 40
    model(ids(1, 40), labels=ids(1, 40))
    assert chunks == [40, 40]


@torch.no_grad()
def test_the_cache_is_written_in_place(text, in_chunks, monkeypatch):
    """From the first chunk on there is room for the whole prompt; a copy and a crop are what they were."""
    model, _ = text
    in_chunks(model, 8)
    cache = DynamicCache(config=model.config)
    places = set()
    layer = model.get_decoder().layers[5]
    hook = layer.register_forward_hook(lambda *_: places.add(cache.layers[5].keys.data_ptr()))
    model(ids(1, 40), past_key_values=cache)
    hook.remove()
    assert len(places) == 1
    assert cache.layers[5].keys.shape[2] == 40
    assert "update" not in vars(cache.layers[5])
    cache.layers[5].crop(-8)
    keys, _ = cache.layers[5].update(*torch.zeros(2, 1, 2, 1, 32), 5)
    assert keys.shape[2] == 33


@torch.no_grad()
def test_too_long_a_prompt_is_refused_before_it_is_read(text, in_chunks, monkeypatch):
    model, _ = text
    chunks = in_chunks(model, 8)
    memory = sys.modules[prefill_module(model).__name__.replace("int4_prefill", "int4_memory")]
    each = int4_memory.prompt_bytes(model.config, 1, 1, torch.float32)
    assert each == (2 * 2 * 32 + 2 * 128) * 4
    at_once = int4_memory.chunk_bytes(model.config, 8)
    monkeypatch.setattr(memory, "bytes_available", lambda device: 30 * each + at_once)
    with pytest.raises(MemoryError, match=r"40 tokens takes .* What would fit: 30 tokens"):
        model(ids(1, 40))
    assert chunks == []
