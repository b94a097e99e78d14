"""Which repository is served, and what is said of one that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

import chat.repo
from chat.errors import ModelError
from chat.repo import default_model


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
