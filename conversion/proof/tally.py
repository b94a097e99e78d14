"""What a proof compared, and what differs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from conversion.errors import BadInput, shortened


class Tally:
    """Counts by kind of tensor (`linear`, `embedding`, `plain`); threads may add to it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tensors = {"linear": 0, "embedding": 0, "plain": 0}
        self._exact = {"linear": 0, "embedding": 0}
        self._rounded = {"linear": 0, "embedding": 0}
        self._worst = {"linear": 0.0, "embedding": 0.0}
        self._differences: list[str] = []

    def add_tensors(self, kind: str, count: int) -> None:
        """Counts tensors that were compared."""
        with self._lock:
            self._tensors[kind] += count

    def add_groups(self, kind: str, exact: np.ndarray, errors: np.ndarray) -> None:
        """Counts groups that were compared.

        Args:
            kind: of their tensor.
            exact: bool, which of them have the source's scale and products.
            errors: relative errors of the scales of some.
        """
        with self._lock:
            self._exact[kind] += int(np.count_nonzero(exact))
            self._rounded[kind] += int(np.count_nonzero(~exact))
            self._worst[kind] = max(self._worst[kind], float(errors.max(initial=0)))

    def add_differences(self, lines: list[str]) -> None:
        """Notes what is not as in the source, a line a tensor."""
        with self._lock:
            self._differences += lines

    @property
    def differences(self) -> list[str]:
        """What was noted, in order of the names."""
        return sorted(self._differences)

    def lines(self) -> Iterator[str]:
        """What to say where nothing differs."""
        for kind, name in ("linear", "int4 matrices"), ("embedding", "int4 embedding"):
            if not self._tensors[kind]:
                continue
            exact, rounded = self._exact[kind], self._rounded[kind]
            if not exact + rounded:
                yield f"{name}: {self._tensors[kind]}, stored as floats, each equal to code * scale of its source"
                continue
            line = f"{name}: {self._tensors[kind]}, every code equal; products equal in all of {exact} groups"
            if rounded:
                line += (
                    f" with an exact scale; {rounded} scales are the source's, rounded, worst relative error "
                    f"{self._worst[kind]:.3g}"
                )
            yield line
        yield f"other tensors: {self._tensors['plain']}, each equal to its source, rounded to the dtype of the repo"


def check_differences(repo: Path, source: Path, differences: list[str]) -> None:
    """Raises BadInput if there are differences, a line a tensor, between a repo and its source."""
    if differences:
        tensors = "1 tensor differs" if len(differences) == 1 else f"{len(differences)} tensors differ"
        raise BadInput(f"{repo}: {tensors} from {source}: {shortened(differences)}")
