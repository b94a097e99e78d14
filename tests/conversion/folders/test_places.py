"""An output that lies in what is read, or around it, is refused before anything is written.

Run: pytest tests/conversion/folders/test_places.py
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import convert_flax
from conversion.errors import BadInput
from conversion.folders.places import check_apart
from tests.conversion.helpers.tiny import files_of


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Folders and files that are read, and links to them."""
    for folder in ("checkpoint/d", "donor", "tokenizer", "repo", "cache", "apart"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("checkpoint/_METADATA", "tokenizer/tokenizer.json", "apart/SHA256SUMS", "apart/config.json"):
        (tmp_path / file).write_text("{}")
    (tmp_path / "donor" / "model.safetensors").write_bytes(bytes(16))
    (tmp_path / "repo" / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    (tmp_path / "link").symlink_to(tmp_path / "checkpoint")
    (tmp_path / "up").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


CONVERT = ["convert", "--checkpoint", "checkpoint"]
GGUF = [*CONVERT, "--format", "gguf"]
EXPORT = ["export", "repo", "--format", "gguf"]


@pytest.mark.parametrize(
    ("words", "output", "problem"),
    [
        (CONVERT, "checkpoint/out", "lies in --checkpoint"),
        (CONVERT, "checkpoint/d/new/out/", "lies in --checkpoint"),
        (CONVERT, "link/out", "lies in --checkpoint"),
        (CONVERT, "up/checkpoint/../link/out", "lies in --checkpoint"),
        (CONVERT, "checkpoint", "is --checkpoint"),
        (CONVERT, "link", "is --checkpoint"),
        (CONVERT, "up/checkpoint", "is --checkpoint"),
        (CONVERT, ".", "holds --checkpoint"),
        (CONVERT, "up", "holds --checkpoint"),
        (["convert", "--checkpoint", "link/d"], "checkpoint", "holds --checkpoint"),
        (["convert", "--checkpoint", "kaggle:gemma3-1b-it-int4"], "cache/out", "lies in --checkpoint"),
        ([*CONVERT, "--donor", "donor"], "donor/out", "lies in --donor"),
        ([*CONVERT, "--donor", "donor"], "donor", "is --donor"),
        ([*CONVERT, "--tokenizer", "tokenizer"], "tokenizer", "is --tokenizer"),
        ([*CONVERT, "--tokenizer", "tokenizer/tokenizer.json"], "tokenizer", "holds --tokenizer"),
        ([*CONVERT, "--source-hashes", "apart/SHA256SUMS"], "apart", "holds --source-hashes"),
        (GGUF, "checkpoint/out", "lies in --checkpoint"),
        (GGUF, "link", "is --checkpoint"),
        (EXPORT, "repo/out", "lies in REPO"),
        (EXPORT, "repo", "is REPO"),
        (EXPORT, "up/repo", "is REPO"),
        (EXPORT, "up", "holds REPO"),
        (["plan", "--checkpoint", "checkpoint"], "checkpoint/out", "lies in --checkpoint"),
    ],
)
def test_refused_before_anything_is_written(places, capsys, words, output, problem):
    before = files_of(places)
    assert convert_flax.main([*words, "--output", output]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"convert_flax: error: --output {Path(output)}: {problem}")
    assert "give --output a folder elsewhere" in error
    assert files_of(places) == before
    assert not (places / "checkpoint" / "out").exists()


def test_folders_beside_each_other_are_fine_and_nothing_is_made(places):
    before = files_of(places)
    check_apart(places / "checkpoint.awq", {"--checkpoint": places / "checkpoint", "--donor": None})
    check_apart(places / "new" / "out", {"--checkpoint": places / "link"})
    check_apart(places / "tokenizer" / "out", {}, {"--tokenizer": places / "tokenizer"})  # read by name
    assert files_of(places) == before
    assert not (places / "new").exists()


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting takes root")
def test_a_folder_mounted_twice(places):
    (places / "again").mkdir()
    if subprocess.run(["mount", "--bind", places / "checkpoint", places / "again"], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(BadInput, match="lies in --checkpoint"):
            check_apart(places / "again" / "out", {"--checkpoint": places / "checkpoint"})
    finally:
        subprocess.run(["umount", places / "again"], check=True)
