"""An int4 leaf of a Flax checkpoint -> its codes and scales, block by block."""

from __future__ import annotations

from collections.abc import Iterator

from conversion.codes import GROUP_SIZE, CodeBlock
from conversion.errors import BadInput
from conversion.facts import LeafFacts
from conversion.layout import block_rows, place_of
from conversion.name_map import Entry
from conversion.source.int4_grid import NonFinite, Recovered, recover
from conversion.source.zarr_leaf import Block, Leaf

NORM_SHARE = 0.01  # inexact groups are taken as the norm of a tensor if they are more than this share of it ...
NORM_DEVIATION = 1e-5  # ... and none deviates more than this, relative to its group's absmax


def code_blocks(entry: Entry, leaf: Leaf, facts: LeafFacts, tolerance: float | None) -> Iterator[CodeBlock]:
    """Reads a leaf and recovers it.

    Args:
        entry: what becomes of the leaf.
        leaf: the leaf.
        facts: takes the count of groups, and of those that lie on no grid.
        tolerance: accepts such groups up to this deviation, relative to their absmax.

    Raises:
        BadInput: a value is not finite, or, once all was read, the leaf is off the grid.
    """
    for block in leaf.blocks(block_rows(leaf.shape[-1])):
        found = _recover(entry, block)
        facts.groups += found.scales.size
        facts.inexact += found.inexact
        facts.worst = max(facts.worst, found.worst)
        arrays = found.codes, found.scales, None if found.inexact else block.values
        if not entry.grouped_by_row:  # the block is [in, out]
            arrays = (None if array is None else array.T for array in arrays)
        tensor, inputs, outputs = place_of(entry, block.lead, block.row, block.values.shape)
        yield CodeBlock(tensor, outputs, inputs, *arrays)
    _judge(facts, tolerance)


def _recover(entry: Entry, block: Block) -> Recovered:
    try:
        return recover(block.values, axis=1 if entry.grouped_by_row else 0)
    except NonFinite as error:
        place = (*block.lead, block.row + error.index[0], error.index[1])
        raise non_finite(entry.leaf, place, error.value) from None


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


def non_finite(name: str, place: tuple[int, ...], value: float) -> BadInput:
    """The error of a weight that is infinite or no number."""
    return BadInput(f"{name}: value {value} at {list(place)}; the checkpoint is damaged, download it again")
