"""A repo against the source that it was made from, number by number.

* codes: every one is the source's;
* products: float32(code * stored scale) is the source's float wherever the stored scale is exact; elsewhere the stored
  scale is the source's, rounded;
* every other tensor: the source's, rounded to the dtype of the repo.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import ml_dtypes
import numpy as np

from conversion.codes import GROUP_SIZE, CodeBlock, dequantize
from conversion.errors import BadInput
from conversion.part import Part
from conversion.proof.manifest import read_manifest
from conversion.proof.tally import Tally, check_differences
from conversion.repos.stored_repo import StoredRepo
from conversion.source.source import Source


def prove_repo(repo: StoredRepo, source: Source, workers: int, report: Callable[[str], None]) -> None:
    """Compares every stored tensor with the source.

    Raises:
        BadInput: anything differs, or the source is another one.
    """
    parts, donated = source.parts_for(repo.config, cut=repo.cuts_embedding)
    noted = read_manifest(repo.path).get("source")
    unaccounted = donated - set((noted["donor"] or {}).get("leaves", [])) if noted else set()
    if unaccounted:
        raise BadInput(f"{source.path}: lacks {', '.join(sorted(unaccounted))}: another source")
    proof = _PartProof(repo, source)
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(proof.compare, part) for part in parts if part.leaf not in donated]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    check_differences(repo.path, source.path, proof.tally.differences)
    for line in proof.tally.lines():
        report(line)
    if donated:
        report(f"from a donor, not in the source: {', '.join(sorted(donated))}")
    report(f"verified: {repo.path} holds what {source.path} holds")


@dataclass(frozen=True)
class _PartProof:
    """Compares parts of a source with what a repo stores of them."""

    repo: StoredRepo
    source: Source
    tally: Tally = field(default_factory=Tally)

    def compare(self, part: Part) -> None:
        """Reads one part and its tensors; adds to the tally."""
        {"plain": self._plain, "linear": self._linears, "embedding": self._embedding}[part.kind](part)
        self.tally.add_tensors(part.kind, len(part.tensors))

    def _plain(self, part: Part) -> None:
        wrong = set()
        for block in self.source.values(part):
            name = part.tensors[block.tensor]
            if not self._same_floats(part, name, block.row, block.values):
                wrong.add(name)
        if part.is_embedding and self.repo.rows > part.tensor_shape[0]:
            _, _, weight = self.repo.embedding_rows(part.tensor_shape[0], self.repo.rows)
            wrong |= {part.tensors[0]} if weight.any() else set()
        self.tally.add_differences(
            [f"{name} is not its source, rounded to the dtype of the repo" for name in sorted(wrong)]
        )

    def _same_floats(self, part: Part, name: str, row: int, values: np.ndarray) -> bool:
        if not part.is_embedding:
            return self.repo.plain_equals(name, values)
        count = max(0, min(len(values), self.repo.rows - row))
        codes, scales, weight = self.repo.embedding_rows(row, row + count)
        values = values[:count]
        if codes is None:
            return bool((weight == values.astype(weight.dtype)).all())
        products = dequantize(codes, scales)
        if weight is not None:  # codes that were found again
            rounded = values.astype(weight.dtype)
            return bool((weight == rounded).all() and (products.astype(weight.dtype) == rounded).all())
        dtypes = (np.float32, ml_dtypes.bfloat16, np.float16)  # that the source may have
        return any(bool((products.astype(dtype).astype(np.float32) == values).all()) for dtype in dtypes)

    def _linears(self, part: Part) -> None:
        stored = [self.repo.linear(name.removesuffix(".weight")) for name in part.tensors]
        wrong = set()
        for block in self.source.codes(part, weights=True):
            groups = slice(block.inputs.start // GROUP_SIZE, block.inputs.stop // GROUP_SIZE)
            codes, scales = stored[block.tensor]
            if not self._same_groups(
                "linear", block, codes[block.outputs, block.inputs], scales[block.outputs, groups]
            ):
                wrong.add(part.tensors[block.tensor])
        self.tally.add_differences([f"{name}: codes, scales or products differ" for name in sorted(wrong)])

    def _embedding(self, part: Part) -> None:
        repo, fine, rows = self.repo, True, part.tensor_shape[0]
        for block in self.source.codes(part, weights=True):
            first = block.outputs.start
            if first >= repo.rows:
                break
            block = block.rows(repo.rows - first)
            codes, scales, weight = repo.embedding_rows(first, first + len(block.codes))
            if weight is not None and codes is not None:  # recovered from weights: a scale of zero leaves no code
                block = replace(block, codes=block.codes * np.repeat(block.scales != 0, GROUP_SIZE, axis=1))
            if codes is not None:
                fine &= self._same_groups("embedding", block, codes, scales)
            if weight is not None:
                fine &= self._are_products(weight, block)
        if repo.rows > rows:
            codes, _, weight = repo.embedding_rows(rows, repo.rows)
            fine &= (codes is None or not codes.any()) and (weight is None or not weight.any())
        if not fine:
            self.tally.add_differences([f"{part.tensors[0]}: rows, codes, scales or products differ"])

    def _same_groups(self, kind: str, source: CodeBlock, codes: np.ndarray, scales: np.ndarray) -> bool:
        """Whether stored codes and scales are those of a block of the source; adds to the tally."""
        exact = scales.astype(np.float32) == source.scales
        equal = _have_products(source, codes, scales)
        rounded = source.scales[~exact].astype(np.float64)
        errors = np.abs(scales[~exact].astype(np.float64) - rounded) / np.abs(rounded)
        self.tally.add_groups(kind, exact & equal, errors)
        # A group that lies on no grid has its least-squares scale, and no product to be equal to.
        unequal = int(np.count_nonzero(exact & ~equal))
        same = (codes == source.codes).all() and self._rounded(source.scales, scales).all()
        return bool(same) and unequal <= source.inexact

    def _rounded(self, source: np.ndarray, stored: np.ndarray) -> np.ndarray:
        """Where stored scales are the source's, rounded to their dtype."""
        with np.errstate(over="ignore", under="ignore"):
            equal = source.astype(stored.dtype) == stored
            if self.repo.through_bfloat16:
                equal |= source.astype(ml_dtypes.bfloat16).astype(stored.dtype) == stored
        return equal

    def _are_products(self, weight: np.ndarray, source: CodeBlock) -> bool:
        """Whether floats are code * scale, with the scale as it is or rounded as the format may have had it."""
        candidates = (source.scales.astype(dtype).astype(np.float32) for dtype in self.repo.embedding_scale_dtypes)
        return any(bool((weight == dequantize(source.codes, s).astype(weight.dtype)).all()) for s in candidates)


def _have_products(source: CodeBlock, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Which groups of a block are float32(code * scale): bool [outputs, inputs/32]."""
    equal = dequantize(codes, scales.astype(np.float32)) == source.weights
    return equal.reshape(len(equal), -1, GROUP_SIZE).all(axis=2)
