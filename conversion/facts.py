"""What a conversion found out about its parts and their scales; the manifest keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np

from conversion.codes import CodeBlock, representable
from conversion.part import Part
from conversion.tensor_spec import DTYPES


@dataclass
class ScaleFacts:
    """What rounding does to a set of scales.

    Attributes:
        count: how many there are.
        smallest, largest: magnitudes, zeros left out; 0 where there are none.
        inexact: dtype -> how many it does not hold.
        worst_relative: dtype -> by how much it changes one at most, relative to its magnitude.
    """

    count: int = 0
    smallest: float = 0.0
    largest: float = 0.0
    inexact: dict[str, int] = field(default_factory=lambda: {"bfloat16": 0, "float16": 0, "float32": 0})
    worst_relative: dict[str, float] = field(default_factory=lambda: {"bfloat16": 0.0, "float16": 0.0, "float32": 0.0})

    def add(self, scales: np.ndarray) -> None:
        """Counts a block of float32 scales of either sign, or zero."""
        self.count += scales.size
        magnitudes = np.abs(scales)
        self._extend(float(magnitudes.min(where=magnitudes > 0, initial=np.inf)), float(magnitudes.max()))
        for dtype in ("bfloat16", "float16"):
            wrong = scales[~representable(scales, dtype)]
            if wrong.size:
                with np.errstate(over="ignore", under="ignore"):
                    rounded = wrong.astype(DTYPES[dtype][1]).astype(np.float64)
                self.inexact[dtype] += wrong.size
                worst = float((np.abs(rounded - wrong) / np.abs(wrong)).max())
                self.worst_relative[dtype] = max(self.worst_relative[dtype], worst)

    def merge(self, other: ScaleFacts) -> None:
        self.count += other.count
        self._extend(other.smallest, other.largest)
        for dtype in self.inexact:
            self.inexact[dtype] += other.inexact[dtype]
            self.worst_relative[dtype] = max(self.worst_relative[dtype], other.worst_relative[dtype])

    def _extend(self, smallest: float, largest: float) -> None:
        if largest:
            self.smallest = min(self.smallest or smallest, smallest)
            self.largest = max(self.largest, largest)


@dataclass
class LeafFacts:
    """What the manifest keeps about one part.

    Attributes:
        kind: `linear`, `embedding` or `plain`.
        groups: groups of 32 on the int4 grid, 0 for a plain one.
        inexact: groups that lie on no grid and carry a least-squares scale.
        worst: their largest |code * scale - w| / absmax.
        scales: the scales as the source has them, before rounding.
        values: of a plain part whose rounding was counted, how many there are.
        rounded: how many of those the dtype of the repo does not hold; None where it was not counted.
    """

    leaf: str
    tensors: list[str]
    kind: str
    groups: int = 0
    inexact: int = 0
    worst: float = 0.0
    scales: ScaleFacts | None = None
    values: int = 0
    rounded: int | None = None

    @property
    def is_embedding(self) -> bool:
        return self.tensors[0].endswith("embed_tokens.weight")

    @classmethod
    def of(cls, part: Part) -> LeafFacts:
        """Of a part that was not read yet."""
        return cls(part.leaf, list(part.tensors), part.kind)

    def add(self, block: CodeBlock) -> None:
        """Counts the groups of a block."""
        self.groups += block.scales.size
        self.inexact += block.inexact
        self.worst = max(self.worst, block.worst)

    def to_dict(self) -> dict:
        values = asdict(self)
        if self.rounded is None:
            del values["values"], values["rounded"]
        return values

    @classmethod
    def from_dict(cls, values: dict) -> LeafFacts:
        scales = ScaleFacts(**values["scales"]) if values["scales"] else None
        return cls(**{**values, "scales": scales})
