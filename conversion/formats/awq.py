"""The AWQ "gemm" layout, as autoawq's WQLinear_GEMM, transformers and vLLM read it.

A linear [out, in] with symmetric int4 codes becomes three tensors:

* `qweight` int32 [in, out/8]: eight codes of consecutive outputs per word; nibble i (lowest first) holds output
  8j + ORDER[i]; nibbles are unsigned, code + 8.
* `qzeros` int32 [in/32, out/8]: the zero points in the same order, all 8.
* `scales` [in/32, out].
"""

from __future__ import annotations

import numpy as np

GROUP_SIZE = 32
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
QUARTET = np.uint64(0x000F000F000F000F)
GATHER = np.uint64(1 << 48 | 1 << 36 | 1 << 24 | 1 << 12)
WORDS_AT_ONCE = 16  # a stripe of qweight that stays in a core's cache
ZERO_WORD = np.uint32(0x88888888).view(np.int32)


def pack(codes: np.ndarray) -> np.ndarray:
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


def unpack(qweight: np.ndarray) -> np.ndarray:
    """qweight int32 [in, out/8] -> int8 codes [in, out], of which `.T` is contiguous; the inverse of `pack`.

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


def quantization_config() -> dict:
    """`quantization_config` of config.json.

    The tensors left alone are named in both spellings: transformers with gptqmodel matches one, vLLM the other.
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
        ],
    }
