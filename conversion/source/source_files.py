"""The files that a source consists of: names, sizes, and what tells one source from another in no time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from conversion.errors import SourceLost

SAMPLE_BYTES = 1 << 16  # bytes hashed at either end of a file for the fingerprint


@dataclass(frozen=True)
class SourceFiles:
    """Files below a folder.

    Attributes:
        folder: what their names are relative to.
        paths: the files below it, sorted.
    """

    folder: Path
    paths: tuple[Path, ...]

    def sizes(self) -> dict[str, int]:
        """Bytes of every file, by its path below the folder."""
        return {self._name(path): path.stat().st_size for path in self.paths}

    def times(self) -> list[int]:
        """When each was last written, in nanoseconds."""
        return [path.stat().st_mtime_ns for path in self.paths]

    def fingerprint(self) -> str:
        """SHA-256 over names, sizes and both ends (64 KiB each) of every file: tells sources apart in no time.

        It does not prove every byte; that takes hashes of the whole files.

        Raises:
            SourceLost: a file cannot be read.
        """
        digest = hashlib.sha256()
        for path in self.paths:
            try:
                size = path.stat().st_size
                digest.update(f"{self._name(path)} {size}\n".encode())
                with path.open("rb") as file:
                    digest.update(file.read(SAMPLE_BYTES))
                    file.seek(max(0, size - SAMPLE_BYTES))
                    digest.update(file.read(SAMPLE_BYTES))
            except OSError as error:
                raise SourceLost(f"{path}: cannot be read: {error}") from error
        return digest.hexdigest()

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()
