"""The values of a part -> its tensors in a shard, whatever source they come from."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from conversion.codes import GROUP_SIZE, CodeBlock, dequantize
from conversion.facts import ScaleFacts
from conversion.formats import awq, embedding
from conversion.part import Part
from conversion.shards import Shard
from conversion.source.source import FloatBlock
from conversion.tensor_spec import DTYPES


class LeafWriter:
    """Writes parts into one shard.

    Args:
        shard: the shard.
        dtype: of tensors that stay floats.
        vocabulary: rows of the embedding with its zero rows.
        side: file for the scales of an int4 embedding that is written as floats, None if there is none.
    """

    def __init__(self, shard: Shard, dtype: str, vocabulary: int, side: Shard | None):
        self._shard, self._vocabulary, self._side = shard, vocabulary, side
        self._dtype = DTYPES[dtype][1]

    def write_plain(self, part: Part, blocks: Iterable[FloatBlock]) -> int:
        """Writes the float tensors of a part, from blocks that cover them.

        Returns:
            How many values the dtype does not hold.
        """
        width, rounded = math.prod(part.tensor_shape[1:]), 0
        for block in blocks:
            written = block.values.astype(self._dtype)
            self._shard.write(part.tensors[block.tensor], written, block.row * width)
            wrong = written != block.values
            rounded += int(np.count_nonzero(wrong if block.exact is None else wrong | ~block.exact))
        if part.is_embedding and (padding := self._vocabulary - part.tensor_shape[0]):
            self._shard.write(part.tensors[0], np.zeros((padding, width), self._dtype), part.size)
        return rounded

    def write_codes(self, part: Part, blocks: Iterable[CodeBlock]) -> ScaleFacts:
        """Writes the int4 matrices of a part, from blocks that cover them.

        Args:
            part: the part.
            blocks: those of an embedding hold whole rows and come in order.

        Returns:
            Facts of its scales; the zero rows of an embedding do not count.
        """
        facts = ScaleFacts()
        write = self._write_embedding if part.is_embedding else self._write_linears
        write(part, _counted(blocks, facts))
        return facts

    def _write_linears(self, part: Part, blocks: Iterable[CodeBlock]) -> None:
        """The packed tensors, an eighth of the weights, are gathered in memory; the weights never are."""
        stems = [name.removesuffix(".weight") for name in part.tensors]
        specs = [spec for stem in stems for spec in awq.specs(stem, part.tensor_shape, "float32")]
        gathered = {spec.name: np.empty(spec.shape, DTYPES[spec.dtype][1]) for spec in specs}
        outs, ins = part.tensor_shape
        for block in blocks:
            for name, values in awq.pack(block.codes, block.scales).items():
                tensor = gathered[f"{stems[block.tensor]}.{name}"]  # [in, out], either divided by 1, 8 or 32
                rows, columns = _share(block.inputs, ins, len(tensor)), _share(block.outputs, outs, tensor.shape[1])
                tensor[rows, columns] = values
        for name, values in gathered.items():
            self._shard.write(name, values)

    def _write_embedding(self, part: Part, blocks: Iterable[CodeBlock]) -> None:
        rows, hidden = part.tensor_shape
        for block in blocks:
            self._write_rows(part.tensors[0], block)
        if padding := self._vocabulary - rows:
            zeros, ones = np.zeros((padding, hidden), np.int8), np.ones((padding, hidden // GROUP_SIZE), np.float32)
            self._write_rows(part.tensors[0], CodeBlock(0, slice(rows, None), slice(None), zeros, ones))

    def _write_rows(self, name: str, block: CodeBlock) -> None:
        """Rows of the embedding: floats with the scales beside the shards, or packed codes with the scales in them."""
        stem = name.removesuffix("weight")
        first = block.outputs.start
        if self._side is None:
            for part, values in embedding.pack(block.codes, block.scales).items():
                self._shard.write(f"{stem}{part}", values, first * values.shape[1])
            return
        with_products = block.weights is not None and not block.inexact
        weights = block.weights if with_products else dequantize(block.codes, block.scales)
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
