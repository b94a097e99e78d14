"""What an int4 model gives out, it takes back: state dicts, accelerate's checkpoints, the Trainer's."""

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from tests.modeling.tiny_repo import build, multimodal_config, text_config

IDS = torch.arange(3, 43).view(1, 40)


def load(path, **kwargs):
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, **kwargs)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(input_ids=IDS).logits


def saved_tensors(folder) -> list[dict[str, torch.Tensor]]:
    """Of each shard."""
    return [load_file(file) for file in sorted(folder.glob("model*.safetensors"))]


def test_its_own_state_dict(text_repo):
    model = load(text_repo.path)
    before = logits(model)
    assert not any(model.load_state_dict(model.state_dict()))
    assert torch.equal(logits(model), before)


def test_the_state_dict_of_other_weights(text_repo, tmp_path):
    """Those of int4 layers and of an int4 embedding; a plain one's scales are not in the state dict."""
    packed = any(name.endswith("embed_tokens.qweight") for shard in saved_tensors(text_repo.path) for name in shard)
    other = build(tmp_path / "other", text_config(), embedding="int4" if packed else "plain", seed=5)
    model, wanted = load(text_repo.path), load(other.path)
    assert not torch.equal(logits(model), logits(wanted))
    if packed:
        model.load_state_dict(wanted.state_dict())
        assert torch.equal(logits(model), logits(wanted))
    else:
        with pytest.raises(RuntimeError, match=r"embed_tokens: the embedding is not codes \* scales"):
            model.load_state_dict(wanted.state_dict())


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("q_proj.qweight", lambda t: t[:-32], r"q_proj\.qweight is \(96, 16\), expected \(128, 16\)"),
        ("q_proj.qzeros", lambda t: t * 0, r"q_proj: qzeros other than 8"),
        ("q_proj.qweight", None, r"Missing key.*q_proj\.qweight"),
    ],
)
def test_a_state_dict_with_a_fault(plain_repo, name, change, message):
    model = load(plain_repo.path)
    state = model.state_dict()
    name = f"model.layers.1.self_attn.{name}"
    if change is None:
        del state[name]
    else:
        state[name] = change(state[name])
    with pytest.raises(RuntimeError, match=message):
        model.load_state_dict(state)


@pytest.mark.parametrize("config", [text_config(), multimodal_config()], ids=["text", "pictures"])
def test_saved_files_by_their_own_names_shard_by_shard(config, tmp_path):
    source = load(build(tmp_path / "one", config, embedding="int4", seed=5).path)
    source.save_pretrained(tmp_path / "saved", max_shard_size="50KB")
    model = load(build(tmp_path / "other", config, embedding="int4").path)
    shards = saved_tensors(tmp_path / "saved")
    assert len(shards) > 5
    for shard in shards:
        assert not model.load_state_dict(shard, strict=False).unexpected_keys
    assert torch.equal(logits(model), logits(source))


def test_accelerates_state_of_a_model_with_an_adapter(text_repo, tmp_path):
    accelerator = Accelerator(cpu=True)
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    model = accelerator.prepare(get_peft_model(load(text_repo.path), config))
    expected = logits(model)
    accelerator.save_state(tmp_path)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert not torch.equal(logits(model), expected)
    accelerator.load_state(tmp_path)
    assert torch.equal(logits(model), expected)


def test_saving_the_state_dict_that_accelerate_gives(text_repo, tmp_path):
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(load(text_repo.path))
    model.save_pretrained(tmp_path, state_dict=accelerator.get_state_dict(model))
    assert torch.equal(logits(load(tmp_path)), logits(model))


class Rows(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids = torch.randint(3, 256, (12,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


@pytest.mark.parametrize("config", [text_config(), multimodal_config()], ids=["text", "pictures"])
def test_the_trainer_resumes_without_adapters(config, tmp_path):
    """Four steps at a stretch end where two and two do."""
    repo = build(tmp_path / "repo", config)

    def trained(folder, steps: int, resume: bool = False):
        arguments = TrainingArguments(
            str(tmp_path / folder),
            max_steps=steps,
            save_steps=2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            lr_scheduler_type="constant",
        )
        trainer = Trainer(load(repo.path), arguments, train_dataset=Rows())
        trainer.train(resume_from_checkpoint=resume)
        return trainer.model

    expected = trained("at a stretch", 4)
    trained("with a stop", 2)
    assert torch.equal(logits(trained("with a stop", 4, resume=True)), logits(expected))
