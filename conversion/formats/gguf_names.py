"""llama.cpp's names for the tensors of Gemma 3, as its `gguf` library gives them."""

from __future__ import annotations

import functools

import gguf
from transformers import Gemma3Config, Gemma3TextConfig

VISION = ("vision_tower.", "multi_modal_projector.")  # how transformers' names of the vision tower begin


def tensor_name(config: Gemma3Config | Gemma3TextConfig, name: str) -> str:
    """llama.cpp's name for a tensor of the model.

    Args:
        config: the model's.
        name: transformers' name of the tensor, `.weight` and the like at its end.
    """
    if name.startswith(VISION):
        stem, _, kind = name.replace("_weight", ".weight").rpartition(".")
        return f"{_names(gguf.MODEL_ARCH.MMPROJ, config.vision_config.num_hidden_layers).get_name(stem)}.{kind}"
    stem = name.removesuffix(".weight").removeprefix("language_model.")
    return f"{_names(gguf.MODEL_ARCH.GEMMA3, config.get_text_config().num_hidden_layers).get_name(stem)}.weight"


_names = functools.cache(gguf.get_tensor_name_map)  # making one takes milliseconds
