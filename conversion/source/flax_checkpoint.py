"""Lazy leaves of an Orbax checkpoint: names, shapes and dtypes first, bytes on demand.

* `FlaxCheckpoint(directory)`: finds the checkpoint, lists its leaves from metadata alone, checks that data is there.
* `Leaf.read()`: a whole leaf. `Leaf.blocks(rows)`: a matrix leaf in blocks of rows, in bounded memory.

Orbax stores a leaf as a zarr array (version 2 or 3), by default as a single zstd-compressed chunk, all arrays inside
one OCDBT database or each in a folder of its own. Reading a slice of a zarr array decodes every chunk it touches in
full, so chunks that follow each other in the order of the array are decoded here as a stream; for any other layout
tensorstore decodes chunk by chunk.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import tensorstore as ts
import zstandard

from conversion.arguments import find_checkpoint
from conversion.errors import BadInput, SourceLost, shortened

READ_BYTES = 1 << 20  # encoded bytes fetched at a time when streaming a chunk
REGION_BYTES = 1 << 26  # decoded bytes that tensorstore reads at a time, unless a single chunk is larger
SAMPLE_BYTES = 1 << 16  # bytes hashed at either end of a data file for the fingerprint


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


class FlaxCheckpoint:
    """An Orbax checkpoint on disk.

    Attributes:
        directory: where `_METADATA` lies: the given folder, or the one below it that holds a checkpoint (Kaggle's
            archives keep the checkpoint beside `tokenizer.model`).
        leaves: every leaf by name.

    Raises:
        BadInput: no checkpoint there, metadata that cannot be read, or data that is missing or cut short.
    """

    def __init__(self, directory: Path):
        self.directory = find_checkpoint(directory)
        metadata = self._metadata()
        zarr3 = metadata["zarr3"]
        self._ocdbt = (self.directory / "manifest.ocdbt").exists()
        store = self._open_store()
        with _plain_errors(str(self.directory)):
            present = {key.decode() for key in store.list().result()}
        self.leaves: dict[str, Leaf] = {}
        problems = []
        for path in metadata["paths"]:
            name, key = "/".join(path), ".".join(path)
            array_file = f"{key}/{'zarr.json' if zarr3 else '.zarray'}"
            if array_file not in present:
                problems.append(f"{name}: listed in _METADATA, but its array is missing")
                continue
            with _plain_errors(name):
                described = store.read(array_file).result().value
            try:
                leaf = Leaf(name, key, json.loads(described), store, zarr3)
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                problems.append(f"{name}: its array metadata is garbled ({error!r})")
                continue
            if leaf.chunk_count > len(present):
                problems.append(f"{name}: its array metadata asks for {leaf.chunk_count} chunks")
                continue
            if absent := [chunk for chunk in leaf.chunk_keys if chunk not in present]:
                problems.append(f"{name}: {len(absent)} of {len(leaf.chunk_keys)} data chunks are missing")
            self.leaves[name] = leaf
        problems += self._unreadable(store)
        if problems:
            raise BadInput(f"{self.directory}: damaged checkpoint, download it again: {shortened(problems)}")

    @property
    def nbytes(self) -> int:
        """Decoded size of all leaves."""
        return sum(leaf.nbytes for leaf in self.leaves.values())

    def files(self) -> list[Path]:
        """Every file of the checkpoint, sorted."""
        return sorted(path for path in self.directory.rglob("*") if path.is_file())

    def file_sizes(self) -> dict[str, int]:
        """Bytes of every file, by its path below the checkpoint."""
        return {path.relative_to(self.directory).as_posix(): path.stat().st_size for path in self.files()}

    def fingerprint(self) -> str:
        """SHA-256 over names, sizes and both ends (64 KiB each) of every file: tells checkpoints apart in no time.

        It does not prove every byte; that takes hashes of the whole files.
        """
        digest = hashlib.sha256()
        for path in self.files():
            size = path.stat().st_size
            digest.update(f"{path.relative_to(self.directory).as_posix()} {size}\n".encode())
            with _plain_errors(str(path)), path.open("rb") as file:
                digest.update(file.read(SAMPLE_BYTES))
                file.seek(max(0, size - SAMPLE_BYTES))
                digest.update(file.read(SAMPLE_BYTES))
        return digest.hexdigest()

    def _metadata(self) -> dict:
        """The paths of all leaves in the tree, and the zarr version."""
        path = self.directory / "_METADATA"
        try:
            metadata = json.loads(path.read_text())
            nodes = [value["key_metadata"] for value in metadata["tree_metadata"].values()]
            paths = [[str(part["key"]) for part in node] for node in nodes]
        except OSError as error:
            raise SourceLost(f"{path}: cannot be read: {error}") from error
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise BadInput(f"{path}: not Orbax metadata ({error!r}); download the checkpoint again") from error
        return {"paths": paths, "zarr3": bool(metadata.get("use_zarr3"))}

    def _open_store(self) -> ts.KvStore:
        base = {"driver": "file", "path": f"{self.directory.resolve()}/"}
        with _plain_errors(str(self.directory)):
            return ts.KvStore.open({"driver": "ocdbt", "base": base} if self._ocdbt else base).result()

    def _unreadable(self, store: ts.KvStore) -> list[str]:
        """Chunks whose last byte cannot be fetched: their data file is gone or cut short."""
        pending = [(leaf, _last_byte(store, key)) for leaf in self.leaves.values() for key in leaf.chunk_keys]
        problems = {}
        for leaf, future in pending:
            try:
                reason = "" if future.result().value else "it is gone"
            except ValueError as error:
                if _refused(error):
                    raise SourceLost(f"{leaf.name}: cannot be read: {_reason(error)}") from error
                reason = _reason(error)
            if reason:
                problems[leaf.name] = f"{leaf.name}: data file missing or cut short ({reason})"
        return list(problems.values())


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
        with _plain_errors(self.name):
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
                with _plain_errors(self.name):
                    filled = reader.readinto(target[:left])
                if not filled:
                    raise BadInput(f"{self.name}: its data ends early; the checkpoint is damaged, download it again")
                target, left = target[filled:], left - filled
            yield room[:count]

    def _decoded_chunks(self) -> Iterator[tuple[zstandard.ZstdDecompressionReader | _StoredBytes, int]]:
        """For each chunk a reader of its decoded bytes, and how many of them belong to the array."""
        row = math.prod(self._chunk) * self.dtype.itemsize
        split = max((axis for axis, count in enumerate(self._grid) if count > 1), default=None)
        for key, index in zip(self.chunk_keys, np.ndindex(*self._grid), strict=True):
            wanted = row
            if split is not None:  # the last chunk of the grid may reach beyond the array
                inside = min(self._chunk[split], self.shape[split] - index[split] * self._chunk[split])
                wanted = row // self._chunk[split] * inside
            with _plain_errors(self.name):
                start, stop = 0, None
                if self._coding.indexed:
                    start, stop = self._inner_chunk(key)
                encoded = _StoredBytes(self._store, key, start, stop)
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
                with _plain_errors(self.name):
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
        with _plain_errors(self.name):
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


class _StoredBytes:
    """A stored value as a file, read piece by piece with one piece fetched ahead."""

    def __init__(self, store: ts.KvStore, key: str, start: int, stop: int | None):
        self._store, self._key, self._position, self._stop = store, key, start, stop
        self._piece = memoryview(b"")
        self._ahead = self._fetch()

    def read(self, size: int) -> bytes:
        """The next piece as it comes, whatever size is asked for; empty at the end."""
        return self._arrive() if self._ahead is not None else b""

    def readinto(self, target: memoryview) -> int:
        if not self._piece:
            self._piece = memoryview(self.read(READ_BYTES))
        count = min(len(target), len(self._piece))
        target[:count], self._piece = self._piece[:count], self._piece[count:]
        return count

    def _fetch(self) -> ts.Future | None:
        end = self._position + READ_BYTES
        if self._stop is not None:
            end = min(end, self._stop)
        if end == self._position:
            return None
        return self._store.read(self._key, byte_range=slice(self._position, end))

    def _arrive(self) -> bytes:
        try:
            piece = self._ahead.result().value
        except ValueError as error:
            if "OUT_OF_RANGE" not in str(error) or self._stop is not None:
                raise
            # A whole piece reaches beyond the end of the value, so this is the last one.
            piece, self._stop = self._store.read(self._key, byte_range=slice(self._position, None)).result().value, -1
        if not piece and not _last_byte(self._store, self._key).result().value:
            raise ValueError(f"NOT_FOUND: the data of {self._key}")
        self._position += len(piece)
        self._ahead = None if self._stop == -1 else self._fetch()
        return piece


def _last_byte(store: ts.KvStore, key: str) -> ts.Future:
    """The last byte of a stored value; empty if the file that holds it is gone, which OCDBT does not call an error."""
    return store.read(key, byte_range=slice(-1, None))


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """Turns what tensorstore and zstandard raise into errors that say what to do."""
    try:
        yield
    except zstandard.ZstdError as error:
        raise BadInput(f"{what}: its compressed data is damaged ({error}); download the checkpoint again") from error
    except ValueError as error:
        if _refused(error) or any(code in str(error) for code in ("NOT_FOUND", "OUT_OF_RANGE", "UNAVAILABLE")):
            raise SourceLost(f"{what}: cannot be read: {_reason(error)}; is the file still there?") from error
        raise BadInput(f"{what}: damaged: {_reason(error)}; download the checkpoint again") from error
    except OSError as error:
        raise SourceLost(f"{what}: cannot be read: {error}") from error


def _refused(error: Exception) -> re.Match | None:
    """The number of the operating system's error if it refused to read; bytes that were read and make no sense lack it.

    Whatever tensorstore calls it: EIO is UNKNOWN, a time-out DEADLINE_EXCEEDED, a lack of memory RESOURCE_EXHAUSTED.
    """
    return re.search(r"os_error_code='(\d+)'", str(error))


def _reason(error: Exception) -> str:
    """The operating system's words, or the first clause of tensorstore's message, without its source locations."""
    if number := _refused(error):
        return os.strerror(int(number[1]))
    return str(error).split(" [", 1)[0].split("\n", 1)[0]
