"""The published sizes as configurations and shapes, and random scales for them."""

from __future__ import annotations

import torch
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.sizes import SIZES, published_config


def config_of(name: str, layers: int | None = None) -> Gemma3Config | Gemma3TextConfig:
    """The configuration of a published size ("4b"), or of its first layers."""
    config = published_config(next(size for size in SIZES if size.name.lower() == name.lower()), "it")
    if layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = layers
        text.layer_types = text.layer_types[:layers]
    return config


def linear_shapes(config: Gemma3TextConfig) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the linear modules of one layer, by name."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    return {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def random_scales(*shape: int, inputs: int, device: torch.device | None = None) -> torch.Tensor:
    """bfloat16 scales, such that a row of random codes over so many inputs has a norm of about 1."""
    return ((torch.rand(*shape, device=device) + 0.5) / 4.6 * inputs**-0.5).bfloat16()
