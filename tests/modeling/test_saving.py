"""Every save loads again to equal logits, or is refused in one line; what it replaces is whole until then."""

import copy
import pickle
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from tests.adapter_methods import adapter_methods
from tests.modeling.tiny_repo import build, text_config

IDS = torch.arange(3, 43).view(1, 40)


def lora(**changes) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False} | changes)


@pytest.fixture(scope="module", params=["plain", "int4", "plain, as from Q4_0"])
def repo(request, tmp_path_factory):
    embedding, _, q4_0 = request.param.partition(",")
    scale_dtype = torch.float16 if q4_0 else torch.bfloat16
    folder = tmp_path_factory.mktemp(embedding)
    return build(folder, text_config(), embedding=embedding, scale_dtype=scale_dtype, q4_0=bool(q4_0))


@pytest.fixture(scope="module")
def other_repo(tmp_path_factory):
    """Fewer layers, other weights, two shards and a side file."""
    config = text_config(num_hidden_layers=2, layer_types=["sliding_attention"] * 2)
    return build(tmp_path_factory.mktemp("other"), config, seed=5)


def load(path, **kwargs):
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, **kwargs)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits


def assert_loads_as(folder: Path, model) -> None:
    again = load(folder)
    assert again.dtype == model.dtype
    assert again.int4_bytes == model.int4_bytes
    assert torch.equal(logits(again), logits(model))


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def weight_files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir() if "safetensors" in file.name)


MOVES = {
    "cpu": lambda model: model.to("cpu"),
    "float32": lambda model: model.to(torch.float32),
    "float32 and back": lambda model: model.float().bfloat16(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_after_a_move(repo, tmp_path, move):
    model = move(load(repo.path))
    model.save_pretrained(tmp_path / "saved")
    assert_loads_as(tmp_path / "saved", model)


def test_rotary_frequencies_stay_float32(repo):
    """Rounded to bfloat16, they turn the far positions of a long prompt by whole radians."""
    model = load(repo.path)
    before = {name: buffer.clone() for name, buffer in model.named_buffers() if "inv_freq" in name}
    assert before
    for name, buffer in model.float().bfloat16().named_buffers():
        assert name not in before or torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("max_shard_size", ["50GB", "200KB"])
@pytest.mark.parametrize("before", ["int4", "stock", "stock in shards", "itself"])
def test_over_another_save(repo, other_repo, tmp_path, before, max_shard_size):
    folder = tmp_path / "repo"
    if before in ("int4", "itself"):
        shutil.copytree(repo.path if before == "itself" else other_repo.path, folder)
    else:
        other_repo.reference.save_pretrained(folder, max_shard_size="200KB" if "shards" in before else "50GB")
    model = load(folder if before == "itself" else repo.path)
    expected = logits(model)
    for _ in range(2):  # the second time onto files of the same names
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        assert torch.equal(logits(model), expected)
        assert_loads_as(folder, model)
    fresh = tmp_path / "fresh"
    model.save_pretrained(fresh, max_shard_size=max_shard_size)
    assert weight_files(folder) == weight_files(fresh)
    assert not [file.name for file in folder.iterdir() if file.is_dir()]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"variant": "fp16"}, "takes no variant"),
        ({"safe_serialization": False}, "takes no safe_serialization=False"),
        ({"state_dict": {"model.norm.weight": torch.zeros(128)}}, "not the model's own state_dict"),
    ],
)
def test_refused_arguments(repo, tmp_path, arguments, named):
    with pytest.raises(TypeError, match=named):
        load(repo.path).save_pretrained(tmp_path / "saved", **arguments)
    assert not (tmp_path / "saved").exists()


def test_a_file_in_place_of_a_folder(repo, tmp_path):
    file = tmp_path / "saved"
    file.write_text("a note")
    with pytest.raises(FileExistsError, match="saved is a file"):
        load(repo.path).save_pretrained(file)
    assert file.read_text() == "a note"


def test_only_the_main_process_writes(repo, tmp_path):
    load(repo.path).save_pretrained(tmp_path / "saved", is_main_process=False)
    assert not (tmp_path / "saved").exists()


