"""The products of the language model: their shapes, and random matrices for them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from transformers import Gemma3TextConfig

from benchmarks.shapes import config_of, linear_shapes, random_scales

TINY = Gemma3TextConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    query_pre_attn_scalar=32,
    sliding_window=16,
    layer_types=["sliding_attention", "full_attention"],
)


def text_config(name: str) -> Gemma3TextConfig:
    """The language model of a published size ("27b"), or of "tiny"."""
    return TINY if name == "tiny" else config_of(name).get_text_config()


class Product(NamedTuple):
    """Matrices [outputs, inputs] that share an input, and how often a token passes such."""

    outputs: tuple[int, ...]
    inputs: int
    times: int


def products(config: Gemma3TextConfig) -> dict[str, Product]:
    """The products of a model: what is one launch for few rows."""
    shapes, layers = linear_shapes(config), config.num_hidden_layers
    joint = {
        "q, k, v": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "o": ("self_attn.o_proj",),
        "gate, up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    }
    found = {
        label: Product(tuple(shapes[name][0] for name in names), shapes[names[0]][1], layers)
        for label, names in joint.items()
    }
    return found | {"head": Product((config.vocab_size,), config.hidden_size, 1)}


def random_matrix(outputs: int, inputs: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Row-major codes and bfloat16 scales, such that a row has a norm of about 1."""
    codes = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, device=device)
    return codes, random_scales(outputs, inputs // 32, inputs=inputs, device=device)
