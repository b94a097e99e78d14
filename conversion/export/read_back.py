"""Proof of an export: what was written is read back and compared with the repo that it was made from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from conversion.errors import BadInput
from conversion.repos.awq_repo import AwqRepo
from conversion.repos.stored_repo import StoredRepo


@dataclass
class Rounding:
    """What a narrower dtype did to scales.

    Attributes:
        groups: how many there are.
        inexact: how many changed.
        worst: the largest relative change.
    """

    groups: int = 0
    inexact: int = 0
    worst: float = 0.0

    def add(self, scales: np.ndarray, stored: np.ndarray) -> None:
        """Counts the scales of some groups before and after."""
        self.groups += scales.size
        if scales.dtype == stored.dtype:  # nothing was rounded
            return
        exact, found = scales.astype(np.float64), stored.astype(np.float64)
        changed = found != exact  # zeros never are
        self.inexact += int(np.count_nonzero(changed))
        change = np.abs(found - exact)[changed] / np.abs(exact[changed])
        self.worst = max(self.worst, float(change.max(initial=0)))


def read_back(repo: AwqRepo, written: StoredRepo) -> Iterator[str]:
    """Compares codes and scales of the linears, and of the embedding where they are stored.

    Returns:
        Lines for the user.

    Raises:
        BadInput: something was not read back as it was written.
    """
    rounding = Rounding()
    for name in repo.linears:
        _compare(name, repo.linear(name), written.linear(name), rounding)
    embedding = _compare_embedding(repo, written, rounding)
    line = f"codes: all of {len(repo.linears)} linears equal" + (", the embedding's too" if embedding else "")
    if written.scale_dtype is None:
        yield f"{line}, scales too"
        return
    yield line
    inexact = f"{rounding.inexact} of {rounding.groups} rounded to {np.dtype(written.scale_dtype).name}"
    yield f"scales: {inexact}, relatively by {rounding.worst:.2g} at most"


def _compare_embedding(repo: AwqRepo, written: StoredRepo, rounding: Rounding) -> bool:
    """Whether the embedding is stored as codes; then these and their scales are compared."""
    if not repo.has_codes:
        return False
    start = 0
    for codes, scales in repo.embedding_blocks(written.rows):
        found, found_scales, _ = written.embedding_rows(start, start + len(codes))
        if found is None:
            return False
        _compare(repo.embedding, (codes, scales), (found, found_scales), rounding)
        start += len(codes)
    return True


def _compare(
    name: str, expected: tuple[np.ndarray, np.ndarray], found: tuple[np.ndarray, np.ndarray], rounding: Rounding
) -> None:
    (codes, scales), (found_codes, found_scales) = expected, found
    _must_equal(name, codes, found_codes)
    _must_equal(name, scales.astype(found_scales.dtype), found_scales)
    rounding.add(scales, found_scales)


def _must_equal(name: str, expected: np.ndarray, found: np.ndarray) -> None:
    if not np.array_equal(expected, found):
        wrong = np.count_nonzero(expected != found)
        raise BadInput(f"{name}: {wrong} values were read back other than written; check the disk, and begin anew")
