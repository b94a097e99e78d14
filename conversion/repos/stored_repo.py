"""The interface of a repo that is read back, and the readers by format."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.formats import HUB_FORMATS
from conversion.identify import repo_kind
from conversion.repos.awq_repo import AwqRepo
from conversion.repos.hub_format_repo import HubFormatRepo


class StoredRepo(Protocol):
    """What a proof asks of a repo: `AwqRepo`, `HubFormatRepo` or `GgufRepo`.

    Attributes:
        path: its folder.
        config: a transformers configuration; names and shapes follow from it.
        linears: names of the int4 linears, such as `model.layers.0.mlp.up_proj`.
        embedding: name of the embedding, such as `model.embed_tokens`.
        scale_dtype: what the format rounds scales to, None where it keeps the dtype they have.
        through_bfloat16: whether scales may have been rounded to bfloat16 before.
        embedding_scale_dtypes: that floats of the embedding may have been multiplied in.
        cuts_embedding: whether rows without a token are left out.
    """

    path: Path
    config: Gemma3Config | Gemma3TextConfig
    linears: list[str]
    embedding: str
    scale_dtype: type | None
    through_bfloat16: bool
    embedding_scale_dtypes: tuple[type, ...]
    cuts_embedding: bool

    def problems(self) -> list[str]:
        """What differs between the tensors that its configuration asks for and those that are stored."""

    @property
    def rows(self) -> int:
        """How many rows the embedding has."""

    def linear(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Codes int8 [out, in] and scales [out, in/32]."""

    def embedding_rows(self, start: int, stop: int) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Codes and scales of some rows where they are stored, and the weights where those are."""

    def plain_equals(self, name: str, values: np.ndarray) -> bool:
        """Whether a tensor that is no codes holds these values, as the format has them."""


def open_repo(path: Path) -> StoredRepo:
    """A repo of any format that this project writes.

    Raises:
        BadInput: it is none, or cannot be read.
    """
    kind = repo_kind(path)
    if kind in HUB_FORMATS:
        return HubFormatRepo(path, HUB_FORMATS[kind])
    if kind == "gguf":
        from conversion.repos.gguf_repo import GgufRepo  # the gguf library is not everybody's

        return GgufRepo(path)
    return AwqRepo(path)
