"""One leaf of a checkpoint, a zarr array (version 2 or 3): shape first, bytes on demand.

* `Leaf.read()`: the whole leaf. `Leaf.blocks(rows)`: a matrix leaf in blocks of rows, in bounded memory.

Reading a slice of a zarr array decodes every chunk it touches in full, so chunks that follow each other in the order of
the array are decoded here as a stream; for any other layout tensorstore decodes chunk by chunk.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorstore as ts
import zstandard

from conversion.errors import BadInput
from conversion.source.stored_bytes import READ_BYTES, StoredBytes, plain_errors

REGION_BYTES = 1 << 26  # decoded bytes that tensorstore reads at a time, unless a single chunk is larger


@dataclass(frozen=True)
class Block:
    """Rows of a matrix leaf.

    Attributes:
        lead: index into the leaf's leading axes, all but the last two.
        row: first row.
        values: [rows, columns]; valid until the next block is asked for.
    """

    lead: tuple[int, ...]
    row: int
    values: np.ndarray


class Leaf:
    """One array of the checkpoint.

    Attributes:
        name: its path in the tree, parts joined by `/`, e.g. `transformer/layer_0/mlp/linear/w`.
        shape: its shape.
        dtype: its numpy dtype.
    """

    def __init__(self, name: str, key: str, array: dict, store: ts.KvStore, zarr3: bool):
        self.name = name
        self.shape = tuple(array["shape"])
        self.dtype = np.dtype(array["data_type"] if zarr3 else array["dtype"])
        self._key, self._store, self._zarr3 = key, store, zarr3
        self._chunk = tuple(array["chunk_grid"]["configuration"]["chunk_shape"] if zarr3 else array["chunks"])
        self._grid = [math.ceil(n / c) for n, c in zip(self.shape, self._chunk, strict=True)]
        self._coding = _coding_zarr3(array) if zarr3 else _coding_zarr2(array)
        if zarr3:
            separator = array["chunk_key_encoding"].get("configuration", {}).get("separator", "/")
            prefix = f"{key}/c{separator}"
        else:
            separator = array.get("dimension_separator", ".")
            prefix = f"{key}/"
        self._chunk_prefix, self._separator = prefix, separator

    @property
    def chunk_count(self) -> int:
        return math.prod(self._grid)

    @cached_property
    def chunk_keys(self) -> list[str]:
        """Storage keys of its chunks, in C order of the chunk grid."""
        indices = np.ndindex(*self._grid)
        return [self._chunk_prefix + self._separator.join(map(str, index)) for index in indices]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """The whole leaf.

        Raises:
            BadInput: its data cannot be decoded.
            SourceLost: its data cannot be read any more.
        """
        if self._streamable:
            return next(self._stream([self.size])).reshape(self.shape)
        with plain_errors(self.name):
            return self._open()[...].read().result()

    def blocks(self, rows: int) -> Iterator[Block]:
        """The leaf, seen as matrices [second last axis, last axis], in blocks of at most `rows` rows.

        Every row comes exactly once; a block stays within one matrix and starts at a multiple of `rows`.

        Raises:
            BadInput: the data cannot be decoded.
            SourceLost: the data cannot be read any more.
        """
        if not self._streamable:
            yield from self._regions(rows)
            return
        *lead, height, width = self.shape
        places = [(index, row) for index in np.ndindex(*lead) for row in range(0, height, rows)]
        arrays = self._stream([min(rows, height - row) * width for _, row in places])
        for (index, row), values in zip(places, arrays, strict=True):
            yield Block(index, row, values.reshape(-1, width))

    @property
    def _streamable(self) -> bool:
        """Whether the chunks in order are the array in order, coded in a way that `_stream` decodes."""
        split = [axis for axis, count in enumerate(self._grid) if count > 1]
        return self._coding is not None and (not split or all(n == 1 for n in self._chunk[: split[-1]]))

    def _stream(self, counts: list[int]) -> Iterator[np.ndarray]:
        """The elements in C order, in arrays of the given lengths, each valid until the next is asked for."""
        chunks = self._decoded_chunks()
        reader, left = None, 0
        room = np.empty(max(counts), self.dtype)
        for count in counts:
            target = memoryview(room[:count]).cast("B")
            while target:
                if not left:
                    reader, left = next(chunks)
                with plain_errors(self.name):
                    filled = reader.readinto(target[:left])
                if not filled:
                    raise BadInput(f"{self.name}: its data ends early; the checkpoint is damaged, download it again")
                target, left = target[filled:], left - filled
            yield room[:count]

    def _decoded_chunks(self) -> Iterator[tuple[zstandard.ZstdDecompressionReader | StoredBytes, int]]:
        """For each chunk a reader of its decoded bytes, and how many of them belong to the array."""
        row = math.prod(self._chunk) * self.dtype.itemsize
        split = max((axis for axis, count in enumerate(self._grid) if count > 1), default=None)
        for key, index in zip(self.chunk_keys, np.ndindex(*self._grid), strict=True):
            wanted = row
            if split is not None:  # the last chunk of the grid may reach beyond the array
                inside = min(self._chunk[split], self.shape[split] - index[split] * self._chunk[split])
                wanted = row // self._chunk[split] * inside
            with plain_errors(self.name):
                start, stop = 0, None
                if self._coding.indexed:
                    start, stop = self._inner_chunk(key)
                encoded = StoredBytes(self._store, key, start, stop)
            reader = zstandard.ZstdDecompressor().stream_reader(encoded, read_size=READ_BYTES)
            yield (reader if self._coding.zstd else encoded), wanted

    def _inner_chunk(self, key: str) -> tuple[int, int]:
        """Where the one inner chunk of a zarr 3 shard lies: the shard ends in (offset, length, crc32c)."""
        offset, length, _ = struct.unpack("<QQI", self._store.read(key, byte_range=slice(-20, None)).result().value)
        return offset, offset + length

    def _regions(self, rows: int) -> Iterator[Block]:
        """Blocks through tensorstore, in regions that follow the chunk grid so that each chunk is decoded once."""
        *lead, height, width = self.shape
        *lead_chunk, chunk_rows, _ = self._chunk
        step = math.lcm(chunk_rows, rows)
        step *= max(1, REGION_BYTES // (self.dtype.itemsize * width * step * math.prod(lead_chunk)))
        array = self._open()
        for corner in itertools.product(*(range(0, n, c) for n, c in zip(lead, lead_chunk, strict=True))):
            window = [slice(i, min(i + c, n)) for i, c, n in zip(corner, lead_chunk, lead, strict=True)]
            for top in range(0, height, step):
                with plain_errors(self.name):
                    region = array[(*window, slice(top, min(top + step, height)))].read().result()
                for offset in np.ndindex(region.shape[:-2]):
                    index = tuple(i + o for i, o in zip(corner, offset, strict=True))
                    for row in range(0, region.shape[-2], rows):
                        yield Block(index, top + row, region[offset][row : row + rows])

    def _open(self) -> ts.TensorStore:
        spec = {
            "driver": "zarr3" if self._zarr3 else "zarr",
            "kvstore": (self._store / f"{self._key}/").spec().to_json(),
            "fill_missing_data_reads": False,  # a missing chunk is an error, not zeros
        }
        with plain_errors(self.name):
            return ts.open(spec, open=True, read=True).result()


@dataclass(frozen=True)
class _Coding:
    """A chunk coding that can be decoded as a stream of little-endian values in C order."""

    zstd: bool
    indexed: bool = False  # zarr 3: wrapped as the only inner chunk of a shard


def _coding_zarr2(array: dict) -> _Coding | None:
    """The coding of a zarr 2 array, None if only tensorstore knows it."""
    compressor = array["compressor"]
    plain = array["order"] == "C" and not array["filters"] and not array["dtype"].startswith(">")
    if plain and compressor is None:
        return _Coding(zstd=False)
    return _Coding(zstd=True) if plain and compressor["id"] == "zstd" else None


def _coding_zarr3(array: dict) -> _Coding | None:
    """The coding of a zarr 3 array, None if only tensorstore knows it."""
    codecs, indexed = array["codecs"], False
    if codecs[0]["name"] == "sharding_indexed":
        shard = codecs[0]["configuration"]
        indexed = (
            len(codecs) == 1
            and shard["chunk_shape"] == array["chunk_grid"]["configuration"]["chunk_shape"]
            and shard.get("index_location", "end") == "end"
            and [codec["name"] for codec in shard["index_codecs"]] == ["bytes", "crc32c"]
        )
        if not indexed:
            return None
        codecs = shard["codecs"]
    names = [codec["name"] for codec in codecs]
    little = codecs[0].get("configuration", {}).get("endian") == "little"
    return _Coding(zstd="zstd" in names, indexed=indexed) if little and names[1:] in ([], ["zstd"]) else None
