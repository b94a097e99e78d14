"""Attention in blocks: what eager attention computes, whatever is seen; and models that use it."""

import types

import pytest
import torch
from gemma3_int4 import int4_attention
from hypothesis import given
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

from tests.modeling.test_masks import EXAMPLES, masks, prompts
from tests.modeling.test_running import ids
from tests.modeling.tiny_repo import build, multimodal_config

OURS = int4_attention.IMPLEMENTATION
PICTURE = [300, 320, 320, 320, 320, 301]  # as `multimodal_config` has it


def eager(query, key, value, mask, scaling):
    """The definition. [B, Q, H, D]; a query that sees nothing gets nothing."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1).masked_fill(~mask, 0)
    return (weights @ value).transpose(1, 2)


def random_inputs(batch, queries, keys, *, heads=4, key_heads=2, size=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(queries * 1000 + keys)
    shapes = (batch, heads, queries, size), (batch, key_heads, keys, size), (batch, key_heads, keys, size)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@EXAMPLES
@given(prompts())
def test_it_equals_eager_attention(prompt):
    rules = masks(OURS, **prompt)
    for kind, mask in masks("eager", **prompt).items():
        inputs = random_inputs(prompt["batch"], prompt["queries"], rules[kind].key_count)
        expected = eager(*inputs, mask == 0, 0.3)
        for rows in (1, 3, 128):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(int4_attention, "CPU_ROWS", rows)
                attended, weights = int4_attention.attention(None, *inputs, rules[kind], scaling=0.3)
            assert weights is None
            torch.testing.assert_close(attended, expected, rtol=0, atol=2e-6)


@EXAMPLES
@given(prompts())
def test_its_gradients_equal_those_of_eager_attention(prompt):
    rules = masks(OURS, **prompt)
    for kind, mask in masks("eager", **prompt).items():
        inputs = random_inputs(prompt["batch"], prompt["queries"], rules[kind].key_count)
        found, expected = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(int4_attention, "CPU_ROWS", 3)
            attended, _ = int4_attention.attention(None, *found, rules[kind], scaling=0.3)
            attended.square().sum().backward()
        eager(*expected, mask == 0, 0.3).square().sum().backward()
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_dropout_drops():
    rule = masks(OURS, batch=1, window=4, queries=8, cache=None, mask=None, types=None)["full_attention"]
    query, key, value = random_inputs(1, 8, 8)
    value = torch.ones_like(value).requires_grad_()
    torch.manual_seed(0)
    attended, _ = int4_attention.attention(None, query, key, value, rule, dropout=0.5, scaling=0.3)
    assert (attended - 1).abs().mean() > 0.3
    assert 0.5 < attended.mean() < 1.5
    attended.sum().backward()
    assert (value.grad == 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_under_autocast_all_have_one_dtype(dtype):
    rule = masks(OURS, batch=1, window=4, queries=8, cache=None, mask=None, types=None)["sliding_attention"]
    query, key, value = random_inputs(1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attended, _ = int4_attention.attention(None, query.to(dtype), key, value.bfloat16(), rule, scaling=0.3)
    assert attended.dtype == torch.bfloat16


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A model for pictures in float32, and the float32 model that it stands for."""
    repo = build(tmp_path_factory.mktemp("pictures"), multimodal_config())
    model = AutoModelForCausalLM.from_pretrained(repo.path, trust_remote_code=True, dtype=torch.float32)
    return model, repo.reference


def conversation() -> dict[str, torch.Tensor]:
    """Two turns with a picture each, over blocks of every size that is tried; more tokens than the window of 16."""
    first = [2, *ids(1, 5, 1)[0].tolist(), *PICTURE, *ids(1, 9, 2)[0].tolist()]
    second = [*ids(1, 14, 3)[0].tolist(), *PICTURE, *ids(1, 6, 4)[0].tolist()]
    whole = torch.tensor([first + second]).clamp(max=320)
    return {
        "input_ids": whole,
        "attention_mask": torch.ones_like(whole),
        "token_type_ids": (whole == 320).long(),
        "pixel_values": torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(5)),
    }


