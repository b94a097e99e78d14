"""A converted repo of a small Gemma 3 that sees, and what went into it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import Gemma3Config

from conversion.name_map import entries
from convert_flax import main
from demo.flax_export import export_flax
from tests.conversion.helpers.small_tokenizer import IDS, small_model

PREFIX = "language_model.model."

CONFIG = Gemma3Config(
    text_config={
        "vocab_size": len(IDS) + 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 7,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 48,
        "sliding_window": 16,
        "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(7)],
        "max_position_embeddings": 512,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    vision_config={
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "vision_use_head": False,
    },
    mm_tokens_per_image=4,
    boi_token_index=IDS["<start_of_image>"],
    eoi_token_index=IDS["<end_of_image>"],
    image_token_index=len(IDS),
)


@dataclass
class Source:
    """A converted repo and what went into it: tensors by name; codes and scales of those on the grid."""

    path: Path
    weights: dict[str, np.ndarray]
    codes: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]


def make_source(folder: Path, embedding: str, scale_dtype: str = "float32", largest: float = 0.05) -> Source:
    """Converts a random checkpoint; scales are in float32, so GGUF rounds most of them."""
    rng = np.random.default_rng(7)
    weights, codes, scales = {}, {}, {}
    for entry in entries(CONFIG, len(IDS)):
        for name in entry.tensors:
            shape = entry.tensor_shape
            if not entry.int4:
                weights[name] = rng.normal(0, 0.05, shape).astype(np.float32)
                continue
            q = rng.integers(-7, 8, shape, np.int8)
            q[:, ::32] = 7 * rng.choice([-1, 1], q[:, ::32].shape)  # every group reaches 7
            s = rng.uniform(0.01, largest, (shape[0], shape[1] // 32)).astype(np.float32)
            weights[name] = q * np.repeat(s, 32, axis=1)
            codes[name.removesuffix(".weight")], scales[name.removesuffix(".weight")] = q, s
    state = dict(weights)
    name = f"{PREFIX}embed_tokens.weight"
    state[name] = np.concatenate([weights[name], np.zeros((64, 64), np.float32)])
    export_flax(state, CONFIG, folder / "checkpoint")
    (folder / "checkpoint" / "tokenizer.model").write_bytes(small_model().SerializeToString())
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    words = ["--checkpoint", folder / "checkpoint", "--config", folder / "config.json", "--dtype", "float32"]
    words = [str(word) for word in [*words, "--scale-dtype", scale_dtype, "--embedding", embedding]]
    assert main([*words, "--output", str(folder / "repo")]) == 0
    (folder / "made_with.json").write_text(json.dumps(words))
    return Source(folder / "repo", weights, codes, scales)
