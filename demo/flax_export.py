"""The way back: a transformers state dict -> a Kaggle-layout Orbax checkpoint.

The demo checkpoint takes this way, and tests use it to build checkpoints of every variant that the converter reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import torch
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.name_map import PADDING_ROWS, entries, first_layout


def export_flax(
    tensors: Mapping[str, torch.Tensor | np.ndarray],
    config: Gemma3Config | Gemma3TextConfig,
    directory: str | Path,
    *,
    embedding_rows: int | None = None,
    ocdbt: bool = True,
    zarr3: bool = False,
    chunk_bytes: int | None = None,
    compression: bool = True,
) -> None:
    """Writes a Gemma 3 state dict as a flat Orbax checkpoint of float32 leaves.

    Args:
        tensors: state dict in any key layout of transformers (`language_model.model.*`, `model.language_model.*`;
            text-only `model.*`); `lm_head` is tied and ignored.
        config: the model's configuration; a Gemma3TextConfig means a text-only checkpoint.
        directory: where to write; must not exist.
        embedding_rows: rows of the embedding to keep. Default: vocab_size, less the 64 zero rows that multimodal
            configs append.
        ocdbt: pack all leaves into an OCDBT database, as Orbax does by default; else one folder per leaf.
        zarr3: zarr version 3 instead of 2.
        chunk_bytes: split leaves into chunks of about this many bytes; default one chunk per leaf.
        compression: compress chunks with zstd, as Orbax does by default.

    Raises:
        ValueError: the state dict does not fill the checkpoint exactly, a shape disagrees with the config, or a row
            to be cut from the embedding is not zero.
    """
    tree = flax_tree(tensors, config, embedding_rows=embedding_rows)
    save_tree(tree, directory, ocdbt=ocdbt, zarr3=zarr3, chunk_bytes=chunk_bytes, compression=compression)


def save_tree(
    tree: Mapping[str, Mapping[str, np.ndarray]],
    directory: str | Path,
    *,
    ocdbt: bool = True,
    zarr3: bool = False,
    chunk_bytes: int | None = None,
    compression: bool = True,
) -> None:
    """Writes a flat tree of arrays with Orbax; the options are those of `export_flax`."""
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3, use_compression=compression)
    save_args = {
        module: {leaf: ocp.SaveArgs(chunk_byte_size=chunk_bytes) for leaf in leaves} for module, leaves in tree.items()
    }
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(Path(directory).absolute(), args=ocp.args.PyTreeSave(tree, save_args=save_args))


def flax_tree(
    tensors: Mapping[str, torch.Tensor | np.ndarray],
    config: Gemma3Config | Gemma3TextConfig,
    *,
    embedding_rows: int | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """A state dict as the flat tree `{"transformer/layer_0/attn/q_einsum": {"w": float32 array}, ...}`."""
    text = config.text_config if isinstance(config, Gemma3Config) else config
    if embedding_rows is None:
        embedding_rows = text.vocab_size - (PADDING_ROWS if isinstance(config, Gemma3Config) else 0)
    state = {first_layout(name): tensor for name, tensor in tensors.items() if "lm_head" not in name}

    tree: dict[str, dict[str, np.ndarray]] = {}
    for entry in entries(config, embedding_rows):
        parts = []
        for name in entry.tensors:
            if name not in state:
                raise ValueError(f"the state dict lacks {name}, which becomes {entry.leaf}")
            part = _float32(state.pop(name))
            if entry.is_embedding:
                if part[embedding_rows:].any():
                    raise ValueError(f"{name}: rows from {embedding_rows} on are cut and must be zero")
                part = part[:embedding_rows]
            if part.shape != entry.tensor_shape:
                raise ValueError(f"{name}: the config says {entry.tensor_shape}, the tensor has {part.shape}")
            parts.append(part)
        module, leaf = entry.leaf.rsplit("/", 1)
        tree.setdefault(module, {})[leaf] = entry.rule.axes.to_leaf(parts, entry.leaf_shape)
    if state:
        raise ValueError(f"the state dict holds tensors that no leaf takes: {', '.join(sorted(state))}")
    return tree


def _float32(tensor: torch.Tensor | np.ndarray) -> np.ndarray:
    if isinstance(tensor, torch.Tensor):
        return tensor.detach().cpu().float().numpy()
    return np.asarray(tensor, dtype=np.float32)