FIRST_TURN = 21


def test_it_is_the_default_and_others_are_to_be_had(pictures):
    model, reference = pictures
    inputs = conversation()
    ours = model.config._attn_implementation
    assert ours.endswith("_blocks")
    assert ours == model.config.text_config._attn_implementation == model.config.vision_config._attn_implementation
    with torch.no_grad():
        expected = reference(**inputs).logits
        causal = reference(**inputs | {"token_type_ids": None}).logits
        assert (causal - expected).abs().max() > 1e-2  # the pictures' masks tell
        try:
            for implementation in (ours, "sdpa", "eager"):
                model.set_attn_implementation(implementation)
                assert (model(**inputs).logits - expected).abs().max() < 1e-4
        finally:
            model.set_attn_implementation(ours)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_another_is_asked_for_at_loading(text_repo, implementation):
    model = AutoModelForCausalLM.from_pretrained(
        text_repo.path, trust_remote_code=True, attn_implementation=implementation
    )
    assert model.config._attn_implementation == implementation


def test_attention_weights_come_from_eager(pictures, caplog):
    model, reference = pictures
    inputs = conversation()
    reference.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            found = model(**inputs, output_attentions=True)
            expected = reference(**inputs, output_attentions=True)
    finally:
        reference.set_attn_implementation("sdpa")
    for ours, theirs in zip(found.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert (found.logits - expected.logits).abs().max() < 1e-4


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
@pytest.mark.parametrize("chunk", [None, 7])
def test_a_picture_in_a_later_turn(pictures, kind, chunk):
    """Stock generation loses its mask with a static cache, and cuts it in two with `prefill_chunk_size`."""
    model, reference = pictures
    inputs = conversation()
    room = {"max_cache_len": 96} if kind is StaticCache else {}
    cache = kind(config=model.config.get_text_config(), **room)
    first = {name: value[:, :FIRST_TURN] for name, value in inputs.items() if name != "pixel_values"}
    options = {"past_key_values": cache, "max_new_tokens": 1, "do_sample": False, "prefill_chunk_size": chunk}
    model.generate(**first, pixel_values=inputs["pixel_values"][:1], **options)
    again = inputs | {"pixel_values": inputs["pixel_values"][1:]}
    found = model.generate(**again, **options, return_dict_in_generate=True, output_logits=True).logits[0]
    with torch.no_grad():
        expected = reference(**inputs).logits[:, -1]
    assert (found - expected).abs().max() < 1e-4


def test_token_types_of_the_new_tokens_alone(pictures):
    """Stock forwards then takes them for those of the first tokens."""
    model, reference = pictures
    inputs = conversation()
    pixels = inputs.pop("pixel_values")
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        expected = reference(**inputs, pixel_values=pixels).logits[:, FIRST_TURN:]
        for turn, part in enumerate((slice(0, FIRST_TURN), slice(FIRST_TURN, None))):
            given = {name: inputs[name][:, part] for name in ("input_ids", "token_type_ids")}
            given |= {"pixel_values": pixels[turn : turn + 1], "past_key_values": cache, "use_cache": True}
            logits = model(given.pop("input_ids"), **given).logits
    assert (logits - expected).abs().max() < 1e-4


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_a_padded_batch_with_pictures(pictures, padding_side):
    model, reference = pictures
    inputs = conversation()
    width, length = inputs["input_ids"].shape[1], FIRST_TURN
    pad = (width - length, 0) if padding_side == "left" else (0, width - length)
    batch = {
        name: torch.cat([inputs[name], torch.nn.functional.pad(inputs[name][:, :length], pad)])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    pixels = inputs["pixel_values"]
    with torch.no_grad():
        found = model(**batch, pixel_values=torch.cat([pixels, pixels[:1]])).logits
        whole = reference(**inputs).logits[0]
        alone = {name: inputs[name][:, :length] for name in ("input_ids", "token_type_ids")}
        short = reference(**alone, pixel_values=pixels[:1]).logits[0]
    if padding_side == "right":
        assert (found[1, :length] - short).abs().max() < 1e-4
        assert (found[0] - whole).abs().max() < 1e-4
    else:  # positions count padding, which moves every angle alike
        assert (found[1, -length:] - short).abs().max() < 1e-3
    assert found.isfinite().all()


def test_a_mask_of_four_dimensions(text_repo):
    """A user's own, taken as it is."""
    model = AutoModelForCausalLM.from_pretrained(text_repo.path, trust_remote_code=True, dtype=torch.float32)
    prompt = ids(2, 12)
    mask = torch.ones(12, 12, dtype=torch.bool).tril()
    mask[7:, 3] = False
    with torch.no_grad():
        for given in (mask, torch.where(mask, 0.0, torch.finfo(torch.float32).min)):
            given = given.expand(2, 1, 12, 12)
            expected = text_repo.reference(prompt, attention_mask=given).logits
            assert (model(prompt, attention_mask=given).logits - expected).abs().max() < 1e-4
        assert (expected - text_repo.reference(prompt).logits).abs().max() > 1e-2


def test_beams(text_repo):
    model = AutoModelForCausalLM.from_pretrained(text_repo.path, trust_remote_code=True, dtype=torch.float32)
    options = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False}
    expected = text_repo.reference.generate(ids(2, 24), **options)
    assert torch.equal(model.generate(ids(2, 24), **options), expected)


def test_a_picture_compiles_in_one_graph(pictures):
    model, reference = pictures
    inputs = conversation()
    with torch.no_grad():
        embeddings = reference(**inputs, output_hidden_states=True).hidden_states[0]
        inputs = {"inputs_embeds": embeddings, "token_type_ids": inputs["token_type_ids"]}
        compiled = torch.compile(model.forward, fullgraph=True, backend="eager")(**inputs).logits
        assert (compiled - reference(**inputs).logits).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["none", "shared", "of each head", "added"])
