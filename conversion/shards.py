"""Safetensors shards that are written in any order, in bounded memory, before all their dtypes are known.

* `split_into_shards`: tensors -> files of at most 2 GB, named as transformers names them.
* `Shard`: one such file while it is written.

The dtype of the quantization scales depends on every scale of the model, so it is known last. A shard therefore keeps
its scales at its end: everything else has its place from the start, scales wait as float32 in a file beside it, and
`Shard.finish` appends them and writes the header, whose room is reserved. The format is described at
https://github.com/huggingface/safetensors: a little-endian uint64 header length, a JSON header (spaces at its end are
allowed), then the tensors without gaps.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from conversion.folders.files import open_file, read_at, sync, write_at
from conversion.options import SHARD_BYTES
from conversion.tensor_spec import DTYPES, SCALES, TensorSpec

INDEX = "model.safetensors.index.json"
HEADER_ENTRY = 256  # more than the header says about one tensor
COPY_BYTES = 1 << 24


@dataclass(frozen=True)
class ShardLayout:
    """What one file will hold: tensors of known dtype first, scales last."""

    filename: str
    tensors: tuple[TensorSpec, ...]

    @property
    def header_room(self) -> int:
        """Bytes kept for the header, enough for any dtype of the scales; a multiple of 8."""
        longest = max(len(self._header(dtype)) for dtype in ("bfloat16", "float16", "float32"))
        return -(-longest // 8) * 8

    def header(self, scale_dtype: str) -> bytes:
        """Length and JSON header, padded to the reserved room."""
        room = self.header_room
        return room.to_bytes(8, "little") + self._header(scale_dtype).ljust(room)

    def nbytes(self, scale_dtype: str = "float32") -> int:
        return 8 + self.header_room + sum(spec.nbytes(scale_dtype) for spec in self.tensors)

    def _header(self, scale_dtype: str) -> bytes:
        header, offset = {"__metadata__": {"format": "pt"}}, 0
        for spec in self.tensors:
            dtype = scale_dtype if spec.dtype == SCALES else spec.dtype
            end = offset + spec.nbytes(scale_dtype)
            header[spec.name] = {"dtype": DTYPES[dtype][0], "shape": list(spec.shape), "data_offsets": [offset, end]}
            offset = end
        return json.dumps(header, separators=(",", ":")).encode()


def split_into_shards(groups: Iterable[list[TensorSpec]], limit: int = SHARD_BYTES) -> list[ShardLayout]:
    """Fills files in order; the tensors of one group stay together.

    Sizes are counted with float32 scales, so that the split does not depend on them. A group larger than the limit
    gets a file of its own.
    """
    shards: list[list[TensorSpec]] = []
    room = 0
    for group in groups:
        size = sum(spec.nbytes() + HEADER_ENTRY for spec in group)
        if not shards or size > room:
            shards.append([])
            room = limit
        shards[-1] += group
        room -= size
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(names) == 1:
        names = ["model.safetensors"]
    return [
        ShardLayout(name, tuple(sorted(specs, key=lambda spec: spec.dtype == SCALES)))
        for name, specs in zip(names, shards, strict=True)
    ]


class Shard:
    """One file while it is written; tensors arrive in any order, from any thread.

    Args:
        layout: what it will hold.
        path: where it is written.
        scales_path: where its scales wait as float32.
    """

    def __init__(self, layout: ShardLayout, path: Path, scales_path: Path):
        self.layout, self.path, self.scales_path = layout, path, scales_path
        self._places: dict[str, tuple[int, int]] = {}  # name -> file descriptor, offset
        self._data = open_file(path)
        self._scales = open_file(scales_path)
        data, scales = 8 + layout.header_room, 0
        for spec in layout.tensors:
            if spec.dtype == SCALES:
                self._places[spec.name] = (self._scales, scales)
                scales += spec.nbytes("float32")
            else:
                self._places[spec.name] = (self._data, data)
                data += spec.nbytes()
        self._scales_start = data

    def write(self, name: str, values: np.ndarray, start: int = 0) -> None:
        """Writes consecutive elements of a tensor from element `start` on. Scales are given as float32."""
        file, offset = self._places[name]
        write_at(file, offset + start * values.itemsize, values)

    def sync(self) -> None:
        sync(self._data)
        sync(self._scales)

    def finish(self, scale_dtype: str) -> None:
        """Appends the scales, rounded to their dtype, and writes the header. Doing it again changes nothing."""
        dtype = DTYPES[scale_dtype][1]
        offset, taken = self._scales_start, 0
        while waiting := read_at(self._scales, COPY_BYTES, taken):
            taken += len(waiting)
            with np.errstate(over="ignore", under="ignore"):
                rounded = np.frombuffer(waiting, np.float32).astype(dtype)
            write_at(self._data, offset, rounded)
            offset += rounded.nbytes
        write_at(self._data, 0, self.layout.header(scale_dtype))
        os.ftruncate(self._data, offset)
        sync(self._data)

    def close(self) -> None:
        os.close(self._data)
        os.close(self._scales)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
