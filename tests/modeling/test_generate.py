"""The ways to generate that transformers offers give what they give for the dequantized model, in float32."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.modeling.tiny_repo import build, text_config

GREEDY = {"max_new_tokens": 24, "do_sample": False}
SMALLER = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}


def load(repo):
    return AutoModelForCausalLM.from_pretrained(repo.path, trust_remote_code=True, dtype=torch.float32)


@pytest.fixture(scope="module")
def draft(tmp_path_factory):
    """A smaller text model of other weights, with the vocabulary of the tiny text model."""
    return build(tmp_path_factory.mktemp("draft"), text_config(**SMALLER), seed=1)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 256, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def picture_inputs() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 256, (2, 40), generator=torch.Generator().manual_seed(0))
    ids[:, 3:9] = torch.tensor([300, 320, 320, 320, 320, 301])
    pixels = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return {"input_ids": ids, "token_type_ids": (ids == 320).long(), "pixel_values": pixels}


@pytest.mark.parametrize("drafts", [{"assistant_early_exit": 3}, {"prompt_lookup_num_tokens": 4}, {}])
def test_drafts_change_no_token(text_repo, draft, ids, drafts):
    """Of the model's own first layers, of the prompt, of a smaller model, of the model itself."""
    model, prompt = load(text_repo), ids[:1]
    expected = text_repo.reference.generate(prompt, **GREEDY)
    for assistant in [{}] if drafts else [{"assistant_model": load(draft)}, {"assistant_model": load(text_repo)}]:
        assert torch.equal(model.generate(prompt, **GREEDY, **drafts, **assistant), expected)


def test_a_draft_for_a_model_of_another_class(picture_repo, tmp_path):
    """A text model's tokens, for the text that a model with pictures goes on with."""
    drafts = build(tmp_path / "text", text_config(vocab_size=384, **SMALLER), seed=1)
    prompt = torch.randint(3, 256, (1, 24), generator=torch.Generator().manual_seed(0))
    expected = picture_repo.reference.generate(prompt, **GREEDY)
    assert torch.equal(load(picture_repo).generate(prompt, assistant_model=load(drafts), **GREEDY), expected)


def test_drafts_after_a_picture(picture_repo, picture_inputs):
    inputs = {name: tensor[:1] for name, tensor in picture_inputs.items()}
    model, expected = load(picture_repo), picture_repo.reference.generate(**inputs, **GREEDY)
    assert torch.equal(model.generate(**inputs, prompt_lookup_num_tokens=4, **GREEDY), expected)
    assert torch.equal(model.generate(**inputs, assistant_model=load(picture_repo), **GREEDY), expected)


def test_beams(text_repo, ids):
    expected = text_repo.reference.generate(ids, num_beams=3, **GREEDY)
    assert torch.equal(load(text_repo).generate(ids, num_beams=3, **GREEDY), expected)


def test_beams_after_a_picture(picture_repo, picture_inputs):
    expected = picture_repo.reference.generate(**picture_inputs, num_beams=3, **GREEDY)
    assert torch.equal(load(picture_repo).generate(**picture_inputs, num_beams=3, **GREEDY), expected)


def test_sampling_draws_the_same_tokens(text_repo, ids):
    drawn = []
    for model in (text_repo.reference, load(text_repo)):
        torch.manual_seed(0)
        drawn.append(model.generate(ids, max_new_tokens=24, do_sample=True, top_k=50, temperature=0.8))
    assert torch.equal(*drawn)


def test_embedded_tokens_in_place_of_ids(text_repo, ids):
    model = load(text_repo)
    embedded = model.get_input_embeddings()(ids)
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embedded).logits, model(ids).logits)
    expected = text_repo.reference.generate(ids, **GREEDY)[:, ids.shape[1] :]
    assert torch.equal(model.generate(inputs_embeds=embedded, **GREEDY), expected)


def test_embedded_pictures_in_place_of_pixels(picture_repo, picture_inputs):
    model, ids = load(picture_repo), picture_inputs["input_ids"]
    soft = ids == 320
    with torch.no_grad():
        features = model.get_image_features(picture_inputs["pixel_values"]).pooler_output
        embedded = model.get_input_embeddings()(ids.masked_fill(soft, 0)).masked_scatter(soft.unsqueeze(-1), features)
        found = model(inputs_embeds=embedded, token_type_ids=picture_inputs["token_type_ids"]).logits
        assert torch.equal(found, model(**picture_inputs).logits)
