"""The Space's upload: complete, pinned as the project is, and serving the model that its card names."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import metadata_load

import chat.repo
from chat.errors import ModelError
from chat.repo import ROOT, default_model
from requirements.pins import read_pins
from space.assemble import assemble, check_model


def test_the_card_names_what_the_space_runs_on() -> None:
    card = metadata_load(ROOT / "space" / "README.md")
    assert card["sdk"] == "gradio"
    assert read_pins(ROOT / "requirements.txt")["gradio"] == f"gradio=={card['sdk_version']}"
    assert card["python_version"] == "3.12"  # what ZeroGPU offers
    assert card["app_file"] == "app.py"


@pytest.mark.parametrize("name", ["thesis.tex", ".git", "conversion"])
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    assemble(tmp_path / "space", "someone/model")
    (tmp_path / "space" / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"holds {name}, which is no Space's"):
        assemble(tmp_path / "space", "someone/model")
    assert (tmp_path / "space" / name).read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="is a file"):
        assemble(tmp_path / "file", "someone/model")


def test_the_assembled_folder_serves_the_named_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "space"
    (folder / "chat").mkdir(parents=True)
    (folder / "chat" / "left over").touch()  # of a Space assembled before
    assemble(folder, "someone/gemma-3-4b-it-int4")
    names = {path.name for path in folder.iterdir()}
    assert not (folder / "chat" / "left over").exists()
    code = {"app.py", "int4_memory.py", "int4_versions.py"}
    assert names - {"examples"} == code | {"chat", "requirements.txt", "README.md", "LICENSE"}
    parts = [path.relative_to(ROOT) for path in (ROOT / "chat").rglob("*.*") if "__pycache__" not in path.parts]
    assert Path("chat/page/index.html") in parts
    for name in (*code, *parts):
        assert (folder / name).read_bytes() == (ROOT / name).read_bytes()
    assert "# Gemma 3 QAT INT4" in (folder / "README.md").read_text()
    monkeypatch.delenv("MODEL_ID", raising=False)
    monkeypatch.setattr(chat.repo, "ROOT", folder)
    assert default_model() == "someone/gemma-3-4b-it-int4"
    assert metadata_load(folder / "README.md")["title"] == "gemma-3-4b-it-int4"


@pytest.mark.parametrize("model_id", ["", "just-a-name", "a/b/c", "/x"])
def test_a_wrong_model_id_is_refused(model_id: str) -> None:
    with pytest.raises(ModelError, match="OWNER/NAME"):
        check_model(model_id)


def test_a_folder_is_no_model_of_the_hub(stub_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Upload it .* then give OWNER/NAME"):
        check_model(str(stub_folder))
    (tmp_path / "model-Q4_0.gguf").touch()
    with pytest.raises(ModelError, match=r"for llama\.cpp"):
        check_model(str(tmp_path))
