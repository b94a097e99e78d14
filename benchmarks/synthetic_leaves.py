"""The leaves of a made-up checkpoint: drawn, compressed and written one after the other."""

from __future__ import annotations

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import tensorstore as ts
import zstandard
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.name_map import Entry, entries
from conversion.sizes import VOCABULARY

GROUP = 32
POOL_BYTES = 1 << 25  # values written over and over; far longer than zstd's window at level 1


def write_checkpoint(config: Gemma3Config | Gemma3TextConfig, directory: Path, values: str) -> None:
    """Writes an OCDBT checkpoint of zarr 2 arrays, one zstd chunk a leaf, as Orbax writes it."""
    directory.mkdir(parents=True)
    store = ts.KvStore.open(
        {"driver": "ocdbt", "base": {"driver": "file", "path": f"{directory.absolute()}/"}}
    ).result()
    rng = np.random.default_rng(0)
    pools: dict[tuple[int, bool], np.ndarray] = {}
    tree = {}
    for entry in entries(config, VOCABULARY):
        module, name = entry.leaf.rsplit("/", 1)
        array = {
            "chunks": entry.leaf_shape,
            "compressor": {"id": "zstd", "level": 1},
            "dimension_separator": ".",
            "dtype": "<f4",
            "fill_value": None,
            "filters": None,
            "order": "C",
            "shape": entry.leaf_shape,
            "zarr_format": 2,
        }
        key = f"{module}.{name}"
        store.write(f"{key}/.zarray", json.dumps(array).encode()).result()
        store.write(f"{key}/{'.'.join('0' for _ in entry.leaf_shape)}", _encode(entry, rng, pools, values)).result()
        tree[str((module, name))] = {
            "key_metadata": [{"key": module, "key_type": 2}, {"key": name, "key_type": 2}],
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
    (directory / "_METADATA").write_text(json.dumps({"tree_metadata": tree, "use_zarr3": False}))


def _encode(entry: Entry, rng: np.random.Generator, pools: dict, values: str) -> bytes:
    """The compressed bytes of one leaf."""
    size = math.prod(entry.leaf_shape)
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=4 * size)
    if not entry.int4:
        noise = rng.standard_normal(min(size, 1 << 20)).astype(np.float32) * np.float32(0.02)
        return compressor.compress(np.resize(noise, size).tobytes()) + compressor.flush()
    width = entry.leaf_shape[-1]
    key = (width, entry.grouped_by_row)
    if key not in pools:
        pools[key] = _pool(width, entry.grouped_by_row, rng, values)
    pool = memoryview(pools[key].reshape(-1)).cast("B")
    parts = []
    for start in range(0, 4 * size, len(pool)):
        parts.append(compressor.compress(pool[: min(len(pool), 4 * size - start)]))
    return b"".join(parts) + compressor.flush()


def _pool(width: int, by_row: bool, rng: np.random.Generator, values: str) -> np.ndarray:
    """Rows on the grid, float32 [rows, width], rows a multiple of 32."""
    rows = max(1, POOL_BYTES // (4 * width * GROUP)) * GROUP
    shape = (rows, width // GROUP, GROUP, 1) if by_row else (rows // GROUP, 1, GROUP, width)
    codes = rng.integers(-7, 8, shape)
    scales = rng.uniform(0.001, 0.01, (*shape[:2], 1, shape[3])).astype(ml_dtypes.bfloat16).astype(np.float32)
    if values == "repeated":
        codes[:], scales[:] = codes[:1, :1, :, :1], scales[:1, :1, :, :1]
    return (codes.astype(np.float32) * scales).reshape(rows, width)
