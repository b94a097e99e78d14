"""An Orbax checkpoint: its leaves from metadata alone, and a check that their data is there.

Orbax stores a leaf as a zarr array, by default as a single zstd-compressed chunk, all arrays inside one OCDBT database
or each in a folder of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import tensorstore as ts

from conversion.arguments import find_checkpoint
from conversion.errors import BadInput, SourceLost, shortened
from conversion.source.source_files import SourceFiles
from conversion.source.stored_bytes import last_byte, plain_errors, reason_of, refused
from conversion.source.zarr_leaf import Leaf


class FlaxCheckpoint:
    """An Orbax checkpoint on disk.

    Attributes:
        directory: where `_METADATA` lies: the given folder, or the one below it that holds a checkpoint (Kaggle's
            archives keep the checkpoint beside `tokenizer.model`).
        leaves: every leaf by name.
        files: all of its files.

    Raises:
        BadInput: no checkpoint there, metadata that cannot be read, or data that is missing or cut short.
    """

    def __init__(self, directory: Path):
        self.directory = find_checkpoint(directory)
        metadata = self._metadata()
        zarr3 = metadata["zarr3"]
        self._ocdbt = (self.directory / "manifest.ocdbt").exists()
        store = self._open_store()
        with plain_errors(str(self.directory)):
            present = {key.decode() for key in store.list().result()}
        self.leaves: dict[str, Leaf] = {}
        problems = []
        for path in metadata["paths"]:
            name, key = "/".join(path), ".".join(path)
            array_file = f"{key}/{'zarr.json' if zarr3 else '.zarray'}"
            if array_file not in present:
                problems.append(f"{name}: listed in _METADATA, but its array is missing")
                continue
            with plain_errors(name):
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
        self.files = SourceFiles(self.directory, tuple(sorted(p for p in self.directory.rglob("*") if p.is_file())))
        problems += self._unreadable(store)
        if problems:
            raise BadInput(f"{self.directory}: damaged checkpoint, download it again: {shortened(problems)}")

    @property
    def nbytes(self) -> int:
        """Decoded size of all leaves."""
        return sum(leaf.nbytes for leaf in self.leaves.values())

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
        with plain_errors(str(self.directory)):
            return ts.KvStore.open({"driver": "ocdbt", "base": base} if self._ocdbt else base).result()

    def _unreadable(self, store: ts.KvStore) -> list[str]:
        """Chunks whose last byte cannot be fetched: their data file is gone or cut short."""
        pending = [(leaf, last_byte(store, key)) for leaf in self.leaves.values() for key in leaf.chunk_keys]
        problems = {}
        for leaf, future in pending:
            try:
                reason = "" if future.result().value else "it is gone"
            except ValueError as error:
                if refused(error):
                    raise SourceLost(f"{leaf.name}: cannot be read: {reason_of(error)}") from error
                reason = reason_of(error)
            if reason:
                problems[leaf.name] = f"{leaf.name}: data file missing or cut short ({reason})"
        return list(problems.values())
