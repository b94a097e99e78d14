"""The AWQ "gemm" layout, as autoawq's WQLinear_GEMM, transformers and vLLM read it.

A linear [out, in] with symmetric int4 codes becomes three tensors:

* `qweight` int32 [in, out/8]: eight codes of consecutive outputs per word; nibble i (lowest first) holds output
  8j + ORDER[i]; nibbles are unsigned, code + 8.
* `qzeros` int32 [in/32, out/8]: the zero points in the same order, all 8.
* `scales` [in/32, out].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from conversion.codes import GROUP_SIZE
from conversion.tensor_spec import TensorSpec

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
QUARTET = np.uint64(0x000F000F000F000F)
GATHER = np.uint64(1 << 48 | 1 << 36 | 1 << 24 | 1 << 12)
WORDS_AT_ONCE = 16  # a stripe of qweight that stays in a core's cache
ZERO_WORD = np.uint32(0x88888888).view(np.int32)


def specs(stem: str, shape: tuple[int, int], scale_dtype: str) -> list[TensorSpec]:
    """The tensors of a linear (out, in)."""
    outs, ins = shape
    return [
        TensorSpec(f"{stem}.qweight", "int32", (ins, outs // 8)),
        TensorSpec(f"{stem}.qzeros", "int32", (ins // GROUP_SIZE, outs // 8)),
        TensorSpec(f"{stem}.scales", scale_dtype, (ins // GROUP_SIZE, outs)),
    ]


def pack(codes: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
    """Codes int8 [out, in] and scales [out, in/32] of a linear or a block of it -> their part of the tensors.

    Raises:
        ValueError: out is not a multiple of 8.
    """
    return {"qweight": pack_words(codes.T), "scales": scales.T, **constants(codes.shape)}


def unpack(parts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `pack`, both contiguous; `qzeros` is not looked at."""
    return unpack_words(parts["qweight"]).T, np.ascontiguousarray(parts["scales"].T)


def constants(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """The zero points of a linear (out, in)."""
    outs, ins = shape
    return {"qzeros": np.full((ins // GROUP_SIZE, outs // 8), ZERO_WORD)}


def pack_words(codes: np.ndarray) -> np.ndarray:
    """int8 codes -8..7, [in, out] -> qweight int32 [in, out/8].

    Raises:
        ValueError: out is not a multiple of 8.
    """
    outs = codes.shape[1]
    if outs % 8:
        raise ValueError(f"AWQ packs 8 outputs per word, so {outs} outputs do not fit")
    # The eight codes of a word as one 64-bit number, code i in byte i: even codes lie 16 bits apart, so do odd ones.
    # Multiplying by GATHER adds four shifted copies, which brings such a quartet together in the top 16 bits.
    bytes_ = np.ascontiguousarray(codes + np.int8(8)).view(np.uint64)
    even = bytes_ & QUARTET
    odd = (bytes_ >> np.uint64(8)) & QUARTET
    words = (even * GATHER >> np.uint64(48)) | (odd * GATHER >> np.uint64(48) << np.uint64(16))
    return words.astype(np.uint32).view(np.int32)


def unpack_words(qweight: np.ndarray) -> np.ndarray:
    """qweight int32 [in, out/8] -> int8 codes [in, out], of which `.T` is contiguous; the inverse of `pack_words`.

    The words are turned before they are unpacked: eight times less to turn.
    """
    ins, words = qweight.shape
    codes = np.empty((words, 8, ins), np.int8)
    for start in range(0, words, WORDS_AT_ONCE):
        turned = np.ascontiguousarray(qweight[:, start : start + WORDS_AT_ONCE].T).view(np.uint32)
        for nibble, output in enumerate(ORDER):
            codes[start : start + WORDS_AT_ONCE, output] = turned >> np.uint32(4 * nibble) & np.uint32(15)
    codes -= 8
    return codes.reshape(words * 8, ins).T


def quantization_config(kept: Iterable[str] = ()) -> dict:
    """`quantization_config` of config.json.

    The tensors left alone are named in both spellings: transformers with gptqmodel matches one, vLLM the other.

    Args:
        kept: names of linears of the language model that are floats.
    """
    return {
        "quant_method": "awq",
        "bits": 4,
        "group_size": GROUP_SIZE,
        "version": "gemm",
        "zero_point": True,
        "modules_to_not_convert": [
            "model.vision_tower",
            "model.multi_modal_projector",
            "vision_tower",
            "multi_modal_projector",
            "embed_tokens",
            "lm_head",
            *kept,
        ],
    }
