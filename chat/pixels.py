"""Pictures as the model looks at them: what a chat's pictures are decoded to once, not again with each question."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

import torch

from chat import DAY

LIMIT = 256 * 2**20  # bytes, of which a picture of 896 x 896 takes 10 million


class Pixels:
    """Pictures as the model looks at them, by their ids, within a bound of bytes. For several threads."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._kept: OrderedDict[tuple[str, bool], tuple[float, torch.Tensor]] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, number: str, pan_and_scan: bool) -> torch.Tensor | None:
        with self._lock:
            found = self._kept.get((number, pan_and_scan))
            if found is not None:
                self._kept.move_to_end((number, pan_and_scan))
            return found and found[1]

    def keep(self, number: str, pan_and_scan: bool, pixels: torch.Tensor) -> None:
        with self._lock:
            self._kept[number, pan_and_scan] = (time.time(), pixels)
            while sum(kept.nbytes for _, kept in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)

    def expire(self) -> None:
        """Drops what was decoded more than a day ago."""
        with self._lock:
            for key, (since, _) in list(self._kept.items()):
                if since < time.time() - DAY:
                    del self._kept[key]
