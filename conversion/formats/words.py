"""Eight codes of a row in an int32, in order: word j holds codes 8j..8j+7, lowest nibble first, each code + 8."""

from __future__ import annotations

import numpy as np


def pack_words(codes: np.ndarray) -> np.ndarray:
    """int8 codes -8..7, [rows, columns] -> int32 [rows, columns/8]."""
    nibbles = np.ascontiguousarray(codes + np.int8(8)).view(np.uint8)
    return (nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)).view(np.int32)


def unpack_words(words: np.ndarray) -> np.ndarray:
    """int32 [rows, columns/8] -> int8 codes [rows, columns]; the inverse of `pack_words`."""
    packed = np.ascontiguousarray(words).view(np.uint8)
    codes = np.empty((len(packed), packed.shape[1] * 2), np.int8)
    codes[:, 0::2] = packed & 15
    codes[:, 1::2] = packed >> 4
    return codes - np.int8(8)
