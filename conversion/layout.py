"""Geometry of a conversion, from shapes alone: what a part becomes, and where each block of a leaf belongs.

* `output_tensors`: which tensors a part becomes.
* `check_divisible`: whether they divide into groups and words.
* `block_rows`, `place_of`: the blocks in which a leaf is read, and the part of a tensor that each fills.
"""

from __future__ import annotations

from conversion.codes import GROUP_SIZE
from conversion.errors import BadInput
from conversion.formats import awq, embedding
from conversion.name_map import Entry
from conversion.part import Part
from conversion.tensor_spec import SCALES, TensorSpec

BLOCK_BYTES = 1 << 22  # of float32, handled at a time


def output_tensors(part: Part, dtype: str, embedding_mode: str, vocabulary: int) -> list[TensorSpec]:
    """The tensors that a part becomes in the shards.

    Args:
        part: the part.
        dtype: of tensors that stay floats.
        embedding_mode: `plain` or `int4`.
        vocabulary: rows of the embedding with its zero rows.
    """
    if part.kind == "linear":
        stems = [name.removesuffix(".weight") for name in part.tensors]
        return [spec for stem in stems for spec in awq.specs(stem, part.tensor_shape, SCALES)]
    if not part.is_embedding:
        return [TensorSpec(name, dtype, part.tensor_shape) for name in part.tensors]
    shape, (name,) = (vocabulary, part.tensor_shape[1]), part.tensors
    if part.kind == "plain" or embedding_mode == "plain":
        return [TensorSpec(name, dtype, shape)]
    return embedding.specs(name.removesuffix(".weight"), shape, SCALES)


def check_divisible(entry: Entry) -> None:
    """Raises BadInput if a matrix does not divide into groups and words."""
    if not entry.int4:
        return
    outs, ins = entry.tensor_shape
    group_rows = entry.leaf_shape[-1] if entry.grouped_by_row else entry.leaf_shape[-2]
    if group_rows % GROUP_SIZE or ins % GROUP_SIZE or (outs % 8 and not entry.is_embedding):
        raise BadInput(
            f"{entry.leaf} {list(entry.leaf_shape)}: groups of {GROUP_SIZE} and words of 8 need its contraction axis "
            f"to be a multiple of {GROUP_SIZE} and its output axis a multiple of 8"
        )


def block_rows(width: int) -> int:
    """Rows of a block: a multiple of 32, about BLOCK_BYTES of float32."""
    return max(1, BLOCK_BYTES // (4 * width * GROUP_SIZE)) * GROUP_SIZE


def place_of(entry: Entry, lead: tuple[int, ...], row: int, shape: tuple[int, int]) -> tuple[int, slice, slice]:
    """Where a block of a linear's leaf belongs.

    Args:
        entry: the leaf.
        lead: the block's indices on all axes of the leaf but the last two.
        row: its first row there.
        shape: its rows and columns.

    Returns:
        Which tensor, which of its inputs, which of its outputs.
    """
    stacked = entry.rule.axes.stacked
    tensor = lead[0] if stacked else 0
    slab = lead[-1] if len(lead) > stacked else 0
    rows, width = shape
    if entry.grouped_by_row:  # the block is [out, in]
        return tensor, slice(0, width), slice(row, row + rows)
    # The block is [in, out]; slabs follow each other along out (heads of q, k and v) or along in (heads of o).
    height = entry.leaf_shape[-2]
    top, left = (0, slab * width) if entry.slabs_are_outputs else (slab * height, 0)
    return tensor, slice(top + row, top + row + rows), slice(left, left + width)
