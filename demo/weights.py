"""The trained model's weights in float32: out of a training folder, or out of a converted repository.

A converted repository gives them back exactly: they are codes times scales.
"""

import re
from pathlib import Path

import numpy as np
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from conversion.codes import dequantize
from conversion.repos.awq_repo import AwqRepo

from .model import build_model, is_quantized, quantized_weights


def read_state(folder: Path) -> dict:
    """Returns what a training run keeps in its folder, on the CPU, wherever it was trained."""
    return torch.load(folder / "state.pt", map_location="cpu", weights_only=True)


def weights_of_state(folder: Path) -> tuple[dict[str, torch.Tensor], Gemma3Config]:
    """Returns the weights of a training folder as the finished model has them, float32, and the configuration.

    Int4 matrices are codes times bfloat16 scales, all else is rounded to bfloat16, as training saw them.
    """
    model = build_model()
    model.load_state_dict(read_state(folder)["model"])
    exact = quantized_weights(model, torch.float32)
    rounded = quantized_weights(model, torch.bfloat16)
    return {name: (exact[name] if is_quantized(name) else rounded[name].float()) for name in exact}, model.config


def weights_of_repo(folder: Path) -> tuple[dict[str, np.ndarray], Gemma3Config]:
    """Returns the float32 weights that a converted repository stands for, and its configuration."""
    repo = AwqRepo(folder)
    weights = {f"{name}.weight": dequantize(*repo.linear(name)) for name in repo.linears}
    weights |= {name: repo.read(name).astype(np.float32) for name in repo.plain}
    rows = repo.text_config.vocab_size
    blocks = [dequantize(codes, scales) for codes, scales in repo.embedding_blocks(rows)]
    weights[f"{repo.embedding}.weight"] = np.concatenate(blocks)
    values = {k: v for k, v in repo.config.to_dict().items() if k not in ("quantization_config", "auto_map")}
    return weights, Gemma3Config(**values)


def model_of_repo(folder: Path) -> Gemma3ForConditionalGeneration:
    """Returns the float32 model, of transformers' own classes, that a converted repository stands for.

    Raises:
        ValueError: the repository holds other tensors than the demo's model.
    """
    renamed = {
        re.sub(
            r"^(language_model)\.model|^(vision_tower)\.vision_model|^(multi_modal_projector)", r"model.\1\2\3", name
        ): (torch.from_numpy(weight))
        for name, weight in weights_of_repo(folder)[0].items()
    }
    model = build_model()
    if odd := renamed.keys() ^ dict(model.named_parameters()).keys():
        raise ValueError(f"{folder}: tensors that are missing or have no place: {', '.join(sorted(odd))}")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(renamed[name])
    return model
