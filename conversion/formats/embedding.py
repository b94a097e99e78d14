"""The packed embedding of `--embedding int4`: rows of codes that a lookup can take one by one.

* `qweight` int32 [vocabulary, hidden/8]: word j of a row holds codes 8j..8j+7, lowest nibble first; nibbles are
  unsigned, code + 8. (Not the AWQ order: this layout is read by this project's model only.)
* `scales` [vocabulary, hidden/32].
"""

from __future__ import annotations

import numpy as np

SIDE_FILE = "int4_embedding.safetensors"  # the scales of `--embedding plain`, whose shards hold floats


def pack(codes: np.ndarray) -> np.ndarray:
    """int8 codes -8..7, [rows, hidden] -> int32 [rows, hidden/8]."""
    nibbles = np.ascontiguousarray(codes + np.int8(8)).view(np.uint8)
    return (nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)).view(np.int32)


def unpack(qweight: np.ndarray) -> np.ndarray:
    """int32 [rows, hidden/8] -> int8 codes [rows, hidden]; the inverse of `pack`."""
    packed = np.ascontiguousarray(qweight).view(np.uint8)
    codes = np.empty((len(packed), packed.shape[1] * 2), np.int8)
    codes[:, 0::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    return codes - np.int8(8)