def test_an_interrupted_save_leaves_what_was_there(repo, other_repo, tmp_path, monkeypatch):
    folder = shutil.copytree(other_repo.path, tmp_path / "repo")
    before, model, written = contents(folder), load(repo.path), []

    def interrupted(tensors, file, **kwargs):
        written.append(file)
        if len(written) == 2:
            raise KeyboardInterrupt
        save_file(tensors, file, **kwargs)

    monkeypatch.setattr("transformers.modeling_utils.safe_save_file", interrupted)
    for target in (folder, tmp_path / "new"):
        written.clear()
        with pytest.raises(KeyboardInterrupt):
            model.save_pretrained(target, max_shard_size="200KB")
    assert contents(folder) == before
    assert not (tmp_path / "new").exists()


def test_a_save_cut_short_while_it_replaces_loads_as_nothing(repo, other_repo, tmp_path, monkeypatch):
    folder = shutil.copytree(other_repo.path, tmp_path / "repo")
    model, replace = load(repo.path), Path.replace

    def failing(file, target):
        if file.name == "model-00002-of-00003.safetensors":
            raise PermissionError(f"{target} is open elsewhere")
        return replace(file, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match=r"in part only .*move what is left in \S+ there"):
        model.save_pretrained(folder, max_shard_size="200KB")
    with pytest.raises(Exception, match=r"config\.json"):
        load(folder)
    monkeypatch.undo()
    (left,) = folder.glob("unfinished-save-*")
    for file in left.iterdir():
        file.replace(folder / file.name)
    assert_loads_as(folder, model)


@pytest.mark.parametrize("taken_out", [pytest.param("delete_adapter", marks=adapter_methods), "unload"])
def test_after_adapters_were_taken_out(repo, tmp_path, taken_out):
    model = load(repo.path)
    expected = logits(model)
    if taken_out == "unload":
        model = get_peft_model(model, lora()).unload()
    else:
        model.add_adapter(lora())
        assert not torch.equal(logits(model), expected)
        model.delete_adapter("default")
    assert torch.equal(logits(model), expected)
    model.save_pretrained(tmp_path / "saved")
    assert_loads_as(tmp_path / "saved", model)


@pytest.mark.parametrize("config", [lora(), lora(modules_to_save=["norm"])])
def test_a_base_with_adapters_in_it_is_refused(repo, tmp_path, config):
    base = load(repo.path)
    get_peft_model(base, config)
    with pytest.raises(TypeError, match=r"PEFT's adapters are in this model\. .*unload\(\)"):
        base.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@adapter_methods
def test_adapters_are_saved_alone_and_load_with_their_base(repo, tmp_path):
    model = load(repo.path)
    model.add_adapter(lora())
    model.save_pretrained(tmp_path / "adapter")
    assert weight_files(tmp_path / "adapter") == ["adapter_model.safetensors"]
    again = load(tmp_path / "adapter")
    assert (again.dtype, again.int4_backend) == (model.dtype, model.int4_backend)
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=0.25)


@adapter_methods
def test_a_save_beside_an_adapter_is_refused(repo, tmp_path):
    """transformers loads an adapter_config.json that lies in a model's folder, so that other logits would come out."""
    folder = shutil.copytree(repo.path, tmp_path / "repo")
    model = load(folder)
    model.add_adapter(lora())
    model.save_pretrained(folder)
    before = contents(folder)
    with pytest.raises(FileExistsError, match=r"holds adapter_config\.json: .* on top of"):
        load(repo.path).save_pretrained(folder)
    assert contents(folder) == before


@pytest.mark.parametrize("trust", [True, False])
def test_from_config_is_refused(picture_repo, trust):
    """Without remote code transformers makes a random model of its own; ours would claim to be quantized."""
    config = AutoConfig.from_pretrained(picture_repo.path)
    if not trust:
        model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
        assert type(model).__module__.startswith("transformers.models.gemma3")
        return
    with pytest.raises(Exception, match="is made by from_pretrained alone"):
        AutoModelForImageTextToText.from_config(config, trust_remote_code=True)
    model = load(picture_repo.path)
    with pytest.raises(Exception, match="is made by from_pretrained alone"):
        type(model)(model.config)


