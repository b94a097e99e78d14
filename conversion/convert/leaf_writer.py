"""A leaf's values -> its tensors in a shard, whatever source its codes and scales come from."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from conversion.codes import GROUP_SIZE, CodeBlock, dequantize
from conversion.facts import ScaleFacts
from conversion.formats import awq, embedding
from conversion.name_map import Entry
from conversion.shards import Shard
from conversion.tensor_spec import DTYPES


class LeafWriter:
    """Writes leaves into one shard.

    Args:
        shard: the shard.
        dtype: of tensors that stay floats.
        vocabulary: rows of the embedding with its zero rows.
        side: file for the scales of an embedding that stays floats, None if it becomes int4.
    """

    def __init__(self, shard: Shard, dtype: str, vocabulary: int, side: Shard | None):
        self._shard, self._vocabulary, self._side = shard, vocabulary, side
        self._dtype = DTYPES[dtype][1]

    def write_plain(self, entry: Entry, tensors: Iterable[np.ndarray]) -> None:
        """Writes the float tensors of a leaf, in the order of the entry."""
        for name, tensor in zip(entry.tensors, tensors, strict=True):
            self._shard.write(name, tensor.astype(self._dtype))

    def write_codes(self, entry: Entry, blocks: Iterable[CodeBlock]) -> ScaleFacts:
        """Writes the int4 matrices of a leaf, from blocks that cover them.

        Args:
            entry: the leaf.
            blocks: those of an embedding hold whole rows and come in order.

        Returns:
            Facts of its scales; the zero rows of an embedding do not count.
        """
        facts = ScaleFacts()
        write = self._write_embedding if entry.is_embedding else self._write_linears
        write(entry, _counted(blocks, facts))
        return facts

    def _write_linears(self, entry: Entry, blocks: Iterable[CodeBlock]) -> None:
        """The packed tensors are an eighth of the leaf and are gathered in memory; the leaf itself never is."""
        stems = [name.removesuffix(".weight") for name in entry.tensors]
        specs = [spec for stem in stems for spec in awq.specs(stem, entry.tensor_shape, "float32")]
        gathered = {spec.name: np.empty(spec.shape, DTYPES[spec.dtype][1]) for spec in specs}
        outs, ins = entry.tensor_shape
        for block in blocks:
            for part, values in awq.pack(block.codes, block.scales).items():
                tensor = gathered[f"{stems[block.tensor]}.{part}"]  # [in, out], either divided by 1, 8 or 32
                rows, columns = _share(block.inputs, ins, len(tensor)), _share(block.outputs, outs, tensor.shape[1])
                tensor[rows, columns] = values
        for name, values in gathered.items():
            self._shard.write(name, values)

    def _write_embedding(self, entry: Entry, blocks: Iterable[CodeBlock]) -> None:
        rows, hidden = entry.tensor_shape
        for block in blocks:
            self._write_rows(entry.tensors[0], block)
        if padding := self._vocabulary - rows:
            zeros, ones = np.zeros((padding, hidden), np.int8), np.ones((padding, hidden // GROUP_SIZE), np.float32)
            self._write_rows(entry.tensors[0], CodeBlock(0, slice(rows, None), slice(None), zeros, ones))

    def _write_rows(self, name: str, block: CodeBlock) -> None:
        """Rows of the embedding: floats with the scales beside the shards, or packed codes with the scales in them."""
        stem = name.removesuffix("weight")
        first = block.outputs.start
        if self._side is None:
            for part, values in embedding.pack(block.codes, block.scales).items():
                self._shard.write(f"{stem}{part}", values, first * values.shape[1])
            return
        weights = dequantize(block.codes, block.scales) if block.weights is None else block.weights
        weights = weights + np.float32(0)  # one zero alone, whatever the sign of its scale
        self._shard.write(name, weights.astype(self._dtype), first * weights.shape[1])
        self._side.write(f"{stem}scales", block.scales, first * block.scales.shape[1])


def _share(part: slice, length: int, elements: int) -> slice:
    """The elements that hold a part of an axis, when so many elements hold all of it."""
    return slice(part.start * elements // length, part.stop * elements // length)


def _counted(blocks: Iterable[CodeBlock], facts: ScaleFacts) -> Iterable[CodeBlock]:
    for block in blocks:
        facts.add(block.scales.T)
        yield block
