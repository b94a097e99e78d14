"""What is given in place of a checkpoint, a repo, a donor, a tokenizer or a config is named, with what to type.

Run: pytest tests/conversion/test_arguments.py
"""

import json
import tarfile
import zipfile
from pathlib import Path

import pytest

from conversion.arguments import (
    check_config,
    check_donor,
    check_repo_folder,
    check_tokenizer,
    find_checkpoint,
    kaggle_name,
    source_path,
)
from conversion.errors import BadInput
from conversion.identify import source_kind

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 108000000000\n"


def _checkpoint(folder: Path) -> Path:
    """What is looked at of an Orbax checkpoint: names."""
    for name in ("_METADATA", "_CHECKPOINT_METADATA", "manifest.ocdbt", "d/0a1b", "ocdbt.process_0/d/2c3d"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")
    return folder


def _repo(folder: Path, method: str | None = "awq") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    quantization = {"quantization_config": {"quant_method": method}} if method else {}
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma3"} | quantization))
    (folder / "model.safetensors").write_bytes(b"weights")
    if method:
        (folder / "conversion.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, with one of everything in it."""
    monkeypatch.chdir(tmp_path)
    _checkpoint(tmp_path / "unpacked" / "ckpt")
    (tmp_path / "unpacked" / "tokenizer.model").write_bytes(b"\x0a\x0e")
    _checkpoint(tmp_path / "deep" / "a" / "b" / "ckpt")
    for name in "one", "other":
        _checkpoint(tmp_path / "several" / name)
    _checkpoint(tmp_path / "pointers").joinpath("d", "0a1b").write_text(POINTER)
    _checkpoint(tmp_path / "lacking").joinpath("_METADATA").unlink()
    _repo(tmp_path / "repos" / "awq")
    _repo(tmp_path / "stock", None)
    _repo(tmp_path / "fetched").joinpath("model.safetensors").write_text(POINTER)
    (tmp_path / "repos" / "awq" / "assets").mkdir()
    for name in "empty", "gguf", "loading", "partial/.partial", "packed", "photos", "torch":
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "gguf" / "model-Q4_0.gguf").write_bytes(b"GGUF0000")
    (tmp_path / "loading" / "archive.tar.gz.crdownload").write_bytes(b"\x1f\x8b")
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "torch" / "model.ckpt").write_bytes(b"PK\x03\x04")
    (tmp_path / "nothing.bin").write_bytes(b"")
    (tmp_path / "pointer.safetensors").write_text(POINTER)
    (tmp_path / "notes.txt").write_text("notes")
    for name, mode in ("archive.tar.gz", "w:gz"), ("archive.tar", "w"), ("packed/archive.tar.gz", "w:gz"):
        with tarfile.open(tmp_path / name, mode) as archive:
            archive.add(tmp_path / "unpacked", "unpacked")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.write(tmp_path / "notes.txt", "notes.txt")
    return tmp_path


