"""What is trained is said; what other tools do to a model before they train it is borne."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests.adapter_methods import adapter_methods


def load(path, **kwargs):
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, **kwargs)


@pytest.fixture
def warnings(monkeypatch) -> list[str]:
    heard = []
    monkeypatch.setattr("logging.Logger.warning_once", lambda self, message: heard.append(message), raising=False)
    return heard


def test_training_what_is_not_int4_is_said(plain_repo, warnings):
    model = load(plain_repo.path)
    assert not warnings
    model.train()
    floats = sum(parameter.numel() for parameter in model.parameters())
    assert len(warnings) == 1
    assert f"its {floats:,} parameters that are not int4" in warnings[0]


def test_nothing_is_said_of_adapters_or_of_a_frozen_model(plain_repo, warnings):
    get_peft_model(load(plain_repo.path), LoraConfig(target_modules=["q_proj"])).train()
    load(plain_repo.path).requires_grad_(False).train()
    assert not warnings


@adapter_methods
def test_nothing_is_said_of_adapters_of_transformers(plain_repo, warnings):
    model = load(plain_repo.path)
    model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    model.train()
    assert not warnings


def test_an_embedding_of_fewer_rows_keeps_them_and_says_so(text_repo, warnings):
    """lm-eval asks for as many rows as the tokenizer has tokens, where an adapter is given."""
    model = load(text_repo.path)
    assert model.resize_token_embeddings(300) is model.get_input_embeddings()
    assert model(torch.tensor([[5]])).logits.shape[-1] == 320
    assert "keeps its 320 rows; 300 were asked for" in warnings[0]
    assert model.resize_token_embeddings(pad_to_multiple_of=64) is model.get_input_embeddings()
    with pytest.raises(TypeError, match=r"320 rows and cannot grow to 384: load with int4_embedding=False"):
        model.resize_token_embeddings(330, pad_to_multiple_of=64)
