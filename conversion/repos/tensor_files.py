"""The safetensors files of a Hugging Face repo, with an index or without: tensors by name, in the first key layout."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np

from conversion.errors import BadInput, shortened
from conversion.identify import is_pointer
from conversion.name_map import first_layout
from conversion.repos.safetensors_file import SafetensorsFile
from conversion.shards import INDEX

SINGLE = "model.safetensors"
NUMBERED = re.compile(r"(.*-)(\d{5})(-of-)(\d{5})\.safetensors")


class TensorFiles:
    """Reads tensors, or some of their rows; nothing is kept in memory but headers.

    Args:
        folder: the repo.

    Attributes:
        folder: as given.
        paths: its files of weights, sorted.
        stored_names: name of every tensor in the first key layout -> its name in its file.

    Raises:
        BadInput: there are none, one is missing or damaged, or two hold a tensor of the same name.
    """

    def __init__(self, folder: Path):
        self.folder, self.paths = folder, _weight_files(folder)
        self.stored_names: dict[str, str] = {}
        self._files: dict[str, SafetensorsFile] = {}
        for path in self.paths:
            file = SafetensorsFile(path)
            for stored in file.header:
                name = first_layout(stored)
                if name in self._files:
                    raise BadInput(f"{path}: holds {stored} a second time, {self._files[name].path.name} has it too")
                self._files[name], self.stored_names[name] = file, stored

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> list[str]:
        """Of all tensors, in the first key layout."""
        return list(self._files)

    def place(self, name: str) -> str:
        """Name of a tensor's file."""
        return self._files[name].path.name

    def shape(self, name: str) -> tuple[int, ...]:
        return self._files[name].shape(self.stored_names[name])

    def dtype(self, name: str) -> np.dtype:
        return self._files[name].dtype(self.stored_names[name])

    def nbytes(self, name: str) -> int:
        return math.prod(self.shape(name)) * self.dtype(name).itemsize

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A tensor as stored, or its rows from `start` to `stop`."""
        return self._files[name].read(self.stored_names[name], start, stop)


def _weight_files(folder: Path) -> list[Path]:
    """Those that the index names; without one the single file, or all.

    Raises:
        BadInput: none, or one is not there.
    """
    names = _indexed(folder)
    if names is None:
        found = sorted(path.name for path in folder.glob("*.safetensors") if path.name != "int4_embedding.safetensors")
        names = [SINGLE] if SINGLE in found else sorted({*found, *_fellows(found)})
    if not names:
        raise BadInput(f"{folder}: holds no safetensors files; download the repo again, weights included")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise BadInput(
            f"{folder}: {len(missing)} of {len(names)} files of weights are missing ({shortened(missing)}); download "
            "them again"
        )
    if pointers := [name for name in names if is_pointer(folder / name)]:
        raise BadInput(f"{folder}: {pointers[0]} is a git-lfs pointer, not the file itself; type `git lfs pull` there")
    return [folder / name for name in names]


def _indexed(folder: Path) -> list[str] | None:
    """Names of the files in the index, None without one."""
    path = folder / INDEX
    if not path.is_file():
        return None
    try:
        return sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: unreadable ({error}); download it again") from error


def _fellows(names: list[str]) -> set[str]:
    """Names of all files of a set of which some are there."""
    matches = filter(None, map(NUMBERED.fullmatch, names))
    return {f"{m[1]}{i:05d}{m[3]}{m[4]}.safetensors" for m in matches for i in range(1, int(m[4]) + 1)}