class FakeHub:
    """What the library of the Hub is asked for, on a folder in place of a repo."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.commits = folder, []
        folder.mkdir()
        api = huggingface_hub.HfApi
        monkeypatch.setattr(api, "create_repo", lambda _, repo_id, **kwargs: huggingface_hub.RepoUrl(f"hf/{repo_id}"))
        monkeypatch.setattr(api, "create_branch", lambda *args, **kwargs: None)
        monkeypatch.setattr(api, "list_repo_files", lambda *args, **kwargs: [file.name for file in folder.iterdir()])
        monkeypatch.setattr(api, "create_commit", lambda _, *args, **kwargs: self.create_commit(*args, **kwargs))
        monkeypatch.setattr(
            "transformers.modeling_utils.create_and_tag_model_card",
            lambda *args, **kwargs: huggingface_hub.ModelCard("---\ntags: []\n---\n"),
        )
        monkeypatch.setattr(
            "transformers.utils.hub.create_and_tag_model_card",
            lambda *args, **kwargs: huggingface_hub.ModelCard("---\ntags: []\n---\n"),
        )

    def create_commit(self, repo_id, operations, *, commit_message, **kwargs):
        for operation in operations:
            path = self.folder / operation.path_in_repo
            if isinstance(operation, huggingface_hub.CommitOperationDelete):
                path.unlink()
            else:
                with operation.as_file() as source:
                    path.write_bytes(source.read())
        self.commits.append((repo_id, commit_message, kwargs.get("revision")))
        return huggingface_hub.CommitInfo(
            commit_url=f"https://huggingface.co/{repo_id}/commit/0", commit_message="", commit_description="", oid="0"
        )


@pytest.mark.parametrize("by_saving", [True, False])
def test_push_to_hub(repo, tmp_path, monkeypatch, by_saving):
    hub, model = FakeHub(tmp_path / "hub", monkeypatch), load(repo.path)
    (hub.folder / "tokenizer.json").write_text("{}")
    for max_shard_size in ("200KB", "50GB", "300KB"):
        if by_saving:
            model.save_pretrained(tmp_path / "here", push_to_hub=True, max_shard_size=max_shard_size)
            assert_loads_as(tmp_path / "here", model)
        else:
            model.push_to_hub("here", max_shard_size=max_shard_size, commit_message="a message", revision="branch")
        assert_loads_as(hub.folder, model)
        model.save_pretrained(tmp_path / "alone", max_shard_size=max_shard_size)
        assert weight_files(hub.folder) == weight_files(tmp_path / "alone")
    assert (hub.folder / "tokenizer.json").exists()
    expected = ("hf/here", "Upload model", None) if by_saving else ("hf/here", "a message", "branch")
    assert hub.commits == [expected] * 3


@adapter_methods
def test_pushed_adapters_leave_the_model_beside_them(repo, tmp_path, monkeypatch):
    hub, model = FakeHub(tmp_path / "hub", monkeypatch), load(repo.path)
    model.push_to_hub("here")
    before = weight_files(hub.folder)
    model.add_adapter(lora())
    model.push_to_hub("here")
    assert weight_files(hub.folder) == sorted([*before, "adapter_model.safetensors"])
    model.delete_adapter("default")
    with pytest.raises(FileExistsError, match=r"hf/here holds adapter_config\.json"):
        model.push_to_hub("here")
    assert len(hub.commits) == 2


def test_the_file_that_transformers_prefers_is_the_one_that_is_looked_at(repo, other_repo, tmp_path):
    """model.safetensors goes before an index, which may be an older one's."""
    model = load(repo.path)
    model.save_pretrained(tmp_path / "repo")
    for file in other_repo.path.glob("model*"):
        shutil.copy(file, tmp_path / "repo")
    assert_loads_as(tmp_path / "repo", model)


def test_state_dict_holds_what_is_on_disk(repo, tmp_path):
    model = load(repo.path)
    model.save_pretrained(tmp_path / "saved")
    state, disk = model.state_dict(), load_file(tmp_path / "saved" / "model.safetensors")
    assert {re.sub(r"^lm_head\.weight$", "", name) for name in state} - {""} == set(disk)
    assert all(torch.equal(state[name], tensor) for name, tensor in disk.items())
