"""The embedding of an AWQ repo.

With `--embedding int4` it is packed, in rows that a lookup can take one by one:

* `qweight` int32 [vocabulary, hidden/8]: `words.py`. (Not the AWQ order: only this project's model reads it.)
* `scales` [vocabulary, hidden/32].

With `--embedding plain` the shards hold its floats, and `SIDE_FILE` its scales.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from conversion.codes import GROUP_SIZE
from conversion.formats.words import pack_words, unpack_words
from conversion.tensor_spec import TensorSpec

SIDE_FILE = "int4_embedding.safetensors"


def specs(stem: str, shape: tuple[int, int], scale_dtype: str) -> list[TensorSpec]:
    """The tensors of an embedding [vocabulary, hidden]."""
    rows, hidden = shape
    return [
        TensorSpec(f"{stem}.qweight", "int32", (rows, hidden // 8)),
        TensorSpec(f"{stem}.scales", scale_dtype, (rows, hidden // GROUP_SIZE)),
    ]


def pack(codes: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
    """Codes int8 [rows, hidden] and scales [rows, hidden/32] of some rows -> their part of the tensors."""
    return {"qweight": pack_words(codes), "scales": scales}


def unpack(parts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `pack`."""
    return unpack_words(parts["qweight"]), parts["scales"]
