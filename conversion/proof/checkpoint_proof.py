"""A repo against the checkpoint that it was made from, number by number.

* codes: every one is the source's;
* products: float32(code * stored scale) is the source's float wherever the stored scale is exact; elsewhere the stored
  scale is the source's, rounded;
* every other tensor: the source's, rounded to the dtype of the repo.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.codes import GROUP_SIZE, dequantize
from conversion.errors import BadInput
from conversion.layout import block_rows, kind_of, place_of
from conversion.leaf_rules import EMBEDDING_LEAF
from conversion.name_map import Entry, is_language, match_leaves
from conversion.proof.manifest import read_manifest
from conversion.proof.tally import Tally, check_differences
from conversion.repos.stored_repo import StoredRepo
from conversion.source.flax_checkpoint import FlaxCheckpoint
from conversion.source.int4_grid import Recovered, recover
from conversion.source.zarr_leaf import Leaf


def prove_repo(repo: StoredRepo, checkpoint: FlaxCheckpoint, workers: int, report: Callable[[str], None]) -> None:
    """Compares every stored tensor with the checkpoint.

    Raises:
        BadInput: anything differs, or the checkpoint is another one.
    """
    shapes = {name: leaf.shape for name, leaf in checkpoint.leaves.items()}
    if isinstance(repo.config, Gemma3TextConfig):
        shapes = {name: shape for name, shape in shapes.items() if is_language(name)}
    matched, donated = match_leaves(shapes, _config_of(repo, shapes), lambda tensors: True)
    source = read_manifest(repo.path).get("source")
    unaccounted = donated - set((source["donor"] or {}).get("leaves", [])) if source else set()
    if unaccounted:
        raise BadInput(f"{checkpoint.directory}: lacks {', '.join(sorted(unaccounted))}: another source")
    proof = _LeafProof(repo)
    with ThreadPoolExecutor(workers) as pool:
        leaves = [(entry, checkpoint.leaves[entry.leaf]) for entry in matched if entry.leaf not in donated]
        futures = [pool.submit(proof.compare, entry, leaf) for entry, leaf in leaves]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    check_differences(repo.path, checkpoint.directory, proof.tally.differences)
    for line in proof.tally.lines():
        report(line)
    if donated:
        report(f"from a donor, not in the source: {', '.join(sorted(donated))}")
    report(f"verified: {repo.path} holds what {checkpoint.directory} holds")


def _config_of(repo: StoredRepo, shapes: dict[str, tuple[int, ...]]) -> Gemma3Config | Gemma3TextConfig:
    """The configuration that the leaves are to fit."""
    if not repo.cuts_embedding or EMBEDDING_LEAF not in shapes:
        return repo.config
    config = copy.deepcopy(repo.config)
    config.get_text_config().vocab_size = shapes[EMBEDDING_LEAF][0]
    return config


@dataclass(frozen=True)
class _LeafProof:
    """Compares leaves of a checkpoint with what a repo stores of them."""

    repo: StoredRepo
    tally: Tally = field(default_factory=Tally)

    def compare(self, entry: Entry, leaf: Leaf) -> None:
        """Reads one leaf and its tensors; adds to the tally."""
        kind = kind_of(entry)
        {"plain": self._plain, "linear": self._linears, "embedding": self._embedding}[kind](entry, leaf)
        self.tally.add_tensors(kind, len(entry.tensors))

    def _plain(self, entry: Entry, leaf: Leaf) -> None:
        tensors = zip(entry.tensors, entry.rule.axes.to_tensors(leaf.read()), strict=True)
        wrong = [name for name, tensor in tensors if not self.repo.plain_equals(name, tensor)]
        self.tally.add_differences([f"{name} is not its source, rounded to the dtype of the repo" for name in wrong])

    def _linears(self, entry: Entry, leaf: Leaf) -> None:
        stored = [self.repo.linear(name.removesuffix(".weight")) for name in entry.tensors]
        wrong = set()
        for block in leaf.blocks(block_rows(leaf.shape[-1])):
            tensor, ins, outs = place_of(entry, block.lead, block.row, block.values.shape)
            groups = slice(ins.start // GROUP_SIZE, ins.stop // GROUP_SIZE)
            codes, scales = stored[tensor][0][outs, ins], stored[tensor][1][outs, groups]
            if not entry.grouped_by_row:
                codes, scales = codes.T, scales.T
            source = _SourceBlock.of(block.values, 1 if entry.grouped_by_row else 0)
            if not self._same_groups("linear", source, codes, scales):
                wrong.add(entry.tensors[tensor])
        self.tally.add_differences([f"{name}: codes, scales or products differ" for name in sorted(wrong)])

    def _embedding(self, entry: Entry, leaf: Leaf) -> None:
        repo, fine = self.repo, True
        for block in leaf.blocks(block_rows(leaf.shape[-1])):
            count = min(len(block.values), repo.rows - block.row)
            if count <= 0:
                break
            source = _SourceBlock.of(block.values[:count], 1)
            codes, scales, weight = repo.embedding_rows(block.row, block.row + count)
            if codes is not None:
                fine &= self._same_groups("embedding", source, codes, scales)
            if weight is not None:
                fine &= self._are_products(weight, source.found)
        if repo.rows > leaf.shape[0]:
            codes, _, weight = repo.embedding_rows(leaf.shape[0], repo.rows)
            fine &= (codes is None or not codes.any()) and (weight is None or not weight.any())
        if not fine:
            self.tally.add_differences([f"{entry.tensors[0]}: rows, codes, scales or products differ"])

    def _same_groups(self, kind: str, source: _SourceBlock, codes: np.ndarray, scales: np.ndarray) -> bool:
        """Whether stored codes and scales are those of a block of the source; adds to the tally."""
        exact = scales.astype(np.float32) == source.found.scales
        equal = source.has_products(codes, scales)
        rounded = source.found.scales[~exact].astype(np.float64)
        errors = np.abs(scales[~exact].astype(np.float64) - rounded) / np.abs(rounded)
        self.tally.add_groups(kind, exact & equal, errors)
        # A group that lies on no grid has its least-squares scale, and no product to be equal to.
        unequal = int(np.count_nonzero(exact & ~equal))
        same = (codes == source.found.codes).all() and self._rounded(source.found.scales, scales).all()
        return bool(same) and unequal <= source.found.inexact

    def _rounded(self, source: np.ndarray, stored: np.ndarray) -> np.ndarray:
        """Where stored scales are the source's, rounded to their dtype."""
        with np.errstate(over="ignore", under="ignore"):
            equal = source.astype(stored.dtype) == stored
            if self.repo.through_bfloat16:
                equal |= source.astype(ml_dtypes.bfloat16).astype(stored.dtype) == stored
        return equal

    def _are_products(self, weight: np.ndarray, source: Recovered) -> bool:
        """Whether floats are code * scale, with the scale as it is or rounded as the format may have had it."""
        candidates = (source.scales.astype(dtype).astype(np.float32) for dtype in self.repo.embedding_scale_dtypes)
        return any(bool((weight == dequantize(source.codes, s).astype(weight.dtype)).all()) for s in candidates)


@dataclass(frozen=True)
class _SourceBlock:
    """A block of a leaf.

    Attributes:
        values: float32 [rows, columns].
        axis: the one that is divided into groups, as for `recover`.
        found: its codes and scales.
    """

    values: np.ndarray
    axis: int
    found: Recovered

    @classmethod
    def of(cls, values: np.ndarray, axis: int) -> _SourceBlock:
        return cls(values, axis, recover(values, axis))

    def has_products(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """Which groups are float32(code * scale): bool, shape of the scales."""
        equal = dequantize(codes, scales.astype(np.float32), self.axis) == self.values
        shape = (-1, GROUP_SIZE, equal.shape[1]) if self.axis == 0 else (equal.shape[0], -1, GROUP_SIZE)
        return equal.reshape(shape).all(axis=self.axis + 1)