def test_a_single_query_in_a_graph_copies_no_key(kind):
    """Stock attention repeats keys and values for the heads that share them, there."""
    inputs = random_inputs(2, 1, 9, heads=8)
    mask = torch.rand(2, 8 if kind == "of each head" else 1, 1, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    mask[..., 0] = True
    expected = eager(*inputs, torch.ones_like(mask) if kind == "none" else mask, 0.3)
    given_mask = {"none": None, "added": torch.zeros(mask.shape).masked_fill(~mask, -1e30)}.get(kind, mask)
    graphs = []

    def record(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda *x: int4_attention.attention(None, *x, given_mask, scaling=0.3)[0], fullgraph=True, backend=record
    )
    torch.testing.assert_close(compiled(*inputs), expected, rtol=0, atol=2e-6)
    (graph,) = graphs
    called = [str(node.target) for node in graph.graph.nodes]
    assert any("scaled_dot_product_attention" in name for name in called)
    assert not any(word in name for name in called for word in ("expand", "repeat", "clone"))


def test_gradient_checkpointing_changes_no_gradient(text_repo):
    model = AutoModelForCausalLM.from_pretrained(text_repo.path, trust_remote_code=True, dtype=torch.float32)
    norm = model.model.layers[0].self_attn.q_norm.weight.requires_grad_()
    gradients = []
    for _ in range(2):
        model.train()(ids(2, 24), labels=ids(2, 24)).loss.backward()
        gradients.append(norm.grad.clone())
        norm.grad = None
        model.gradient_checkpointing_enable()
    torch.testing.assert_close(*gradients)


def test_a_gpu_is_not_asked_for_a_mask_and_shared_heads_at_once(monkeypatch):
    """It has no kernel for both but the one of squares. (The meta device stands for it.)"""
    asked = []

    def attend(query, key, value, *, enable_gqa, **_):
        asked.append((key.shape, value.shape, enable_gqa))
        return query

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    query, shared = torch.empty(1, 4, 6, 8, device="meta"), torch.empty(1, 2, 9, 8, device="meta")
    rule = types.SimpleNamespace(visible=lambda rows, keys: None)
    int4_attention._block(query, shared, shared, rule, slice(0, 6), slice(0, 9), None)
    assert asked == [((1, 4, 9, 8), (1, 4, 9, 8), False)]
