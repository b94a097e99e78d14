"""The interface of a source: what a conversion reads, whatever it is.

A source is opened by `opening.py`, which knows every kind. `contents` tells from metadata alone what a conversion makes
of it; a proof asks `parts_for`, because the repo's configuration is then what counts. Weights are read part by part, in
bounded memory, from several threads at once: those on the int4 grid as `CodeBlock`s, others as `FloatBlock`s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.codes import CodeBlock
from conversion.facts import LeafFacts
from conversion.options import Options
from conversion.part import Part
from conversion.sizes import Size
from conversion.small_files.repo_files import TokenizerFiles
from conversion.source.source_files import SourceFiles


@dataclass(frozen=True)
class FloatBlock:
    """Values that are no codes.

    Attributes:
        tensor: which tensor, of those that a part becomes.
        row: first of them on the tensor's first axis. An embedding comes in blocks of rows, any other tensor in one.
        values: float32.
        exact: bool, shape of the values: where they are the source's, if float32 does not hold all of it; None if it
            does.
    """

    tensor: int
    row: int
    values: np.ndarray
    exact: np.ndarray | None = None


@dataclass(frozen=True)
class Contents:
    """What a conversion makes of a source, known from its metadata.

    Attributes:
        config: configuration of the model.
        size: the published size it is of, None where the configuration is its own.
        parts: all that is converted, in order.
        donated: names of those parts that the source lacks, and a donor provides.
        tokenizer: where the repo's tokenizer comes from, None if there is none.
        variant: `it` (chat) or `pt` (completion).
        notes: what the user should know; `plan` and `convert` say it, the manifest keeps it.
    """

    config: Gemma3Config | Gemma3TextConfig
    size: Size | None
    parts: list[Part]
    donated: frozenset[str]
    tokenizer: TokenizerFiles | None
    variant: str
    notes: tuple[str, ...] = ()


class Source(Protocol):
    """What is converted.

    Attributes:
        kind: one of `identify.SOURCES`: decides what the model card says of it.
        path: its folder or file, as messages name it.
        files: the files it consists of.
        unit: what its parts are called, such as `leaves`.
        stored_as: what its weights are stored as, such as `float32`.
        unseen: which damage only hashes of its files could show.
        bytes_per_second: stored as such, that two cores convert, about.
        counts_rounding: whether it is to be told how many values of parts that are no codes the repo's dtype rounds.
        libraries: names of the packages that have a say in what is read.
    """

    kind: str
    path: Path
    files: SourceFiles
    unit: str
    stored_as: str
    unseen: str
    bytes_per_second: float
    counts_rounding: bool
    libraries: tuple[str, ...]

    def contents(self, options: Options, donor_holds: Callable[[tuple[str, ...]], bool] | None) -> Contents:
        """What a conversion makes of it.

        Args:
            options: what the user chose.
            donor_holds: whether a donor has certain tensors, None without one.

        Raises:
            BadInput: it cannot be converted so.
        """

    def parts_for(self, config: Gemma3Config | Gemma3TextConfig, cut: bool) -> tuple[list[Part], frozenset[str]]:
        """The parts that a repo of this configuration was made from, and the names of those that it lacks itself.

        Args:
            config: the repo's.
            cut: whether the repo leaves out rows without a token.

        Raises:
            BadInput: such a repo was not made from it.
        """

    def nbytes(self, part: Part) -> int:
        """Stored bytes of a part."""

    def codes(self, part: Part, *, weights: bool = False) -> Iterator[CodeBlock]:
        """A part on the int4 grid, in blocks that cover it; those of an embedding hold whole rows and come in order.

        Args:
            part: the part.
            weights: whether blocks must bring their weights: for a proof, so computed in another way than from these
                codes and scales.

        Raises:
            BadInput: a value is not finite, or damaged.
            SourceLost: the data cannot be read any more.
        """

    def values(self, part: Part) -> Iterator[FloatBlock]:
        """A part that is no codes, in blocks that cover it.

        Raises:
            BadInput: it is damaged.
            SourceLost: the data cannot be read any more.
        """

    def judge(self, facts: LeafFacts, tolerance: float | None) -> None:
        """Raises BadInput if groups that lie on no grid are damage.

        Args:
            facts: of a part that was read to its end.
            tolerance: accepts groups up to this deviation, relative to their absmax.
        """
