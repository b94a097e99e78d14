"""One leaf of the checkpoint -> its tensors in a shard, block by block.

* `write_leaf`: reads, recovers, packs and writes one leaf; returns the facts for the manifest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np

from conversion.codes import GROUP_SIZE, dequantize, representable
from conversion.errors import BadInput
from conversion.formats import awq, embedding
from conversion.layout import block_rows, kind_of, place_of
from conversion.name_map import Entry
from conversion.shards import Shard
from conversion.source.flax_checkpoint import Block, Leaf
from conversion.source.int4_grid import NonFinite, Recovered, recover
from conversion.tensor_spec import DTYPES

NORM_SHARE = 0.01  # inexact groups are taken as the norm of a tensor if they are more than this share of it ...
NORM_DEVIATION = 1e-5  # ... and none deviates more than this, relative to its group's absmax


class Cancelled(Exception):
    """Another leaf failed; this one was given up."""


@dataclass
class ScaleFacts:
    """What rounding does to a set of scales."""

    count: int = 0
    smallest: float = float("inf")
    largest: float = 0.0
    inexact: dict[str, int] = field(default_factory=lambda: {"bfloat16": 0, "float16": 0, "float32": 0})
    worst_relative: dict[str, float] = field(default_factory=lambda: {"bfloat16": 0.0, "float16": 0.0, "float32": 0.0})

    def add(self, scales: np.ndarray) -> None:
        """Counts a block of float32 scales."""
        self.count += scales.size
        self.smallest = min(self.smallest, float(scales.min()))
        self.largest = max(self.largest, float(scales.max()))
        for dtype in ("bfloat16", "float16"):
            wrong = scales[~representable(scales, dtype)]
            if wrong.size:
                with np.errstate(over="ignore", under="ignore"):
                    rounded = wrong.astype(DTYPES[dtype][1]).astype(np.float64)
                self.inexact[dtype] += wrong.size
                worst = float((np.abs(rounded - wrong) / wrong).max())
                self.worst_relative[dtype] = max(self.worst_relative[dtype], worst)

    def merge(self, other: ScaleFacts) -> None:
        self.count += other.count
        self.smallest = min(self.smallest, other.smallest)
        self.largest = max(self.largest, other.largest)
        for dtype in self.inexact:
            self.inexact[dtype] += other.inexact[dtype]
            self.worst_relative[dtype] = max(self.worst_relative[dtype], other.worst_relative[dtype])


@dataclass
class LeafFacts:
    """What the manifest keeps about one leaf.

    Attributes:
        kind: `linear`, `embedding` or `plain`.
        groups: groups of 32 on the int4 grid, 0 for a plain leaf.
        inexact: groups that lie on no grid and carry a least-squares scale.
        worst: their largest |code * scale - w| / absmax.
        scales: the scales as recovered, before rounding.
    """

    leaf: str
    tensors: list[str]
    kind: str
    groups: int = 0
    inexact: int = 0
    worst: float = 0.0
    scales: ScaleFacts | None = None

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> LeafFacts:
        scales = ScaleFacts(**values["scales"]) if values["scales"] else None
        return cls(**{**values, "scales": scales})


def write_leaf(
    entry: Entry,
    leaf: Leaf,
    shard: Shard,
    *,
    dtype: str,
    embedding_mode: str,
    vocabulary: int,
    tolerance: float | None,
    side_scales: Callable[[np.ndarray, int], None],
    progress: Callable[[int], None],
    cancelled: threading.Event,
) -> LeafFacts:
    """Converts one leaf.

    Args:
        side_scales: takes the scales of a plain embedding: float32 rows, and the number of the first.
        progress: is told decoded bytes as they are done.
        cancelled: stops the work when set.

    Raises:
        BadInput: a value is not finite, or the leaf is off the grid.
        Cancelled: `cancelled` was set.
    """

    def step(nbytes: int) -> None:
        if cancelled.is_set():
            raise Cancelled
        progress(nbytes)

    if kind_of(entry) == "plain":
        facts = write_plain(entry, entry.rule.axes.to_tensors(leaf.read()), shard, dtype)
        step(leaf.nbytes)
        return facts
    facts = LeafFacts(entry.leaf, list(entry.tensors), kind_of(entry))
    facts.scales = ScaleFacts()
    if facts.kind == "embedding":
        _write_embedding(entry, leaf, shard, facts, dtype, embedding_mode, vocabulary, side_scales, step)
    else:
        _write_linears(entry, leaf, shard, facts, step)
    _judge(facts, tolerance)
    return facts


def write_plain(entry: Entry, tensors: list[np.ndarray], shard: Shard, dtype: str) -> LeafFacts:
    """Writes tensors that stay floats.

    Raises:
        BadInput: a value is not finite.
    """
    for name, tensor in zip(entry.tensors, tensors, strict=True):
        finite = np.isfinite(tensor)
        if not finite.all():
            place = tuple(int(i) for i in np.argwhere(~finite)[0])
            raise _non_finite(f"{entry.leaf} ({name})", place, float(tensor[place]))
        shard.write(name, tensor.astype(DTYPES[dtype][1]))
    return LeafFacts(entry.leaf, list(entry.tensors), kind_of(entry))


def _write_linears(entry: Entry, leaf: Leaf, shard: Shard, facts: LeafFacts, step: Callable[[int], None]) -> None:
    """The packed tensors are an eighth of the leaf and are gathered in memory; the leaf itself never is."""
    outs, ins = entry.tensor_shape
    qweights = [np.empty((ins, outs // 8), np.int32) for _ in entry.tensors]
    scales = [np.empty((ins // GROUP_SIZE, outs), np.float32) for _ in entry.tensors]
    for block in leaf.blocks(block_rows(leaf.shape[-1])):
        recovered = _recover(entry, block, facts)
        found = (recovered.codes, recovered.scales)
        codes, scale = (array.T for array in found) if entry.grouped_by_row else found  # [in, out], [in/32, out]
        tensor, ins_here, outs_here = place_of(entry, block.lead, block.row, block.values.shape)
        qweights[tensor][ins_here, outs_here.start // 8 : outs_here.stop // 8] = awq.pack_words(codes)
        scales[tensor][ins_here.start // GROUP_SIZE : ins_here.stop // GROUP_SIZE, outs_here] = scale
        step(block.values.nbytes)
    zeros = np.full((ins // GROUP_SIZE, outs // 8), awq.ZERO_WORD)
    for name, qweight, scale in zip(entry.tensors, qweights, scales, strict=True):
        stem = name.removesuffix("weight")
        shard.write(f"{stem}qweight", qweight)
        shard.write(f"{stem}qzeros", zeros)
        shard.write(f"{stem}scales", scale)


def _write_embedding(
    entry: Entry,
    leaf: Leaf,
    shard: Shard,
    facts: LeafFacts,
    dtype: str,
    mode: str,
    vocabulary: int,
    side_scales: Callable[[np.ndarray, int], None],
    step: Callable[[int], None],
) -> None:
    name = entry.tensors[0]
    stem = name.removesuffix("weight")
    rows, hidden = leaf.shape

    def write(first: int, codes: np.ndarray, scales: np.ndarray, weights: np.ndarray) -> None:
        if mode == "plain":
            shard.write(name, weights.astype(DTYPES[dtype][1]), first * hidden)
            side_scales(scales, first)
        else:
            for part, values in embedding.pack(codes, scales).items():
                shard.write(f"{stem}{part}", values, first * values.shape[1])

    for block in leaf.blocks(block_rows(hidden)):
        found = _recover(entry, block, facts)
        # The products are the source, but for -0.0, which is no product, and where a tolerance is needed: there weights
        # and side file must still agree.
        weights = dequantize(found.codes, found.scales) if found.inexact else block.values + np.float32(0)
        write(block.row, found.codes, found.scales, weights)
        step(block.values.nbytes)
    if padding := vocabulary - rows:
        zeros = np.zeros((padding, hidden), np.int8)
        write(rows, zeros, np.ones((padding, hidden // GROUP_SIZE), np.float32), zeros)


def _recover(entry: Entry, block: Block, facts: LeafFacts) -> Recovered:
    try:
        recovered = recover(block.values, axis=1 if entry.grouped_by_row else 0)
    except NonFinite as error:
        place = (*block.lead, block.row + error.index[0], error.index[1])
        raise _non_finite(entry.leaf, place, error.value) from None
    facts.groups += recovered.scales.size
    facts.inexact += recovered.inexact
    facts.worst = max(facts.worst, recovered.worst)
    facts.scales.add(recovered.scales)
    return recovered


def _judge(facts: LeafFacts, tolerance: float | None) -> None:
    """Accepts inexact groups if the user does, or if they are the norm of the tensor; else they are damage."""
    if not facts.inexact or (tolerance is not None and facts.worst <= tolerance):
        return
    if facts.inexact > NORM_SHARE * facts.groups and facts.worst <= NORM_DEVIATION:
        return
    found = f"{facts.leaf}: {facts.inexact} of {facts.groups} groups of {GROUP_SIZE} lie on no int4 grid"
    if facts.inexact > facts.groups / 2:
        raise BadInput(f"{found}: this is not an INT4 (QAT) checkpoint; take one that Kaggle lists as gemma3-...-int4")
    raise BadInput(
        f"{found}, worst deviation {facts.worst:.3g} of the group's largest weight. An INT4 checkpoint like this is "
        f"damaged: download it again; to take the nearest codes all the same, give --tolerance "
        f"{facts.worst * 1.01:.2g} or more"
    )


def _non_finite(name: str, place: tuple[int, ...], value: float) -> BadInput:
    return BadInput(f"{name}: value {value} at {list(place)}; the checkpoint is damaged, download it again")
