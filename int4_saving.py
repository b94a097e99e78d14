# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Where a model is saved: a folder or a repo of the Hub in which another one may lie already.

What this file offers:
    replacing    a folder for the new files, which take the place of the old ones once all are written
    push         the same for a repo of the Hub, in one commit
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SIDE_FILE = "int4_embedding.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
# In which files a repo holds its weights.
WEIGHT_FILE = re.compile(rf"model(-\d{{5}}-of-\d{{5}})?\.safetensors|{re.escape(INDEX)}|{re.escape(SIDE_FILE)}")


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder for new files, which at the end take the place of those in `folder`.

    Until all are written, what `folder` holds is left alone. config.json goes first and comes last, so that a
    replacement that is cut short loads as nothing rather than as a mixture.

    Raises:
        FileExistsError: `folder` holds an adapter.
        OSError: a file could not be written, or not be replaced.
    """
    made = not folder.exists()
    if not made:
        _refuse_adapter(folder, os.listdir(folder))
    folder.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix="unfinished-save-", dir=folder))
    try:
        yield new
    except BaseException:
        shutil.rmtree(new)
        if made:
            with contextlib.suppress(OSError):  # somebody else has put files there
                folder.rmdir()
        raise
    try:
        (folder / CONFIG).unlink(missing_ok=True)
        for name in _weight_files(folder):
            (folder / name).unlink(missing_ok=True)
        for file in sorted(new.iterdir(), key=lambda file: file.name == CONFIG):
            file.replace(folder / file.name)
        new.rmdir()
    except OSError as error:  # on Windows a file that a model in memory has open
        raise OSError(f"{folder} is replaced in part only ({error}): move what is left in {new} there.") from error


def push(folder: Path, repo_id: str, *, revision: str | None = None, token=None, **kwargs) -> CommitInfo:
    """Uploads the files of `folder` in one commit that also deletes weights which it does not replace.

    Args:
        folder: without subfolders.
        repo_id, revision, token, **kwargs: as for the Hub's library (`HfApi.create_commit`).

    Raises:
        FileExistsError: the repo holds an adapter.
    """
    api = HfApi(token=token)
    if revision is not None and not revision.startswith("refs/pr"):
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    before = api.list_repo_files(repo_id, revision=revision)
    _refuse_adapter(repo_id, before)
    files = {file.name: file for file in sorted(folder.iterdir())}
    stale = set(filter(WEIGHT_FILE.fullmatch, before)) - set(files)
    operations = [CommitOperationAdd(name, file) for name, file in files.items()]
    operations += [CommitOperationDelete(name) for name in sorted(stale)]
    return api.create_commit(repo_id, operations, revision=revision, **kwargs)


def _refuse_adapter(place: Path | str, names: list[str]) -> None:
    if ADAPTER_CONFIG in names:
        raise FileExistsError(
            f"{place} holds {ADAPTER_CONFIG}: transformers would load this adapter on top of the weights saved there. "
            "Save elsewhere, or remove the adapter first."
        )


def _weight_files(folder: Path) -> set[str]:
    """Names of the files in which `folder` holds a model: shards, also oddly named ones, their index, the side file."""
    names = set(filter(WEIGHT_FILE.fullmatch, os.listdir(folder)))
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):  # no index, or a broken one
        shards = json.loads((folder / INDEX).read_text())["weight_map"].values()
        names |= {name for name in shards if name == Path(name).name and name.endswith(".safetensors")}
    return names
