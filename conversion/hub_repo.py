"""A Hugging Face repo made in a work folder and published in one go.

Everything happens in `OUTPUT/.partial`:

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
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from conversion.errors import BadInput

PARTIAL = ".partial"
PUBLISHED = ".published"


class WorkFolder:
    """`OUTPUT/.partial`, made or taken up again.

    Args:
        output: the folder that will hold the repo.

    Attributes:
        inherits: whether an earlier run finished shards in it; those are not this run's to discard.

    Raises:
        BadInput: the output folder holds anything but a work folder.
    """

    def __init__(self, output: Path):
        self.output = output
        self.path = output / PARTIAL
        self.repo = self.path / "repo"
        self._output_existed = output.exists()
        if output.exists() and not output.is_dir():
            raise BadInput(f"{output}: is a file; --output takes a folder that is empty or does not exist")
        found = {path.name for path in output.iterdir()} if output.exists() else set()
        expected = {PARTIAL, PUBLISHED, *(self._completion() or {"files": ()})["files"]}
        self.inherits = any((self.path / "shards").glob("*.json"))
        if foreign := sorted(found - expected):
            raise BadInput(f"{output}: is not empty (holds {foreign[0]}); give --output a new or an empty folder")

    @property
    def complete(self) -> bool:
        return self._completion() is not None

    def start(self, state: dict) -> None:
        """Makes the folder, or makes sure that it belongs to the same conversion.

        Raises:
            BadInput: it belongs to another one and stays as it is, or it cannot be made.
        """
        self.check(state)
        try:
            for folder in ("shards", "scales", "repo"):
                (self.path / folder).mkdir(parents=True, exist_ok=True)
        except (PermissionError, NotADirectoryError) as error:
            raise BadInput(f"{self.output}: cannot be made ({error}); give --output a folder elsewhere") from error
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
        for path in (self.path / "shards", self.path):  # first what says that shards are complete
            shutil.rmtree(path, ignore_errors=True)
        if not self._output_existed:
            with suppress(OSError):  # somebody else put something there
                self.output.rmdir()
        return error

    def write_json(self, name: str, values: object) -> None:
        """Writes a JSON file that is either whole or absent, whatever happens."""
        write_atomically(self.path / name, json.dumps(values, indent=1).encode())

    def read_json(self, name: str) -> dict:
        return json.loads((self.path / name).read_text())

    def open_scales(self, name: str) -> int:
        """A file descriptor of a file of waiting scales."""
        return os.open(self.path / "scales" / name, os.O_RDWR | os.O_CREAT, 0o644)

    def mark_complete(self, shard: str, facts: list[dict]) -> None:
        """Notes that a shard, its bytes already synced, needs no more work."""
        for folder in (self.repo, self.path / "scales", self.path, self.output):
            _sync(folder)  # the names of new files
        self.write_json(f"shards/{shard}.json", facts)

    def shard_facts(self, shard: str) -> list[dict] | None:
        """What `mark_complete` noted, None if it did not."""
        name = f"shards/{shard}.json"
        return self.read_json(name) if (self.path / name).exists() else None

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
                os.replace(self.repo / name, self.output / name)
        sync_folder(self.output)
        if (self.path / "complete").exists():
            os.replace(self.path / "complete", self.output / PUBLISHED)
            _sync(self.output)  # before the work folder goes
        shutil.rmtree(self.path)
        (self.output / PUBLISHED).unlink()

    def _completion(self) -> dict | None:
        """What `finish` noted, None if it did not."""
        paths = (self.path / "complete", self.output / PUBLISHED)
        return next((json.loads(path.read_text()) for path in paths if path.exists()), None)

    def _state(self) -> dict | None:
        """What is being converted, and how; None if nothing is."""
        if completion := self._completion():
            return completion["state"]
        return self.read_json("state.json") if (self.path / "state.json").exists() else None


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under another name, syncs it and renames it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync(path.parent)


def sync_folder(path: Path) -> None:
    """Makes names in a folder, and the files they name, survive a power cut."""
    for child in path.iterdir():
        if child.is_file():
            _sync(child)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
