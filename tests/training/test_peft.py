"""PEFT's methods on an int4 model: each trains, saves and loads again to equal logits, or is refused in a sentence."""

import copy

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.places import ROOT
from tests.adapter_methods import adapter_methods

LINEAR = {"target_modules": ["q_proj", "v_proj", "down_proj"], "task_type": "CAUSAL_LM"}
IDS = torch.randint(3, 256, (2, 24), generator=torch.Generator().manual_seed(0))
METHODS = {
    "LoRA": LoraConfig(r=4, **LINEAR),
    "rank-stabilized LoRA": LoraConfig(r=4, use_rslora=True, **LINEAR),
    "DoRA": LoraConfig(r=4, use_dora=True, **LINEAR),
    "LoRA, orthogonal start": LoraConfig(r=4, init_lora_weights="orthogonal", **LINEAR),
    "LoRA on all linear layers": LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    "LoRA on the head": LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM"),
    "LoRA on the embedding": LoraConfig(r=4, target_modules=["q_proj", "embed_tokens"], task_type="CAUSAL_LM"),
    "LoRA and a norm": LoraConfig(r=4, modules_to_save=["norm"], **LINEAR),
    "IA3": peft.IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LoHa": peft.LoHaConfig(r=4, **LINEAR),
    "LoKr": peft.LoKrConfig(r=4, **LINEAR),
    "OFT": peft.OFTConfig(r=0, oft_block_size=8, **LINEAR),
    "BOFT": peft.BOFTConfig(boft_block_size=8, **LINEAR),
    "VeRA": peft.VeraConfig(r=4, **LINEAR),
    "FourierFT": peft.FourierFTConfig(n_frequency=100, **LINEAR),
    "HRA": peft.HRAConfig(r=4, **LINEAR),
    "VB-LoRA": peft.VBLoRAConfig(r=4, num_vectors=16, vector_length=32, topk=2, **LINEAR),
    "MiSS": peft.MissConfig(r=4, **LINEAR),
    "RandLoRA": peft.RandLoraConfig(r=4, **LINEAR),
    "SHiRA": peft.ShiraConfig(r=4, **LINEAR),
    "C3A": peft.C3AConfig(block_size=32, **LINEAR),
    "norms": peft.LNTuningConfig(target_modules=["norm"], task_type="CAUSAL_LM"),
    "prompt tuning": peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "P-tuning": peft.PromptEncoderConfig(num_virtual_tokens=4, encoder_hidden_size=32, task_type="CAUSAL_LM"),
    "prefix tuning": peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}
# What a plain embedding is needed for.
TOKENS = {
    "head and embedding": LoraConfig(r=4, modules_to_save=["lm_head", "embed_tokens"], **LINEAR),
    "head": LoraConfig(r=4, modules_to_save=["lm_head"], **LINEAR),
    "tokens beside LoRA": LoraConfig(r=4, trainable_token_indices=[5, 6], **LINEAR),
    "tokens": peft.TrainableTokensConfig(token_indices=[5, 6], task_type="CAUSAL_LM"),
}


def load(path, **kwargs):
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, **kwargs)


def train(model, steps: int = 4) -> list[float]:
    """The loss of each step on one batch."""
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def assert_trains_and_loads_again(path, config, folder, **kwargs) -> None:
    torch.manual_seed(0)
    model = get_peft_model(load(path, **kwargs), copy.deepcopy(config))
    losses = train(model)
    assert losses[-1] < losses[0]
    model.save_pretrained(folder)
    again = PeftModel.from_pretrained(load(path, **kwargs), folder)
    assert torch.equal(logits(again), logits(model))


@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_method(plain_repo, tmp_path, config):
    assert_trains_and_loads_again(plain_repo.path, config, tmp_path)


@pytest.mark.parametrize("config", TOKENS.values(), ids=TOKENS)
def test_embedding_and_head_are_trained_where_they_are_plain(plain_repo, tmp_path, config):
    assert_trains_and_loads_again(plain_repo.path, config, tmp_path, int4_embedding=False)


@pytest.mark.parametrize("name", ["head and embedding", "head"])
def test_modules_to_save_are_refused_at_once(text_repo, name):
    with pytest.raises(TypeError, match=r"modules_to_save.* load with int4_embedding=False"):
        get_peft_model(load(text_repo.path), TOKENS[name])


@pytest.mark.parametrize("name", ["tokens beside LoRA", "tokens"])
def test_training_tokens_is_refused_in_the_first_step(text_repo, name):
    model = get_peft_model(load(text_repo.path), TOKENS[name])
    with pytest.raises(TypeError, match=r"trainable_token_indices.* load with int4_embedding=False"):
        train(model, 1)


def test_an_int4_layer_in_modules_to_save_is_refused(plain_repo):
    config = LoraConfig(target_modules=["v_proj"], modules_to_save=["q_proj"])
    with pytest.raises(TypeError, match="name them in target_modules"):
        get_peft_model(load(plain_repo.path), config)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_changes_the_base_is_refused(plain_repo, start):
    with pytest.raises(TypeError, match="starts without changing the base"):
        get_peft_model(load(plain_repo.path), LoraConfig(r=4, init_lora_weights=start, **LINEAR))


@pytest.mark.parametrize("safe", [False, True])
def test_merging_is_refused_and_changes_nothing(plain_repo, safe):
    model = get_peft_model(load(plain_repo.path), LoraConfig(r=4, init_lora_weights=False, **LINEAR))
    before = logits(model)
    with pytest.raises(TypeError, match="Keep the LoRA adapter beside the model instead of merging it"):
        model.merge_adapter(safe_merge=safe)
    assert torch.equal(logits(model), before)


def test_prepared_as_for_other_quantized_models(plain_repo):
    """prepare_model_for_kbit_training makes what is not int4 float32 and checkpoints activations."""
    model = peft.prepare_model_for_kbit_training(load(plain_repo.path))
    losses = train(get_peft_model(model, METHODS["LoRA on all linear layers"]))
    assert losses[-1] < losses[0] - 1


@adapter_methods
def test_an_adapter_in_a_models_folder_keeps_its_dtype(plain_repo, tmp_path):
    model = load(plain_repo.path)
    model.add_adapter(LoraConfig(r=4, init_lora_weights=False, **LINEAR))
    model.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert {p.dtype for name, p in again.named_parameters() if "lora_" in name} == {torch.bfloat16}
    assert torch.equal(logits(again), logits(model))


@pytest.mark.skipif(not (ROOT / "config.json").exists(), reason="no checkpoint at the root")
def test_auto_classes_find_the_base_of_an_adapter_with_a_tokenizer(tmp_path):
    model = get_peft_model(load(ROOT), LoraConfig(r=4, init_lora_weights=False, **LINEAR))
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(ROOT).save_pretrained(tmp_path)
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(logits(again), logits(model))
