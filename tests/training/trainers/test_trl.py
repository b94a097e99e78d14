"""TRL's trainers on the checkpoint at the root, as it loads and with everything at its default: one step each."""

import pytest
import torch
from datasets import Dataset, Image
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from demo.places import ROOT

pytestmark = pytest.mark.timeout(1200)
USER, GOOD, BAD = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "assistant", "content": "No."},
)
COMMON = {"max_steps": 1, "use_cpu": True, "report_to": "none", "per_device_train_batch_size": 2, "logging_steps": 1}


def first_loss(trainer, config, row: dict, images=None, processing_class=AutoTokenizer, load=None, **more) -> float:
    """Of one step on copies of `row`, with LoRA; checks that its adapters have changed."""
    torch.manual_seed(0)
    data = {name: [value] * 4 for name, value in row.items()}
    dataset = Dataset.from_dict(data)
    if images:
        dataset = Dataset.from_dict({**data, "images": [images] * 4}).cast_column("images", [Image()])
    made = trainer(
        model=AutoModelForImageTextToText.from_pretrained(ROOT, trust_remote_code=True, **(load or {})),
        args=config,
        train_dataset=dataset,
        peft_config=LoraConfig(r=4, target_modules=r".*language_model.*_proj", task_type="CAUSAL_LM"),
        processing_class=processing_class.from_pretrained(ROOT),
        **more,
    )
    made.train()
    grown = [p for name, p in made.model.named_parameters() if "lora_B" in name]
    assert grown
    assert all(p.abs().max() > 0 for p in grown)
    return next(entry["loss"] for entry in made.state.log_history if "loss" in entry)


def test_sft_has_the_loss_of_a_plain_head(tmp_path):
    losses = [
        first_loss(SFTTrainer, SFTConfig(tmp_path, **COMMON), {"messages": [USER, GOOD]}, load=load)
        for load in ({}, {"int4_embedding": False})
    ]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_the_repo_by_its_name(tmp_path):
    """With the code trusted, TRL finds our class and not the stock one of the same name."""
    config = SFTConfig(tmp_path, trust_remote_code=True, model_init_kwargs={"dtype": "bfloat16"}, **COMMON)
    trainer = SFTTrainer(
        model=str(ROOT),
        args=config,
        train_dataset=Dataset.from_dict({"messages": [[USER, GOOD]] * 4}),
        peft_config=LoraConfig(r=4, target_modules=r".*language_model.*_proj", task_type="CAUSAL_LM"),
    )
    assert trainer.model.base_model.model.int4_bytes > 0
    trainer.train()


def test_sft_on_pictures(tmp_path):
    row = {"prompt": [USER], "completion": [GOOD]}
    pictures = [str(ROOT / "examples" / "turtle.png")]
    first_loss(SFTTrainer, SFTConfig(tmp_path, max_length=None, **COMMON), row, pictures, AutoProcessor)


def test_dpo(tmp_path):
    first_loss(DPOTrainer, DPOConfig(tmp_path, **COMMON), {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]})


def test_grpo(tmp_path):
    config = GRPOConfig(tmp_path, num_generations=2, max_completion_length=8, **COMMON)
    first_loss(GRPOTrainer, config, {"prompt": [USER]}, reward_funcs=lambda completions, **_: [0.0, 1.0])


def test_what_the_model_said_alone_is_learned(tmp_path):
    """The chat template marks it; TRL would refuse a template that does not."""
    config = SFTConfig(tmp_path, assistant_only_loss=True, **COMMON)
    first_loss(SFTTrainer, config, {"messages": [USER, GOOD]})
