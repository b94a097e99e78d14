"""A Flax checkpoint as a source: its leaves become the parts, and their int4 grid is found again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.codes import GROUP_SIZE, CodeBlock
from conversion.errors import BadInput, shortened
from conversion.facts import LeafFacts
from conversion.layout import check_divisible
from conversion.leaf_rules import EMBEDDING_LEAF
from conversion.name_map import Entry, is_language, match_leaves
from conversion.options import Options
from conversion.sizes import published_config, read_config, recognize
from conversion.small_files.repo_files import find_tokenizer
from conversion.source.flax_checkpoint import FlaxCheckpoint
from conversion.source.leaf_codes import code_blocks
from conversion.source.source import Contents, FloatBlock

NORM_SHARE = 0.01  # inexact groups are taken as the norm of a tensor if they are more than this share of it ...
NORM_DEVIATION = 1e-5  # ... and none deviates more than this, relative to its group's absmax


class FlaxSource:
    """An Orbax checkpoint in float32; a `Source`.

    Raises:
        BadInput: no checkpoint there, or a damaged one, or one in another dtype.
    """

    kind = "flax"
    unit = "leaves"
    stored_as = "float32"
    unseen = "a flipped bit outside the int4 grid, or one that turns a code into another, would not be seen"
    bytes_per_second = 400e6  # as measured on two cores (benchmarks/RESULTS.md)
    counts_rounding = False
    libraries = ("tensorstore", "zstandard")

    def __init__(self, path: Path):
        self._checkpoint = FlaxCheckpoint(path)
        self.path, self.files = self._checkpoint.directory, self._checkpoint.files
        self._leaves = self._checkpoint.leaves

    def contents(self, options: Options, donor_holds: Callable[[tuple[str, ...]], bool] | None) -> Contents:
        """The size is told by the shapes of the leaves, unless the user gives a configuration."""
        wrong = [f"{name} is {leaf.dtype}" for name, leaf in self._leaves.items() if leaf.dtype != np.float32]
        if wrong:
            raise BadInput(f"{self.path}: expected float32 leaves, found: {shortened(wrong)}")
        shapes = self._shapes()
        size = None if options.config else recognize(shapes)
        variant = options.variant or "it"
        config = published_config(size, variant) if size else read_config(options.config)
        if options.text_only:
            if not isinstance(config, Gemma3Config):
                raise BadInput(f"{self.path}: --text-only drops a vision tower, but this model has none")
            config = config.text_config
            shapes = _without_vision(shapes)
        entries, donated = match_leaves(shapes, config, donor_holds)
        for entry in entries:
            check_divisible(entry)
        return Contents(config, size, entries, donated, find_tokenizer(options.tokenizer, self.path), variant)

    def parts_for(self, config: Gemma3Config | Gemma3TextConfig, cut: bool) -> tuple[list[Entry], frozenset[str]]:
        """Leaves that are missing may have come from a donor."""
        shapes = self._shapes()
        if isinstance(config, Gemma3TextConfig):
            shapes = _without_vision(shapes)
        if cut and EMBEDDING_LEAF in shapes:
            config = copy.deepcopy(config)
            config.get_text_config().vocab_size = shapes[EMBEDDING_LEAF][0]
        return match_leaves(shapes, config, lambda tensors: True)

    def nbytes(self, part: Entry) -> int:
        """Decoded bytes of a leaf."""
        return self._leaves[part.leaf].nbytes

    def codes(self, part: Entry, *, weights: bool = False) -> Iterator[CodeBlock]:
        """Recovered from the weights, which every block brings."""
        return code_blocks(part, self._leaves[part.leaf])

    def values(self, part: Entry) -> Iterator[FloatBlock]:
        """Each tensor of a leaf in one block."""
        tensors = part.rule.axes.to_tensors(self._leaves[part.leaf].read())
        return (FloatBlock(number, 0, tensor) for number, tensor in enumerate(tensors))

    def judge(self, facts: LeafFacts, tolerance: float | None) -> None:
        """Accepts inexact groups if the user does, or if they are the norm of the tensor; else they are damage."""
        if not facts.inexact or (tolerance is not None and facts.worst <= tolerance):
            return
        if facts.inexact > NORM_SHARE * facts.groups and facts.worst <= NORM_DEVIATION:
            return
        found = f"{facts.leaf}: {facts.inexact} of {facts.groups} groups of {GROUP_SIZE} lie on no int4 grid"
        if facts.inexact > facts.groups / 2:
            raise BadInput(
                f"{found}: this is not an INT4 (QAT) checkpoint; take one that Kaggle lists as gemma3-...-int4"
            )
        raise BadInput(
            f"{found}, worst deviation {facts.worst:.3g} of the group's largest weight. An INT4 checkpoint like this "
            f"is damaged: download it again; to take the nearest codes all the same, give --tolerance "
            f"{facts.worst * 1.01:.2g} or more"
        )

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: leaf.shape for name, leaf in self._leaves.items()}


def _without_vision(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in shapes.items() if is_language(name)}
