"""What GGUF files tell of their model, as a transformers configuration.

Keys and defaults are those of llama.cpp's reader of Gemma 3 (`src/models/gemma3.cpp`, `tools/mtmd/clip.cpp`).
"""

from __future__ import annotations

import numpy as np
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.errors import BadInput
from conversion.formats.gguf_reader import GgufFile, Value
from conversion.name_map import PADDING_ROWS

PATTERN = 6  # every sixth layer is global, where the file does not say otherwise
LOCAL_BASE = 10000.0  # of the rotary embedding in windowed layers, likewise
LAYERS_OF_27B = 62
IMAGE, BOI, EOI, END_OF_TURN = "<image_soft_token>", "<start_of_image>", "<end_of_image>", "<end_of_turn>"
PREFIX = "tokenizer.ggml."


def config_of(model: GgufFile, tower: GgufFile | None) -> Gemma3Config | Gemma3TextConfig:
    """The configuration of a model.

    Args:
        model: the file of the language model.
        tower: the file of the vision tower, if the model sees.

    Raises:
        BadInput: the metadata lacks something, or tells what Gemma 3 has not.
    """
    try:
        text = _text(model)
        return Gemma3TextConfig(**text) if tower is None else _with_tower(model, text, tower)
    except KeyError as error:
        raise BadInput(f"{model.path}: no Gemma 3 as llama.cpp reads it, its metadata lacks {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise BadInput(f"{model.path}: its metadata describes no Gemma 3: {error}") from error


def _text(model: GgufFile) -> dict[str, object]:
    of = {name.removeprefix("gemma3."): value for name, value in model.metadata.items()}
    layers, heads = of["block_count"], of["attention.head_count"]
    head_dim = of.get("attention.key_length", of["embedding_length"] // heads)
    if of.get("attention.value_length", head_dim) != head_dim:
        raise ValueError(f"attention.key_length is {head_dim}, attention.value_length {of['attention.value_length']}")
    query = of["embedding_length"] // heads if layers == LAYERS_OF_27B else head_dim
    base = _decimal(of["rope.freq_base"])
    window = of.get("attention.sliding_window", 0)
    return {
        "vocab_size": model.tensors["token_embd.weight"].shape[0],
        "hidden_size": of["embedding_length"],
        "intermediate_size": of["feed_forward_length"],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": of.get("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "query_pre_attn_scalar": query,
        "max_position_embeddings": of["context_length"],
        "rms_norm_eps": _decimal(of["attention.layer_norm_rms_epsilon"]),
        "final_logit_softcapping": _decimal(of.get("final_logit_softcapping", 0.0)) or None,
        **({"sliding_window": window} if window else {}),
        "layer_types": _layer_types(of, layers) if window else ["full_attention"] * layers,
        "rope_parameters": {
            "full_attention": {"rope_theta": base, **_scaling(of)},
            "sliding_attention": {
                "rope_type": "default",
                "rope_theta": _decimal(of.get("rope.freq_base_swa", LOCAL_BASE)),
            },
        },
        "bos_token_id": of[f"{PREFIX}bos_token_id"],
        "eos_token_id": _ends(model),
        "pad_token_id": of.get(f"{PREFIX}padding_token_id", 0),
        "tie_word_embeddings": True,
    }


def _layer_types(of: dict[str, Value], layers: int) -> list[str]:
    """A number is how many layers make a period, its last one global; a list says of each layer if it is windowed."""
    pattern = of.get("attention.sliding_window_pattern", PATTERN)
    windowed = pattern if isinstance(pattern, list) else [(i + 1) % pattern != 0 for i in range(layers)]
    if len(windowed) != layers:
        raise ValueError(f"attention.sliding_window_pattern tells of {len(windowed)} layers, there are {layers}")
    return ["sliding_attention" if local else "full_attention" for local in windowed]


def _scaling(of: dict[str, Value]) -> dict[str, object]:
    """How rotary embeddings of the global layers are stretched."""
    kind = of.get("rope.scaling.type", "none")
    factor = _decimal(of.get("rope.scaling.factor", of.get("rope.scale_linear", 1.0)))
    if kind not in ("none", "linear"):
        raise ValueError(f"rope.scaling.type is {kind}, expected linear or none")
    if factor == 1.0:
        return {"rope_type": "default"}
    return {"rope_type": "linear", "factor": factor}


def _ends(model: GgufFile) -> int | list[int]:
    """Tokens that end an answer: of a chat the end of its turn too."""
    eos = model.metadata[f"{PREFIX}eos_token_id"]
    if not speaks_in_turns(model):
        return eos
    turn = model.metadata.get(f"{PREFIX}eot_token_id")
    if turn is None and END_OF_TURN in model.metadata[f"{PREFIX}tokens"]:
        turn = model.metadata[f"{PREFIX}tokens"].index(END_OF_TURN)
    return eos if turn in (None, eos) else [eos, turn]


def speaks_in_turns(model: GgufFile) -> bool:
    """Whether a model is for chats: only then its file has a template."""
    return "tokenizer.chat_template" in model.metadata


def tokens_of(model: GgufFile) -> list[str]:
    """The texts of all tokens, without those that llama.cpp's converter makes up to fill the embedding's last rows."""
    tokens = model.metadata[f"{PREFIX}tokens"]
    count = len(tokens)
    while count and tokens[count - 1] == f"[PAD{count - 1}]":
        count -= 1
    return tokens[:count]


def _with_tower(model: GgufFile, text: dict[str, object], tower: GgufFile) -> Gemma3Config:
    seen = {name.removeprefix("clip.vision."): value for name, value in tower.metadata.items()}
    if (width := tower.tensors["mm.input_projection.weight"].shape[-1]) != text["hidden_size"]:
        raise BadInput(
            f"{tower.path}: its tower is for a model of width {width}, {model.path.name} has {text['hidden_size']}; "
            "take the mmproj file of the same model"
        )
    if any(value != 0.5 for name in ("image_mean", "image_std") for value in seen.get(name, [])):
        raise BadInput(f"{tower.path}: its pictures are not moved to -1..1, as Gemma 3's are")
    ids = {token: number for number, token in enumerate(tokens_of(model))}
    image = ids.get(IMAGE, len(ids))
    side = seen["image_size"] // seen["patch_size"]
    if image >= text["vocab_size"]:  # the image token has no row: Google's configurations add some of zeros
        text["vocab_size"] = image + PADDING_ROWS
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": seen["embedding_length"],
        "intermediate_size": seen["feed_forward_length"],
        "num_hidden_layers": seen["block_count"],
        "num_attention_heads": seen["attention.head_count"],
        "image_size": seen["image_size"],
        "patch_size": seen["patch_size"],
        "num_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": _decimal(seen["attention.layer_norm_epsilon"]),
        "vision_use_head": False,
    }
    ends = text.pop("eos_token_id")
    text["eos_token_id"] = ends[0] if isinstance(ends, list) else ends
    return Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=(side // seen.get("projector.scale_factor", 4)) ** 2,
        boi_token_index=ids[BOI],
        eoi_token_index=ids[EOI],
        image_token_index=image,
        eos_token_id=ends,
        tie_word_embeddings=True,
    )


def _decimal(value: float) -> float:
    """The shortest decimal number that float32 stores so: 1e-6, not 9.999999974752427e-07."""
    return float(str(np.float32(value)))
