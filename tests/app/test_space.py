"""The Space's upload: complete, pinned as the project is, and serving the model that its card names."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from huggingface_hub import metadata_load

import app
from space.assemble import assemble

ROOT = app.HERE
BROUGHT_BY = {"PIL": "pillow", "huggingface_hub": "transformers", "tqdm": "transformers", "starlette": "gradio"}


def pins(name: str) -> dict[str, str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def test_pins_are_the_projects_own() -> None:
    project = pins("requirements-dev.txt")
    for package, version in pins("requirements.txt").items():
        assert project[package] == version, package
    card = metadata_load(ROOT / "space" / "README.md")
    assert card["sdk"] == "gradio"
    assert card["sdk_version"] == project["gradio"]
    assert card["app_file"] == "app.py"


def test_requirements_cover_what_the_app_imports() -> None:
    tree = ast.parse((ROOT / "app.py").read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    packages = {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"spaces"}
    assert {BROUGHT_BY.get(package, package) for package in packages} <= set(pins("requirements.txt"))


def test_the_assembled_folder_serves_the_named_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "space"
    folder.mkdir()
    (folder / "left over").touch()
    assemble(folder, "someone/gemma-3-4b-it-int4")
    names = {path.name for path in folder.iterdir()}
    assert names - {"examples"} == {"app.py", "requirements.txt", "README.md", "LICENSE"}
    assert (folder / "app.py").read_bytes() == (ROOT / "app.py").read_bytes()
    assert "# Gemma 3 QAT INT4" in (folder / "README.md").read_text()
    monkeypatch.delenv("MODEL_ID", raising=False)
    monkeypatch.setattr(app, "HERE", folder)
    assert app.default_model() == "someone/gemma-3-4b-it-int4"
    assert metadata_load(folder / "README.md")["title"] == "gemma-3-4b-it-int4"


@pytest.mark.parametrize("model_id", ["", "just-a-name", "a/b/c", "/x"])
def test_a_wrong_model_id_is_refused(tmp_path: Path, model_id: str) -> None:
    with pytest.raises(ValueError, match="OWNER/NAME"):
        assemble(tmp_path / "space", model_id)
