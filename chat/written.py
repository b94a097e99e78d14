"""The tokens of the latest answers, so that one that was cut off can go on after the very tokens that were written."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

DAY = 24 * 3600
KEPT = 64  # answers


class Written:
    """Answers by what they answer. For several threads.

    Args:
        kept: How many to keep; 0 keeps none.
        clock: Seconds.
    """

    def __init__(self, kept: int = KEPT, clock: Callable[[], float] = time.time) -> None:
        self._kept = kept
        self._clock = clock
        self._answers: OrderedDict[tuple[int, ...], tuple[float, tuple[int, ...]]] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, prompt: list[int], answer: list[int]) -> None:
        """Keeps the tokens of an answer to a prompt."""
        with self._lock:
            self._answers[(len(prompt), *prompt, *answer)] = (self._clock(), tuple(answer))
            while len(self._answers) > self._kept:
                self._answers.popitem(last=False)

    def find(self, prompt: list[int], text: str, decode: Callable[[list[int]], str]) -> list[int] | None:
        """The longest kept beginning of an answer to a prompt that reads as a text; None where there is none."""
        self.expire()
        key = (len(prompt), *prompt)
        with self._lock:
            answers = [list(answer) for found, (_, answer) in self._answers.items() if found[: len(key)] == key]
        for answer in reversed(answers):
            low, high = 0, len(answer)
            while low < high:  # the last place until which no more than the text was written
                middle = (low + high + 1) // 2
                low, high = (middle, high) if len(decode(answer[:middle])) <= len(text) else (low, middle - 1)
            if low and decode(answer[:low]) == text:
                return answer[:low]
        return None

    def expire(self) -> None:
        """Drops what is older than a day."""
        with self._lock:
            while self._answers and next(iter(self._answers.values()))[0] < self._clock() - DAY:
                self._answers.popitem(last=False)
