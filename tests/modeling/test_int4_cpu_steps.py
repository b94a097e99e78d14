"""One token through all layers without calling them as modules: where that is done, and that nothing is lost by it."""

import pytest
import torch
from gemma3_int4.int4_cpu_library import library
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, DynamicCache

from tests.modeling.tiny_repo import build, text_config

pytestmark = pytest.mark.skipif(library() is None, reason="no AVX2 or no C compiler here")
IDS = torch.arange(3, 43)[None] * 7 % 250  # 40 tokens, more than the sliding window of 16
NEXT = [11, 47, 5, 200]


@pytest.fixture
def model(text_repo):
    return AutoModelForCausalLM.from_pretrained(text_repo.path, trust_remote_code=True)


@pytest.fixture
def direct(model, monkeypatch):
    return counted(model, monkeypatch)


def counted(model, monkeypatch) -> list[bool]:
    """A list that grows with every call of the language model, by whether it goes from layer to layer itself."""
    text_model = type(model.get_decoder())
    ways, stages = [], text_model._stages

    def noting(self, kwargs):
        found = stages(self, kwargs)
        ways.append(found is not None)
        return found

    monkeypatch.setattr(text_model, "_stages", noting)
    return ways


@torch.no_grad()
def steps(model, cache=None, rows: int = 1, **options) -> torch.Tensor:
    """Logits after each token that follows the prompt, [tokens, rows, V]."""
    cache = DynamicCache(config=model.config.get_text_config()) if cache is None else cache
    model(IDS.expand(rows, -1), past_key_values=cache)
    tokens = [torch.full((rows, 1), token) for token in NEXT]
    return torch.stack([model(token, past_key_values=cache, **options).logits[:, -1] for token in tokens])


def by_module(model, monkeypatch, *args, **options) -> torch.Tensor:
    with monkeypatch.context() as patched:
        patched.setattr(type(model.get_decoder()), "_stages", lambda *_: None)
        return steps(model, *args, **options)


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_a_step_is_to_the_bit_what_the_modules_compute(model, direct, rows, monkeypatch):
    found = steps(model, rows=rows)
    assert direct == [False] + [True] * len(NEXT)
    assert torch.equal(found, by_module(model, monkeypatch, rows=rows))


def test_generate_takes_it_for_all_tokens_but_the_first(model, direct):
    model.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert direct == [False] + [True] * 5
    direct.clear()
    model.generate(IDS.expand(2, -1), max_new_tokens=6, do_sample=True, eos_token_id=None)
    assert direct == [False] + [True] * 5


def test_generate_of_a_model_with_pictures_takes_it(picture_repo, monkeypatch):
    model = AutoModelForImageTextToText.from_pretrained(picture_repo.path, trust_remote_code=True)
    direct = counted(model, monkeypatch)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    padded = torch.ones(2, 40, dtype=torch.long)
    padded[1, :7] = 0
    for given in ({}, {"token_type_ids": torch.zeros(2, 40).long()}, {"attention_mask": padded}):
        inputs = {"input_ids": IDS.expand(2, -1)} | given
        direct.clear()
        found = model.generate(**inputs, **options)
        assert direct == [False] + [True] * 5
        with monkeypatch.context() as patched:
            patched.setattr(type(model.get_decoder()), "_stages", lambda *_: None)
            assert torch.equal(model.generate(**inputs, **options), found)


def test_padding_is_masked(model, direct):
    ids, mask = torch.cat([torch.zeros(1, 5, dtype=torch.long), IDS], dim=1), torch.ones(1, 45, dtype=torch.long)
    mask[0, :5] = 0
    alone = model.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None)
    direct.clear()
    padded = model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert not any(direct)
    assert torch.equal(padded[0, 5:], alone[0])


def test_a_cache_that_keeps_more_than_the_window_is_masked(model, direct, monkeypatch):
    found = steps(model, DynamicCache())
    assert not any(direct)
    expected = steps(model)
    assert (found - expected).norm() / expected.norm() < 0.02


@torch.no_grad()
def test_what_a_step_does_not_see_has_no_weight_at_all(model):
    """The least of weights would show with the largest of values."""
    logits = []
    for beyond in (0, torch.finfo(torch.bfloat16).max):
        cache = DynamicCache()  # which keeps what is beyond the window of 16
        model(IDS, past_key_values=cache)
        windows = [i for i, kind in enumerate(model.config.layer_types) if kind == "sliding_attention"]
        assert windows
        for i in windows:
            cache.layers[i].values[:, :, :20] = beyond
        logits.append(model(torch.tensor([[NEXT[0]]]), past_key_values=cache).logits)
    assert torch.equal(*logits)


def test_who_asks_for_more_gets_it(model, direct, monkeypatch):
    seen = []
    expected = steps(model)
    assert torch.equal(steps(model, return_dict=True), expected)
    assert direct == ([False] + [True] * len(NEXT)) * 2
    direct.clear()
    handle = model.get_decoder().layers[3].register_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(steps(model), expected)
    handle.remove()
    assert len(seen) == 1 + len(NEXT)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    assert torch.equal(steps(model), expected)
    handle.remove()
    for asked in ("output_hidden_states", "output_attentions"):  # transformers' own hooks, in the layers too
        found = steps(model, **{asked: True})
        assert (found - expected).norm() / expected.norm() < 0.02
    assert not any(direct)


def test_what_is_not_understood_is_left_to_transformers(model, direct):
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(IDS, past_key_values=cache)
        new = {"input_ids": torch.tensor([[5]]), "inputs_embeds": torch.zeros(1, 1, 128).bfloat16()}
        with pytest.raises(ValueError, match="exactly one"):
            model.model(**new, past_key_values=cache)
        model(torch.tensor([[5]]), attention_mask=torch.ones(1, 41).long(), past_key_values=cache)
        assert direct == [False, False, True]
        model(torch.tensor([[5]]), attention_mask=torch.tensor([[0] + [1] * 41]), past_key_values=cache)
        model.get_decoder().layers[2].forward = model.get_decoder().layers[2].forward  # as accelerate's hooks do
        model(torch.tensor([[5]]), past_key_values=cache)
    assert direct[3:] == [False, False]


def test_embeddings_and_positions_in_place_of_ids(model, direct):
    with torch.no_grad():
        results = []
        for embedded in (False, True):
            cache = DynamicCache(config=model.config)
            model(IDS, past_key_values=cache)
            token = torch.tensor([[5]])
            new = {"inputs_embeds": model.model.embed_tokens(token)} if embedded else {"input_ids": token}
            before = {name: tensor.clone() for name, tensor in new.items()}
            results += [model(**new, past_key_values=cache, position_ids=torch.tensor([[40]])).logits]
            assert all(torch.equal(before[name], tensor) for name, tensor in new.items())
    assert direct == [False, True] * 2
    assert torch.equal(*results)


def test_a_model_without_windows(tmp_path, monkeypatch):
    repo = build(tmp_path, text_config(layer_types=["full_attention"] * 6))
    model = AutoModelForCausalLM.from_pretrained(repo.path, trust_remote_code=True)
    direct = counted(model, monkeypatch)
    found = steps(model, DynamicCache())
    assert direct == [False] + [True] * len(NEXT)
    assert torch.equal(found, by_module(model, monkeypatch, DynamicCache()))