CHECKPOINTS = {
    "archive.tar.gz": "is an archive (gzip); unpack it (mkdir archive && tar -xf archive.tar.gz -C archive) and give",
    "archive.tar": "is an archive (tar); unpack it (mkdir archive && tar -xf archive.tar -C archive) and give",
    "archive.zip": "is an archive (zip); unpack it (unzip archive.zip -d archive) and give archive",
    "packed": "a folder with an archive in it (archive.tar.gz); unpack it (mkdir packed/archive && tar -xf packed/arch",
    "google/gemma-3/flax/gemma3-27b-it-int4": "type --checkpoint kaggle:gemma3-27b-it-int4",
    "google/gemma-3/flax/gemma3-4b-pt-int4/1": "type --checkpoint kaggle:google/gemma-3/flax/gemma3-4b-pt-int4/1",
    "gemma3-27b-it-int4": "type --checkpoint kaggle:gemma3-27b-it-int4",
    "gemma-3-4b-it-qat-int4-flax": "type --checkpoint kaggle:gemma3-4b-it-int4",
    "https://www.kaggle.com/models/google/gemma-3/flax/gemma3-12b-it-int4": "--checkpoint kaggle:gemma3-12b-it-int4",
    "kaggle.com/models/google/gemma-3/flax/gemma3-1b-it-int4/1": "kaggle:google/gemma-3/flax/gemma3-1b-it-int4/1",
    "https://www.kaggle.com/models/google/gemma-3": "type --checkpoint kaggle:gemma3-27b-it-int4",
    "kaggle:gemma3-27b-int4": "no INT4 checkpoint of Google's is called so; is kaggle:gemma3-27b-it-int4 meant?",
    "kaggle:gemma-3-4b-it": "is kaggle:gemma3-4b-it-int4 meant?",
    "kaggle:https://www.kaggle.com/models/google/gemma-3/flax/gemma3-1b-it-int4": "kaggle:gemma3-1b-it-int4",
    "google/gemma-3-27b-it": "type --checkpoint kaggle:gemma3-27b-it-int4",
    "someone/finetune": "no such folder; for the repo of the Hugging Face Hub type --checkpoint hf:someone/finetune",
    "https://huggingface.co/someone/finetune/tree/main": "type --checkpoint hf:someone/finetune",
    "google/gemma-3-27b-it-qat-q4_0-gguf": "type --checkpoint hf:google/gemma-3-27b-it-qat-q4_0-gguf",
    "https://example.org/archive.tar.gz": "a web address is not downloaded: download it, and give the folder",
    "unpaked": "no such folder; is unpacked meant?",
    "nowhere": "no such folder; --checkpoint takes the folder of an Orbax checkpoint",
    "unpacked/tokenizer.model": "is a SentencePiece tokenizer; the checkpoint is the folder: type --checkpoint",
    "unpacked/ckpt/_METADATA": "is a file of an Orbax checkpoint, not its folder; the checkpoint is the folder: type",
    "unpacked/ckpt/d/0a1b": "is a file of an Orbax checkpoint",
    "repos/awq/model.safetensors": "is a safetensors file; --checkpoint takes a folder",
    "nothing.bin": "is an empty file; download it again",
    "pointer.safetensors": "is a git-lfs pointer, not the file itself; type `git lfs pull`",
    "loading/archive.tar.gz.crdownload": "is the beginning of a file; it is still being downloaded",
    "deep": "the checkpoint lies deeper; type --checkpoint deep/a/b/ckpt",
    "unpacked/ckpt/d": "is a part of the checkpoint; type --checkpoint",
    "unpacked/ckpt/ocdbt.process_0/d": "is a part of the checkpoint; type --checkpoint",
    "several": "holds several checkpoints; name one: several/one, several/other",
    "pointers": "d/0a1b is a git-lfs pointer, not the file itself; type `git lfs pull` in pointers",
    "lacking": "it is an Orbax checkpoint without its _METADATA file; it is incomplete: download it again",
    "stock": "it is a Hugging Face repo (gemma3); Google's INT4 checkpoints are on Kaggle",
    "torch": "it is a folder of weights in another format (model.ckpt); Google's INT4 checkpoints are on Kaggle",
    "empty": "it is an empty folder; Google's INT4 checkpoints are on Kaggle",
    "loading": "it is a folder that is still being filled (archive.tar.gz.crdownload); wait for it",
    "partial": "it is a folder with an unfinished conversion; repeat the command that began it",
    "photos": "it is a folder of other things (cat.jpg); Google's INT4 checkpoints are on Kaggle",
}


@pytest.mark.parametrize("given", CHECKPOINTS)
def test_what_is_no_checkpoint(here, given):
    said = _refused(source_path, given)
    assert said.startswith(f"--checkpoint {given}: ")
    assert CHECKPOINTS[given] in said


@pytest.mark.parametrize("given", ["gguf/model-Q4_0.gguf", "gguf"])
def test_gguf_files_are_told_by_looking(here, given):
    assert source_path(given) == Path(given)
    assert source_kind(Path(given)) == "gguf"
    (here / "gguf" / "config.json").write_text('{"model_type": "gemma3"}')
    assert source_kind(Path(given)) == "gguf"


@pytest.mark.parametrize("given", ["unpacked/ckpt", "unpacked", "."])
def test_a_checkpoint_is_found(here, given, monkeypatch):
    if given == ".":
        monkeypatch.chdir(here / "unpacked" / "ckpt")
    assert source_path(given) == Path(given)
    assert (find_checkpoint(Path(given)) / "_METADATA").is_file()


def test_names_that_kaggle_is_asked_for():
    for name in ("gemma3-27b-it-int4", "google/gemma-3/flax/gemma3-1b-pt-int4/2", "someone/model/flax/tuned/1"):
        assert kaggle_name(f"kaggle:{name}") == f"kaggle:{name}"


