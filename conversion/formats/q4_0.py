"""Q4_0, ggml's `block_q4_0`: the blocks that GGUF files hold, this project's grid in other words.

A matrix [out, in] becomes one tensor `weight`, rows of in/32 blocks. A block is the 32 weights of a group: a float16
scale and 16 bytes; byte j holds weight j in its low nibble and weight j + 16 in its high one; weight = (nibble - 8) *
scale. So codes move over unchanged, and only scales that float16 does not hold are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from conversion.codes import GROUP_SIZE
from conversion.tensor_spec import TensorSpec

BLOCK_BYTES = 2 + GROUP_SIZE // 2


def specs(stem: str, shape: tuple[int, int], scale_dtype: str) -> list[TensorSpec]:
    """The tensor of a matrix (out, in), its dtype GGUF's own; its scales are float16 whatever they were."""
    return [TensorSpec(f"{stem}.weight", "q4_0", shape)]


def pack(codes: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
    """int8 codes -8..7 [rows, columns] and scales [rows, columns/32] -> bytes [rows, columns/32 * 18].

    Raises:
        OverflowError: a scale is more than float16 holds.
    """
    halves = (codes + np.int8(8)).view(np.uint64).reshape(*scales.shape, 2, 2)  # eight codes in a number
    blocks = np.empty((*scales.shape, BLOCK_BYTES), np.uint8)
    blocks[..., :2] = float16(scales)[..., None].view(np.uint8)
    blocks[..., 2:] = (halves[..., 0, :] | halves[..., 1, :] << np.uint64(4)).view(np.uint8)
    return {"weight": blocks.reshape(len(codes), -1)}


def unpack(parts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `pack`; scales are float16."""
    blocks = parts["weight"]
    blocks = blocks.reshape(len(blocks), -1, BLOCK_BYTES)
    scales = np.ascontiguousarray(blocks[..., :2]).view(np.float16)[..., 0]
    nibbles = np.concatenate([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], axis=-1)
    return nibbles.astype(np.int8).reshape(len(blocks), -1) - np.int8(8), scales


def float16(values: np.ndarray) -> np.ndarray:
    """Values rounded to float16.

    Raises:
        OverflowError: one is more than it holds.
    """
    values = values.astype(np.float32)
    largest = float(np.abs(values).max())
    if largest > float(np.finfo(np.float16).max):
        raise OverflowError(f"holds {largest:.4g}, more than GGUF's float16 can; take another format")
    return values.astype(np.float16)
