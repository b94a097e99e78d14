"""MLX's affine 4-bit layout, as mlx-lm and mlx-vlm load it on a Mac.

A matrix [out, in] of int4 codes, the embedding included, becomes three tensors:

* `weight` uint32 [out, in/8]: eight codes in a word, in order, lowest nibble first, each code + 8: `words.py`.
* `scales` [out, in/32].
* `biases` [out, in/32]: -8 times the scale, exact in every floating dtype.

weight = u * scale + bias, with u = code + 8. Source: mlx.core.quantize, mode "affine".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from conversion.codes import GROUP_SIZE
from conversion.errors import BadInput
from conversion.formats.words import pack_words, unpack_words
from conversion.tensor_spec import TensorSpec

ZERO = -8  # of a code, in scales
HEADS = {"language_model.model.embed_tokens": "language_model.lm_head"}  # mlx-vlm reads a head of its own


def specs(stem: str, shape: tuple[int, int], scale_dtype: str) -> list[TensorSpec]:
    """The tensors of a matrix (out, in)."""
    outs, ins = shape
    return [
        TensorSpec(f"{stem}.weight", "uint32", (outs, ins // 8)),
        TensorSpec(f"{stem}.scales", scale_dtype, (outs, ins // GROUP_SIZE)),
        TensorSpec(f"{stem}.biases", scale_dtype, (outs, ins // GROUP_SIZE)),
    ]


def pack(codes: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
    """Codes int8 [out, in] and scales [out, in/32] -> the tensors."""
    return {"weight": pack_words(codes).view(np.uint32), "scales": scales, "biases": scales * scales.dtype.type(ZERO)}


def unpack(parts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `pack`.

    Raises:
        BadInput: a bias is not -8 times its scale, so that these are no codes around zero.
    """
    scales = parts["scales"]
    if not np.array_equal(parts["biases"], scales * scales.dtype.type(ZERO)):
        raise BadInput(f"biases other than {ZERO} times the scales")
    return unpack_words(parts["weight"]), scales


def constants(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """None."""
    return {}


def embedding_stems(embedding: str) -> tuple[str, ...]:
    """Where the codes of the embedding stand: under its own name, and of a model with pictures under the head's too."""
    return (embedding, HEADS[embedding]) if embedding in HEADS else (embedding,)


def config(values: dict, text: dict, kept: Iterable[str] = ()) -> dict:
    """What config.json has for these loaders.

    They read the dicts of quantization, the sizes of the language model at the top, and its rotary frequencies under
    the names from before transformers 5.

    Args:
        values: config.json of the repo in AWQ format.
        text: all settings of the language model, the implied ones too.
        kept: names of linears of the language model that are floats; a loader sees that from the tensors.

    Raises:
        BadInput: the global layers are not every n-th one, as MLX has them.
    """
    quantization = {"group_size": GROUP_SIZE, "bits": 4, "mode": "affine"}
    kinds = text["layer_types"]
    period = [*kinds, "full_attention"].index("full_attention") + 1
    if any((kind == "full_attention") != (layer % period == 0) for layer, kind in enumerate(kinds, start=1)):
        raise BadInput(f"layer_types: MLX takes one global layer in every {period}, found {kinds}")
    full, sliding = (text["rope_parameters"][kind] for kind in ("full_attention", "sliding_attention"))
    rotary = {
        "rope_theta": full["rope_theta"],
        "rope_global_base_freq": full["rope_theta"],
        "rope_local_base_freq": sliding["rope_theta"],
        "rope_scaling": None,
        "sliding_window_pattern": period,
    }
    if full["rope_type"] != "default":
        rotary["rope_scaling"] = {"type": full["rope_type"], "rope_type": full["rope_type"], "factor": full["factor"]}
    made = {"quantization": quantization, "quantization_config": quantization}
    if "text_config" not in values:
        return made | rotary
    sizes = {name: text[name] for name in ("vocab_size", "hidden_size")}
    return (
        made | sizes | {"text_config": text | rotary | {"mm_tokens_per_image": values.get("mm_tokens_per_image", 256)}}
    )
