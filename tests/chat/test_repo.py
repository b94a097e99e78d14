"""Which repository is served, and what is said of one that cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import chat.repo
from chat.errors import HubUnreachable, ModelError
from chat.repo import check_repo, default_model, find_repo


def test_without_a_model_the_command_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MODEL_ID", raising=False)
    monkeypatch.setattr(chat.repo, "ROOT", tmp_path)
    with pytest.raises(ModelError, match="--model"):
        default_model()
    (tmp_path / "README.md").write_text("---\nmodels:\n- someone/some-model\n---\n# A Space\n")
    assert default_model() == "someone/some-model"
    (tmp_path / "config.json").write_text("{}")
    assert default_model() == str(tmp_path)
    monkeypatch.setenv("MODEL_ID", "other/model")
    assert default_model() == "other/model"


@pytest.fixture
def copy(stub_folder: Path, tmp_path: Path) -> Path:
    """A repository that the chat can serve."""
    return Path(shutil.copytree(stub_folder, tmp_path / "copy"))


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def remove(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names]


def only(*names: str) -> Callable[[Path], None]:
    """Leaves nothing but these empty files."""

    def leave(folder: Path) -> None:
        shutil.rmtree(folder)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()

    return leave


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text)


FAULTS = {
    "no chat template": (remove("chat_template.jinja"), "a base model"),
    "no tokenizer": (remove("tokenizer.json"), "no tokenizer.json"),
    "no processor": (remove("processor_config.json"), "preprocessor_config.json"),
    "no weights": (remove("model.safetensors"), "model.safetensors is missing"),
    "Git LFS": (write("model.safetensors", "version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
    "no code": (change_config(auto_map={"AutoModel": "modeling_x.Model"}), "modeling_x.py, the code"),
    "compressed-tensors": (change_config(quantization_config={"quant_method": "compressed-tensors"}), "for vLLM"),
    "another quantization": (change_config(quantization_config={"quant_method": "gptq"}), "in the format gptq"),
    "AWQ of others": (change_config(quantization_config={"quant_method": "awq"}), "no auto_map"),
    "MLX": (change_config(quantization={"bits": 4}), "MLX's format"),
    "another model": (change_config(model_type="qwen3"), "qwen3 model"),
    "a damaged config": (write("config.json", "{"), "config.json cannot be read"),
    "a list for a config": (write("config.json", "[]"), "not a JSON object"),
    "GGUF": (only("model-Q4_0.gguf", "README.md"), "for llama.cpp"),
    "Flax": (only("_METADATA", "manifest.ocdbt"), r"python convert_flax\.py convert --checkpoint .*copy --output REPO"),
    "Kaggle's folder": (only("tokenizer.model", "gemma3-1b-it-int4/_METADATA"), r"convert_flax\.py convert"),
    "an adapter": (only("adapter_config.json"), "adapter"),
    "one level too high": (only("repo/config.json"), r"give .*copy/repo$"),
    "an empty folder": (only(".gitkeep"), "no config.json"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_served_is_said_in_one_line(copy: Path, fault: str) -> None:
    check_repo(find_repo(str(copy)))
    spoil, message = FAULTS[fault]
    spoil(copy)
    with pytest.raises(ModelError, match=message) as raised:
        check_repo(find_repo(str(copy)))
    assert str(raised.value).startswith(f"{copy}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("./nowhere", "no such folder, and a Hub id has the form OWNER/NAME"),
        ("https://huggingface.co/owner/name", "OWNER/NAME"),
        ("nowhere.gguf", "for llama.cpp"),
        ("kaggle:gemma3-1b-it-int4", "convert --checkpoint kaggle:gemma3-1b-it-int4"),
        (__file__, "this is a file"),
    ],
)
def test_what_is_no_repository_is_said_in_one_line(model_id: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        find_repo(model_id)


def test_a_hub_id_without_a_network_is_said_at_once() -> None:
    with pytest.raises(HubUnreachable, match="no such folder, and the Hugging Face Hub cannot be reached"):
        find_repo("nobody/nothing")
