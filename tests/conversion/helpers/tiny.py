"""Tiny Gemma 3 checkpoints on an int4 grid, and conversions of them read back: what the conversion tests share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from transformers import Gemma3Config, Gemma3TextConfig

import convert_flax
from conversion.codes import GROUP_SIZE, dequantize
from conversion.formats import awq, embedding
from conversion.name_map import entries
from demo.flax_export import save_tree

ROWS = 192  # embedding rows in the checkpoint


def text_config() -> Gemma3TextConfig:
    return Gemma3TextConfig(
        vocab_size=ROWS,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=16,
    )


def multimodal_config() -> Gemma3Config:
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "vision_use_head": False,
    }
    text = text_config()
    text.vocab_size = ROWS + 64
    return Gemma3Config(text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4)


def make_tree(config, seed: int = 0, scales: str = "bfloat16", rows: int = ROWS) -> dict[str, dict[str, np.ndarray]]:
    """A flat Flax tree: matrices on the grid, the rest random; `scales` is `bfloat16` or `float32`."""
    rng = np.random.default_rng(seed)
    tree: dict[str, dict[str, np.ndarray]] = {}
    for entry in entries(config, rows):
        if entry.int4:
            tensors = [_on_grid(entry.tensor_shape, rng, scales) for _ in entry.tensors]
        else:
            tensors = [rng.standard_normal(entry.tensor_shape).astype(np.float32) for _ in entry.tensors]
        module, leaf = entry.leaf.rsplit("/", 1)
        tree.setdefault(module, {})[leaf] = entry.rule.axes.to_leaf(tensors, entry.leaf_shape)
    return tree


def _on_grid(shape: tuple[int, int], rng: np.random.Generator, scales: str) -> np.ndarray:
    codes = rng.integers(-7, 8, shape).astype(np.int8)
    codes[:, ::GROUP_SIZE] = 7
    scale = rng.uniform(1e-3, 1e-1, (shape[0], shape[1] // GROUP_SIZE)).astype(np.float32)
    if scales == "bfloat16":
        scale = (scale.view(np.uint32) & 0xFFFF0000).view(np.float32)
    return dequantize(codes, scale)


def write_config(config, path: Path) -> Path:
    path.write_text(json.dumps(config.to_dict()))
    return path


def make_source(folder: Path, config=None) -> Path:
    """The folder, with a checkpoint and its config; one that sees, unless told otherwise."""
    config = config or multimodal_config()
    save_tree(make_tree(config), folder / "checkpoint")
    write_config(config, folder / "config.json")
    return folder


def run(checkpoint: Path, output: Path, config: Path | None, *options: str) -> int:
    """Exit code of the command line, in this process."""
    words = ["--checkpoint", str(checkpoint), "--output", str(output), "--workers", "2", *options]
    return command_line([*words, *(["--config", str(config)] if config else [])])


def command_line(words: list[str]) -> int:
    """Exit code of the command line, in this process; also where the parser ends it."""
    try:
        return convert_flax.main(words)
    except SystemExit as end:
        return end.code


def read_back(repo: Path) -> dict[str, np.ndarray]:
    """Every tensor of a converted repo under its transformers name, as float32; int4 ones as code * scale."""
    index = json.loads((repo / "model.safetensors.index.json").read_text())["weight_map"]
    stored = {}
    for file in sorted(set(index.values())):
        tensors = load_file(repo / file)
        assert {name for name, place in index.items() if place == file} == set(tensors)
        stored |= tensors
    result = {}
    for name, tensor in stored.items():
        stem = name.removesuffix("qweight")
        if stem == name:
            if not name.endswith(("qzeros", "scales")):
                result[name] = tensor.float().numpy()
            continue
        parts = {"qweight": tensor.numpy(), "scales": stored[f"{stem}scales"].float().numpy()}
        if "embed_tokens" in name:
            result[f"{stem}weight"] = dequantize(*embedding.unpack(parts))
        else:
            assert (stored[f"{stem}qzeros"].numpy() == awq.ZERO_WORD).all()
            result[f"{stem}weight"] = dequantize(*awq.unpack(parts))
    return result


def expected(tree: dict[str, dict[str, np.ndarray]], config, text_only: bool = False) -> dict[str, np.ndarray]:
    """What `read_back` must give for a conversion in float32."""
    result = {}
    for entry in entries(config.text_config if text_only else config, ROWS):
        module, leaf = entry.leaf.rsplit("/", 1)
        for name, tensor in zip(entry.tensors, entry.rule.axes.to_tensors(tree[module][leaf]), strict=True):
            padding = config.get_text_config().vocab_size - ROWS if entry.is_embedding else 0
            result[name] = np.pad(tensor, [(0, padding)] + [(0, 0)] * (tensor.ndim - 1))
    return result


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
