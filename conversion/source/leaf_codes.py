"""An int4 leaf of a Flax checkpoint -> its codes and scales, block by block."""

from __future__ import annotations

from collections.abc import Iterator

from conversion.codes import CodeBlock
from conversion.errors import BadInput
from conversion.layout import block_rows, place_of
from conversion.name_map import Entry
from conversion.source.int4_grid import NonFinite, Recovered, recover
from conversion.source.zarr_leaf import Block, Leaf


def code_blocks(entry: Entry, leaf: Leaf) -> Iterator[CodeBlock]:
    """Reads a leaf and recovers it; blocks bring their weights.

    Raises:
        BadInput: a value is not finite.
    """
    for block in leaf.blocks(block_rows(leaf.shape[-1])):
        found = _recover(entry, block)
        arrays = found.codes, found.scales, block.values
        if not entry.grouped_by_row:  # the block is [in, out]
            arrays = (array.T for array in arrays)
        tensor, inputs, outputs = place_of(entry, block.lead, block.row, block.values.shape)
        yield CodeBlock(tensor, outputs, inputs, *arrays, inexact=found.inexact, worst=found.worst)


def _recover(entry: Entry, block: Block) -> Recovered:
    try:
        return recover(block.values, axis=1 if entry.grouped_by_row else 0)
    except NonFinite as error:
        place = (*block.lead, block.row + error.index[0], error.index[1])
        raise non_finite(entry.leaf, place, error.value) from None


def non_finite(name: str, place: tuple[int, ...], value: float) -> BadInput:
    """The error of a weight that is infinite or no number."""
    return BadInput(f"{name}: value {value} at {list(place)}; the checkpoint is damaged, download it again")
