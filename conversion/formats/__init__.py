"""How int4 weights lie on disk: one format a module, all with the interface `Format`. Knows neither repos nor writers.

awq.py                  what this project converts to, and every export starts from
embedding.py            the packed embedding of `--embedding int4`, and the side file of a plain one
compressed_tensors.py   what vLLM runs in bfloat16
mlx.py                  what MLX runs on a Mac
q4_0.py                 blocks of GGUF files
words.py                eight codes in an int32, in order: what some of these share
gguf_names.py           llama.cpp's names of tensors
gguf_reader.py          a GGUF file, read
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from conversion.formats import compressed_tensors, mlx
from conversion.tensor_spec import TensorSpec


class Format(Protocol):
    """One on-disk format of a matrix [out, in] of int4 codes with a scale for every 32 inputs; modules implement it."""

    @staticmethod
    def specs(stem: str, shape: tuple[int, int], scale_dtype: str) -> list[TensorSpec]:
        """The tensors of a matrix.

        Args:
            stem: name of the matrix, without `.weight`.
            shape: (out, in).
            scale_dtype: of its scales.
        """

    @staticmethod
    def pack(codes: np.ndarray, scales: np.ndarray) -> dict[str, np.ndarray]:
        """Codes int8 [out, in] and scales [out, in/32] -> the tensors, by what follows the stem and a dot."""

    @staticmethod
    def unpack(parts: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The inverse of `pack`: codes int8 [out, in] and scales [out, in/32] in their stored dtype."""


class HubFormat(Format, Protocol):
    """A format of Hugging Face repos: safetensors files, and a config.json that tells how to read them."""

    @staticmethod
    def constants(shape: tuple[int, int]) -> dict[str, np.ndarray]:
        """Those tensors of a matrix (out, in) that do not depend on its weights, by what follows the stem and a dot."""

    @staticmethod
    def embedding_stems(embedding: str) -> tuple[str, ...]:
        """Names under which the codes of the embedding stand; none where it becomes floats."""

    @staticmethod
    def config(values: dict, text: dict, kept: Iterable[str] = ()) -> dict:
        """What config.json has in this format, in place of, or besides, what it has in the repo in AWQ format.

        Args:
            values: config.json of that repo.
            text: all settings of the language model, the implied ones too.
            kept: names of linears of the language model that are floats.
        """


HUB_FORMATS: dict[str, HubFormat] = {"compressed-tensors": compressed_tensors, "mlx": mlx}  # that a repo is exported to
