"""The tokens of the latest answers, so that one that was cut off can go on after the very tokens that were written."""

from __future__ import annotations

import hashlib
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from chat import DAY

KEPT = 64  # answers


@dataclass(frozen=True)
class _Answer:
    since: float
    prompt: bytes
    ids: list[int]


class Written:
    """Answers by what they answer, of which a hash is kept. For several threads.

    Args:
        kept: How many to keep; 0 keeps none.
        clock: Seconds.
    """

    def __init__(self, kept: int = KEPT, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._answers: deque[_Answer] = deque(maxlen=kept)
        self._lock = threading.Lock()

    def keep(self, prompt: list[int], ids: list[int]) -> None:
        """Keeps the tokens of an answer to a prompt."""
        with self._lock:
            self._answers.append(_Answer(self._clock(), _digest(prompt), ids))

    def find(self, prompt: list[int], text: str, decode: Callable[[list[int]], str]) -> list[int] | None:
        """The longest kept beginning of an answer to a prompt that reads as a text; None where there is none."""
        self.expire()
        digest = _digest(prompt)
        with self._lock:
            found = [answer.ids for answer in self._answers if answer.prompt == digest]
        for ids in reversed(found):
            low, high = 0, len(ids)
            while low < high:  # the last place until which no more than the text was written
                middle = (low + high + 1) // 2
                low, high = (middle, high) if len(decode(ids[:middle])) <= len(text) else (low, middle - 1)
            if low and decode(ids[:low]) == text:
                return ids[:low]
        return None

    def expire(self) -> None:
        """Drops what is older than a day."""
        with self._lock:
            while self._answers and self._answers[0].since < self._clock() - DAY:
                self._answers.popleft()


def _digest(prompt: list[int]) -> bytes:
    return hashlib.sha256(array("q", prompt).tobytes()).digest()