REPOS = {
    "google/gemma-3-27b-it": "hf download google/gemma-3-27b-it --local-dir gemma-3-27b-it, then",
    "https://huggingface.co/someone/gemma-awq": "hf download someone/gemma-awq --local-dir gemma-awq",
    "kaggle:gemma3-1b-it-int4": "a checkpoint of Kaggle's is no repo yet; type convert_flax.py convert --checkpoint",
    "repos/awk": "no such folder; is repos/awq meant?",
    "repos": "the repo lies deeper; type convert_flax.py verify repos/awq",
    "repos/awq/assets": "it is a part of a repo; type convert_flax.py verify",
    "repos/awq/model.safetensors": "is a safetensors file, verify takes the folder of a converted repo; the repo",
    "gguf/model-Q4_0.gguf": "the repo is its folder: type convert_flax.py verify gguf",
    "archive.tar.gz": "is an archive (gzip); unpack it (mkdir archive && tar",
    "unpacked": "it is a Flax checkpoint, not yet converted; type convert_flax.py convert --checkpoint unpacked",
    "stock": "is a Hugging Face repo (gemma3), not a converted repo; convert_flax.py convert makes one",
    "fetched": "model.safetensors is a git-lfs pointer, not the file itself; type `git lfs pull` in fetched",
    "empty": "no config.json there: it is an empty folder",
    "loading": "it is a folder that is still being filled",
    "partial": "holds an unfinished conversion; repeat the command that began it",
    "photos": "it is a folder of other things (cat.jpg)",
}


@pytest.mark.parametrize("given", REPOS)
def test_what_is_no_repo(here, given):
    assert REPOS[given] in _refused(lambda given: check_repo_folder(Path(given), "verify"), given)


def test_what_each_verb_takes(here):
    check_repo_folder(Path("repos/awq"), "export")
    check_repo_folder(Path("gguf"), "verify")
    check_repo_folder(Path("stock"), "quality")
    assert "llama.cpp" in _refused(lambda given: check_repo_folder(Path(given), "quality"), "gguf")
    assert "wants the AWQ repo" in _refused(lambda given: check_repo_folder(Path(given), "export"), "gguf")


@pytest.mark.parametrize(
    ("check", "given", "said"),
    [
        (check_donor, "https://huggingface.co/google/gemma-3-4b-it", "type --donor google/gemma-3-4b-it"),
        (check_donor, "stock/model.safetensors", "is a safetensors file, not a folder; type --donor stock"),
        (check_donor, "unpacked", "is a folder of other things (ckpt, tokenizer.model), holds no model.safetensors"),
        (check_donor, "unpacked/ckpt", "is a Flax checkpoint (Orbax), holds no model.safetensors"),
        (check_donor, "repos", "type --donor repos/awq"),
        (check_donor, "fetched", "model.safetensors is a git-lfs pointer"),
        (check_donor, "./nowhere/else", "no such folder"),
        (check_tokenizer, Path("google/gemma-3-4b-it"), "hf download google/gemma-3-4b-it --include 'tokenizer*'"),
        (
            check_tokenizer,
            Path("stock/config.json"),
            "is a JSON file; --tokenizer takes a tokenizer.model, or a folder",
        ),
        (check_tokenizer, Path("stock/model.safetensors"), "is a safetensors file"),
        (
            check_tokenizer,
            Path("unpacked/ckpt"),
            "holds neither tokenizer.json nor tokenizer.model, is a Flax checkpoint",
        ),
        (check_tokenizer, Path("repos"), "type --tokenizer repos/awq"),
        (check_tokenizer, Path("archive.tar.gz"), "is an archive (gzip)"),
        (check_tokenizer, Path("pointer.safetensors"), "is a git-lfs pointer"),
        (check_tokenizer, Path("nowhere"), "no such folder"),
        (check_config, Path("stock"), "is a folder; type --config stock/config.json"),
        (check_config, Path("empty"), "is a folder; --config takes a config.json"),
        (check_config, Path("stock/model.safetensors"), "is a safetensors file"),
        (check_config, Path("archive.zip"), "is an archive (zip)"),
        (check_config, Path("nowhere.json"), "no such file"),
    ],
)
def test_what_is_no_donor_tokenizer_or_config(here, check, given, said):
    assert said in _refused(check, given)


def _refused(check, given) -> str:
    with pytest.raises(BadInput) as caught:
        check(given)
    said = str(caught.value)
    assert "\n" not in said
    return said
