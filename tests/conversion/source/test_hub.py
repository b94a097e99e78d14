"""`hf:REPO[/FILE]`: which files of a repo are fetched, and what is said where none are.

Run: pytest tests/conversion/source/test_hub.py
"""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from conversion.arguments import source_path
from conversion.errors import BadInput, NoSpace, SourceLost
from conversion.source import hub
from tests.conversion.helpers.gguf_files import MODEL, TOWER, make_files
from tests.conversion.helpers.tiny import command_line

GOOGLE = "google/gemma-3-tiny-it-qat-q4_0-gguf"
PARTS = ["q/a-00001-of-00002.gguf", "q/a-00002-of-00002.gguf"]


@pytest.fixture
def repos(monkeypatch, tmp_path):
    """Repos by name, each a list of files or an error; downloads are noted and lie in a folder a repo."""
    known, fetched = {}, []

    def files(repo):
        if isinstance(known[repo], Exception):
            raise known[repo]
        return known[repo]

    def download(repo, name):
        fetched.append(name)
        path = tmp_path / "cache" / repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return str(path)

    monkeypatch.setattr(hub, "list_repo_files", files)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "snapshot_download", lambda repo, allow_patterns: str(tmp_path / "cache" / repo))
    return SimpleNamespace(known=known, fetched=fetched, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("files", "asked", "expected"),
    [
        ([MODEL, TOWER, "README.md"], "", [MODEL, TOWER]),
        ([MODEL, TOWER, "LICENSE"], "", [MODEL, TOWER, "LICENSE"]),
        ([MODEL, TOWER], f"/{MODEL}", [MODEL, TOWER]),
        ([MODEL], "/", [MODEL]),
        (["a-Q8_0.gguf", "a-Q4_0.gguf", "a-Q4_K_M.gguf"], "", ["a-Q4_0.gguf"]),
        (["a-Q8_0.gguf", "a-Q4_0.gguf"], "/a-Q8_0.gguf", ["a-Q8_0.gguf"]),
        ([*PARTS, "mmproj.gguf"], "", PARTS),
        ([*PARTS, "q/mmproj.gguf"], f"/{PARTS[1]}", [*PARTS, "q/mmproj.gguf"]),
    ],
)
def test_what_is_fetched(repos, files, asked, expected):
    repos.known[GOOGLE] = files
    assert hub.download(f"hf:{GOOGLE}{asked}") == repos.cache / GOOGLE / expected[0]
    assert repos.fetched == expected


def test_the_tower_is_not_fetched_where_another_is_named(repos):
    repos.known[GOOGLE] = [MODEL, TOWER]
    source_path(f"hf:{GOOGLE}", tower=False)
    assert repos.fetched == [MODEL]


def test_repos_without_gguf_files_are_fetched_whole(repos):
    repos.known["someone/awq"] = ["config.json", "model.safetensors"]
    assert hub.download("hf:someone/awq") == repos.cache / "someone/awq"


@pytest.mark.parametrize(
    ("files", "asked", "error", "message"),
    [
        ([], "hf:owner", BadInput, "is no name of a repo; type e.g. hf:google/gemma-3-27b-it-qat-q4_0-gguf"),
        (["a-Q8_0.gguf", "a-Q5_0.gguf"], "", BadInput, "name one, as hf:o/r/a-Q5_0.gguf"),
        (["a.gguf", "mmproj-1.gguf", "mmproj-2.gguf"], "", BadInput, "holds 2 mmproj files"),
        (["a.gguf"], "hf:o/r/b.gguf", BadInput, "there is no such GGUF model there, but a.gguf"),
        (GatedRepoError, "", BadInput, "log in at https://huggingface.co/o/r, agree to its license"),
        (RepositoryNotFoundError, "", BadInput, "no repo that is yours to read"),
        (LocalEntryNotFoundError, "", SourceLost, "the Hub cannot be reached"),
        (ConnectionError, "", SourceLost, "the Hub cannot be reached"),
        (OSError(28, "No space left on device"), "", NoSpace, "No space left on device"),
    ],
)
def test_what_is_said(repos, files, asked, error, message):
    if isinstance(files, type):
        response = SimpleNamespace(headers={}, status_code=403, request=None)
        files = (
            files("no", response=response) if files not in (LocalEntryNotFoundError, ConnectionError) else files("no")
        )
    repos.known["o/r"] = files
    with pytest.raises(error, match=message.replace(".", r"\.")):
        hub.download(asked or "hf:o/r")


def test_a_repo_of_the_hub_becomes_a_repo(repos, tmp_path, monkeypatch):
    """From the command to the converted repo; the tower lies beside the model in the cache."""
    made = make_files(tmp_path / "made")
    repos.known[GOOGLE] = [MODEL, TOWER]

    def download(repo, name):
        path = repos.cache / repo / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made.parent / name, path)
        return str(path)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    output = str(tmp_path / "repo")
    assert command_line(["convert", "--checkpoint", f"hf:{GOOGLE}", "--output", output, "--verify"]) == 0
    assert command_line(["verify", output, "--checkpoint", f"hf:{GOOGLE}/{MODEL}"]) == 0
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    inside = str(Path(hub.cache_folder(), "repo"))
    assert command_line(["convert", "--checkpoint", f"hf:{GOOGLE}", "--output", inside]) == 2
