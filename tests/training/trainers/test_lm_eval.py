"""lm-eval with an adapter: it asks first for an embedding of as many rows as the tokenizer has tokens."""

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from demo.places import ROOT


@pytest.mark.parametrize("arguments", [{}, {"int4_embedding": False}], ids=["int4", "plain"])
def test_an_adapter_is_evaluated(tmp_path, arguments):
    model = AutoModelForCausalLM.from_pretrained(ROOT, trust_remote_code=True, **arguments)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path)
    evaluated = HFLM(pretrained=str(ROOT), trust_remote_code=True, peft=str(tmp_path), device="cpu", **arguments).model
    ids, tokens = torch.tensor([[2, 5, 6, 7]]), 1900
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
        found = evaluated(ids).logits
    assert torch.equal(found[..., :tokens], expected[..., :tokens])
