"""A Hugging Face repo made in a work folder and published in one go.

Everything happens in `OUTPUT/.partial`, by one process at a time (`folder_lock.py`):

    state.json              what is being converted, and how: the same command may resume, any other is refused
    shards/*.json           facts of each complete shard; its presence says that the shard is complete and synced
    scales/*                float32 scales waiting for their final dtype
    repo/*                  the files of the repo
    complete                state.json and the names in `repo/`: all is there and synced, what remains is moving it

Nothing gets its final name before `complete` is there. Once every file has its own, `complete` becomes
`OUTPUT/.published`: what remains is removing the work folder, and then that file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from conversion.errors import BadInput
from conversion.folders.files import replace, sync_folder, sync_names, write_atomically
from conversion.folders.folder_lock import LOCK, FolderLock
from conversion.folders.folder_lock import NAMES as LOCK_NAMES
from conversion.shards import Shard, ShardLayout

PARTIAL = ".partial"
PUBLISHED = ".published"


class WorkFolder:
    """`OUTPUT/.partial`, made or taken up again; as a context manager this process's alone.

    Args:
        output: the folder that will hold the repo.

    Attributes:
        inherits: whether an earlier run finished shards in it; those are not this run's to discard.
        note: what the user should know about the lock, None if nothing.

    Raises:
        BadInput: another process writes there, or the output folder holds anything but a work folder.
    """

    def __init__(self, output: Path):
        self.output = output
        self.path = output / PARTIAL
        self.repo = self.path / "repo"
        if output.exists() and not output.is_dir():
            raise BadInput(f"{output}: is a file; --output takes a folder that is empty or does not exist")
        self._lock = FolderLock(output)
        self._lock.check()
        self._look()

    def __enter__(self) -> WorkFolder:
        """Takes the lock of the output folder, which is made if need be.

        Raises:
            BadInput: another process has it, or the folder cannot be made, or was filled meanwhile.
        """
        with ExitStack() as stack:
            stack.enter_context(self._lock)
            self._look()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def note(self) -> str | None:
        return self._lock.note

    def _look(self) -> None:
        found = {path.name for path in self.output.iterdir()} if self.output.exists() else set()
        expected = {PARTIAL, PUBLISHED, *LOCK_NAMES, *(self._completion() or {"files": ()})["files"]}
        self.inherits = any((self.path / "shards").glob("*.json"))
        if foreign := sorted(found - expected):
            raise BadInput(f"{self.output}: is not empty (holds {foreign[0]}); give --output a new or an empty folder")

    @property
    def complete(self) -> bool:
        return self._completion() is not None

    def start(self, state: dict) -> None:
        """Makes the folder, or makes sure that it belongs to the same conversion.

        Raises:
            BadInput: it belongs to another one and stays as it is.
        """
        self.check(state)
        for folder in ("shards", "scales", "repo"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        if self._state() is None:
            self.write_json("state.json", state)

    def check(self, state: dict) -> None:
        """Raises BadInput if there is an unfinished conversion, and another one."""
        before, state = self._state(), json.loads(json.dumps(state))
        if before is not None and before != state:
            changed = ", ".join(sorted(key for key in before | state if before.get(key) != state.get(key)))
            raise BadInput(
                f"{self.output}: holds an unfinished conversion that differs in: {changed}; repeat the command that "
                f"began it, or empty the folder to begin anew"
            )

    def discard(self, error: BadInput) -> BadInput:
        """Leaves the output folder as it was before this run began; returns the error, to be raised."""
        if self.inherits:
            return BadInput(f"{error}; what an earlier run finished stays in {self.path}: remove it to begin anew")
        self.remove()
        return error

    def remove(self) -> None:
        """Removes all but the output folder itself, first what says that shards are complete."""
        for path in (self.path / "shards", self.path):
            shutil.rmtree(path, ignore_errors=True)

    def write_json(self, name: str, values: object) -> None:
        """Writes a JSON file that is either whole or absent, whatever happens."""
        write_atomically(self.path / name, json.dumps(values, indent=1).encode())

    def open_shard(self, layout: ShardLayout) -> Shard:
        """A shard to be written; its file and its waiting scales are made if they are missing."""
        return Shard(layout, self.repo / layout.filename, self.path / "scales" / layout.filename)

    def mark_complete(self, shard: str, facts: list[dict]) -> None:
        """Notes that a shard, its bytes already synced, needs no more work."""
        for folder in (self.repo, self.path / "scales", self.path, self.output):
            sync_names(folder)  # the names of new files
        self.write_json(f"shards/{shard}.json", facts)

    def shard_facts(self, shard: str) -> list[dict] | None:
        """What `mark_complete` noted, None if it did not."""
        return _read(self.path / f"shards/{shard}.json")

    def finish(self, names: Iterable[str] | None = None) -> None:
        """Notes that all of the repo is there.

        Args:
            names: the files, all of `repo/` by default.
        """
        sync_folder(self.repo)
        files = sorted(names or (path.name for path in self.repo.iterdir()))
        self.write_json("complete", {"state": self._state(), "files": files})

    def publish(self) -> None:
        """Gives every file its final name; goes on where an interruption left it."""
        for name in self._completion()["files"]:
            if (self.repo / name).exists():
                replace(self.repo / name, self.output / name)
        sync_folder(self.output)
        if (self.path / "complete").exists():
            replace(self.path / "complete", self.output / PUBLISHED)
            sync_names(self.output)  # before the work folder goes
        shutil.rmtree(self.path)
        (self.output / PUBLISHED).unlink()

    def _completion(self) -> dict | None:
        """What `finish` noted, None if it did not."""
        return _read(self.path / "complete") or _read(self.output / PUBLISHED)

    def _state(self) -> dict | None:
        """What is being converted, and how; None if nothing is."""
        completion = self._completion()
        return completion["state"] if completion else _read(self.path / "state.json")


def _read(path: Path) -> dict | None:
    """A JSON file, None if there is none."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return json.loads(path.read_text())


def check_finished(repo: Path) -> None:
    """Raises BadInput if a conversion writes into this folder, or one was interrupted there."""
    FolderLock(repo).check()
    if (repo / PARTIAL).exists() or (repo / PUBLISHED).exists():
        raise BadInput(f"{repo}: holds an unfinished conversion; repeat the command that began it, to its end")
    if (repo / LOCK).exists():  # of a process that was killed once all was done
        with suppress(BadInput), FolderLock(repo):
            pass
