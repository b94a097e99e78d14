"""The published sizes of Gemma 3: recognized by the shapes of their leaves, and described as transformers configs.

What a checkpoint does not hold (rope, window, query scale, token ids) is stated here, after Google's published
`config.json` files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transformers import Gemma3Config, Gemma3TextConfig

from conversion.errors import BadInput
from conversion.leaf_rules import EMBEDDING_LEAF
from conversion.name_map import PADDING_ROWS

VOCABULARY = 262144
END_OF_TURN = 106
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 896,
    "patch_size": 14,
    "num_channels": 3,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": False,
}


@dataclass(frozen=True)
class Size:
    """Shape of one published size; `window` counts the token itself."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    window: int
    multimodal: bool
    query_scalar: int
    context: int

    def leaf_shapes(self) -> dict[str, tuple[int, ...]]:
        """The leaves that tell this size from any other."""
        return {
            EMBEDDING_LEAF: (VOCABULARY, self.hidden),
            "transformer/layer_0/attn/q_einsum/w": (self.heads, self.hidden, self.head_dim),
            "transformer/layer_0/attn/kv_einsum/w": (2, self.kv_heads, self.hidden, self.head_dim),
            "transformer/layer_0/mlp/linear/w": (self.intermediate, self.hidden),
        }


SIZES = (
    Size("270M", 18, 640, 4, 1, 256, 2048, 512, False, 256, 32768),
    Size("1B", 26, 1152, 4, 1, 256, 6912, 512, False, 256, 32768),
    Size("4B", 34, 2560, 8, 4, 256, 10240, 1024, True, 256, 131072),
    Size("12B", 48, 3840, 16, 8, 256, 15360, 1024, True, 256, 131072),
    Size("27B", 62, 5376, 32, 16, 128, 21504, 1024, True, 168, 131072),
)


def recognize(shapes: Mapping[str, tuple[int, ...]]) -> Size:
    """The published size that these leaves belong to.

    Raises:
        BadInput: none.
    """
    layers = sum(name.endswith("/mlp/linear/w") for name in shapes)
    for size in SIZES:
        if layers == size.layers and all(shapes.get(name) == shape for name, shape in size.leaf_shapes().items()):
            return size
    found = {name.rsplit("/", 2)[-2]: list(shapes[name]) for name in SIZES[0].leaf_shapes() if name in shapes}
    raise BadInput(
        f"the shapes are those of no published size ({', '.join(size.name for size in SIZES)}): {layers} layers, "
        f"{found}; give the model's configuration with --config config.json"
    )


def same_size(config: Gemma3Config | Gemma3TextConfig) -> Size | None:
    """The published size whose matrices have these shapes, None if there is none."""
    text = config.get_text_config()
    found = (
        text.num_hidden_layers,
        text.hidden_size,
        text.num_attention_heads,
        text.num_key_value_heads,
        text.head_dim,
        text.intermediate_size,
    )
    shapes = {(s.layers, s.hidden, s.heads, s.kv_heads, s.head_dim, s.intermediate): s for s in SIZES}
    return shapes.get(found)


def published_config(size: Size, variant: str) -> Gemma3Config | Gemma3TextConfig:
    """The configuration of a published size; `variant` is `it` or `pt`."""
    eos = [1, END_OF_TURN] if variant == "it" else 1
    rope_factor = {"rope_type": "linear", "factor": 8.0} if size.multimodal else {"rope_type": "default"}
    text = Gemma3TextConfig(
        vocab_size=VOCABULARY + (PADDING_ROWS if size.multimodal else 0),
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim,
        query_pre_attn_scalar=size.query_scalar,
        sliding_window=size.window,
        layer_types=["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(size.layers)],
        max_position_embeddings=size.context,
        rms_norm_eps=1e-6,
        rope_parameters={
            "full_attention": {"rope_theta": 1e6, **rope_factor},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        pad_token_id=0,
        eos_token_id=1 if size.multimodal else eos,
        bos_token_id=2,
        tie_word_embeddings=True,
    )
    if not size.multimodal:
        return text
    return Gemma3Config(
        text_config=text.to_dict(),
        vision_config=dict(VISION),
        mm_tokens_per_image=256,
        boi_token_index=255999,
        eoi_token_index=256000,
        image_token_index=262144,
        eos_token_id=eos,
        tie_word_embeddings=True,
    )


def read_config(path: Path) -> Gemma3Config | Gemma3TextConfig:
    """A transformers Gemma 3 configuration from its JSON file.

    Raises:
        BadInput: no such file, not JSON, or not a Gemma 3 configuration.
    """
    classes = {"gemma3": Gemma3Config, "gemma3_text": Gemma3TextConfig}
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable as a JSON config ({error})") from error
    kind = values.get("model_type") if isinstance(values, dict) else None
    if kind not in classes:
        raise BadInput(f"{path}: model_type is {kind!r}, expected one of {', '.join(classes)}")
    try:
        return classes[kind](**values)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BadInput(f"{path}: transformers does not take it as a {classes[kind].__name__}: {error}") from error
