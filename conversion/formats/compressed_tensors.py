"""The "pack-quantized" layout of the compressed-tensors library, which vLLM runs in bfloat16 on every GPU.

A linear [out, in] with symmetric int4 codes becomes three tensors:

* `weight_packed` int32 [out, in/8]: word j of a row holds codes 8j..8j+7, lowest nibble first; nibbles are unsigned,
  code + 8. (The very layout of this project's packed embedding.)
* `weight_scale` [out, in/32].
* `weight_shape` int64 [2]: out and in.

weight = code * scale; symmetric weights have no zero points. Embedding, vision tower and norms stay floats.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from conversion.codes import GROUP_SIZE
from conversion.formats.embedding import pack, unpack
from conversion.repos.awq_repo import AwqRepo
from conversion.tensor_spec import DTYPES, TensorSpec

DTYPE_NAMES = {dtype: name for name, (_, dtype) in DTYPES.items()}

__all__ = ["config", "pack", "quantization_config", "specs", "unpack", "values"]


def specs(repo: AwqRepo) -> list[list[TensorSpec]]:
    """The tensors of such a repo, those of one linear together."""
    scale_dtype = DTYPE_NAMES[repo.dtype_of(f"{repo.linears[0]}.scales")]
    vocabulary, hidden = repo.text_config.vocab_size, repo.text_config.hidden_size
    groups = [[TensorSpec(f"{repo.embedding}.weight", DTYPE_NAMES[repo.dtype], (vocabulary, hidden))]]
    for name in repo.linears:
        outs, ins = repo.linear_shape(name)
        groups.append(
            [
                TensorSpec(f"{name}.weight_packed", "int32", (outs, ins // 8)),
                TensorSpec(f"{name}.weight_scale", scale_dtype, (outs, ins // GROUP_SIZE)),
                TensorSpec(f"{name}.weight_shape", "int64", (2,)),
            ]
        )
    groups += [[TensorSpec(name, DTYPE_NAMES[repo.dtype_of(name)], repo.shape(name))] for name in repo.plain]
    return groups


def values(repo: AwqRepo) -> Iterator[tuple[str, int, np.ndarray]]:
    """The contents of these tensors, part by part: name, number of the first element, values."""
    start = 0
    for rows in repo.embedding_weights():
        yield f"{repo.embedding}.weight", start, rows
        start += rows.size
    for name in repo.linears:
        codes, scales = repo.linear(name)
        yield f"{name}.weight_packed", 0, pack(codes)
        yield f"{name}.weight_scale", 0, scales
        yield f"{name}.weight_shape", 0, np.array(codes.shape, np.int64)
    for name in repo.plain:
        yield name, 0, repo.read(name)


def config(repo: AwqRepo) -> dict:
    """config.json of such a repo."""
    kept = {key: value for key, value in repo.values.items() if key != "auto_map"}  # no code of this project's own
    return kept | {"quantization_config": quantization_config()}


def quantization_config() -> dict:
    """`quantization_config` of config.json, as the library's QuantizationConfig reads it."""
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
        "ignore": ["lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"],
    }
