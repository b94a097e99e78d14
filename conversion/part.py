"""One piece of a source, and the tensors that it becomes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """What a source reads in one go: a leaf of a Flax checkpoint, a tensor of another file.

    Attributes:
        leaf: its name in the source.
        tensors: full names, in transformers' first key layout, of the tensors it becomes.
        tensor_shape: shape of each of them ([out, in] for a matrix), without the zero rows of an embedding.
        kind: `linear` or `embedding` for what lies on an int4 grid, else `plain`, an embedding in floats too.
    """

    leaf: str
    tensors: tuple[str, ...]
    tensor_shape: tuple[int, ...]
    kind: str

    @property
    def int4(self) -> bool:
        return self.kind != "plain"

    @property
    def is_embedding(self) -> bool:
        return self.tensors[0].endswith("embed_tokens.weight")

    @property
    def size(self) -> int:
        """Elements of all its tensors."""
        return len(self.tensors) * math.prod(self.tensor_shape)
