"""The "pack-quantized" layout of the compressed-tensors library, which vLLM runs in bfloat16 on every GPU.

A linear [out, in] with symmetric int4 codes becomes three tensors:

* `weight_packed` int32 [out, in/8]: `words.py`, the very layout of this project's packed embedding.
* `weight_scale` [out, in/32].
* `weight_shape` int64 [2]: out and in.

weight = code * scale; symmetric weights have no zero points. Embedding, vision tower and norms stay floats.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from conversion.codes import GROUP_SIZE
from conversion.formats.words import pack_words, unpack_words
from conversion.tensor_spec import TensorSpec


def specs(stem: str, shape: tuple[int, int], scale_dtype: str) -> list[TensorSpec]:
    """The tensors of a linear (out, in)."""
    outs, ins = shape
    return [
        TensorSpec(f"{stem}.weight_packed", "int32", (outs, ins // 8)),
        TensorSpec(f"{stem}.weight_scale", scale_dtype, (outs, ins // GROUP_SIZE)),
        TensorSpec(f"{stem}.weight_shape", "int64", (2,)),
    ]


def pack(codes: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
    """Codes int8 [out, in] and scales [out, in/32] -> the tensors."""
    return {"weight_packed": pack_words(codes), "weight_scale": scales, **constants(codes.shape)}


def unpack(parts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `pack`; `weight_shape` is not looked at."""
    return unpack_words(parts["weight_packed"]), parts["weight_scale"]


def constants(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """The tensor that tells the shape (out, in)."""
    return {"weight_shape": np.array(shape, np.int64)}


def quantization_config(kept: Iterable[str] = ()) -> dict:
    """`quantization_config` of config.json, as the library's QuantizationConfig reads it.

    Args:
        kept: names of linears of the language model that are floats.
    """
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": GROUP_SIZE,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*", *kept],
    }


def embedding_stems(embedding: str) -> tuple[str, ...]:
    """None: vLLM reads it as floats."""
    return ()


def config(values: dict, text: dict, kept: Iterable[str] = ()) -> dict:
    """`quantization_config`, all that config.json has of its own in this format."""
    return {"quantization_config": quantization_config(kept)}
