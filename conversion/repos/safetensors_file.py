"""A safetensors file, read tensor by tensor; nothing is kept in memory but its header."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from conversion.errors import BadInput
from conversion.tensor_spec import DTYPES

NUMPY_DTYPES = dict(DTYPES.values())  # safetensors' name -> numpy's


class SafetensorsFile:
    """One safetensors file; reads whole tensors or some of their rows.

    Raises:
        BadInput: the file is missing, cut short, or has no safetensors header.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                if length > path.stat().st_size:
                    raise ValueError(f"its header would be {length} bytes long")
                self.header = json.loads(file.read(length))
            self.header.pop("__metadata__", None)
            if unknown := {entry["dtype"] for entry in self.header.values()} - set(NUMPY_DTYPES):
                raise ValueError(f"unknown dtypes {sorted(unknown)}")
            self._start = 8 + length
            end = self._start + max(entry["data_offsets"][1] for entry in self.header.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path}: not readable as a safetensors file ({error})") from error
        if path.stat().st_size != end:
            raise BadInput(f"{path}: {path.stat().st_size} bytes, its header says {end}; copy or convert it again")

    def dtype(self, name: str) -> np.dtype:
        return NUMPY_DTYPES[self.header[name]["dtype"]]

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.header[name]["shape"])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """A tensor as stored, or its rows from `start` to `stop`."""
        dtype, (rows, *row) = self.dtype(name), self.shape(name)
        stop = rows if stop is None else stop
        width = math.prod(row)
        offset = self._start + self.header[name]["data_offsets"][0] + start * width * dtype.itemsize
        values = np.fromfile(self.path, dtype, (stop - start) * width, offset=offset)
        return values.reshape(stop - start, *row)
