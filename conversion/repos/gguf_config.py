"""What GGUF files tell of their model, as a transformers configuration."""

from __future__ import annotations

import gguf
from transformers import Gemma3Config, Gemma3TextConfig


def config_of(model: gguf.GGUFReader, tower: gguf.GGUFReader | None) -> Gemma3Config | Gemma3TextConfig:
    """A configuration that names and shapes follow from; what the files do not tell stays transformers' default.

    Args:
        model: the file of the language model.
        tower: the file of the vision tower, if the model sees.

    Raises:
        KeyError: the metadata lacks something.
    """
    of = {name.removeprefix("gemma3."): field.contents() for name, field in model.fields.items()}
    layers = of["block_count"]
    text = {
        "vocab_size": len(of["tokenizer.ggml.tokens"]),
        "hidden_size": of["embedding_length"],
        "intermediate_size": of["feed_forward_length"],
        "num_hidden_layers": layers,
        "num_attention_heads": of["attention.head_count"],
        "num_key_value_heads": of["attention.head_count_kv"],
        "head_dim": of["attention.key_length"],
        "sliding_window": of["attention.sliding_window"],
        "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)],
    }
    if tower is None:
        return Gemma3TextConfig(**text)
    seen = {name.removeprefix("clip.vision."): field.contents() for name, field in tower.fields.items()}
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": seen["embedding_length"],
        "intermediate_size": seen["feed_forward_length"],
        "num_hidden_layers": seen["block_count"],
        "num_attention_heads": seen["attention.head_count"],
        "image_size": seen["image_size"],
        "patch_size": seen["patch_size"],
        "vision_use_head": False,
    }
    return Gemma3Config(text_config=text, vision_config=vision)
