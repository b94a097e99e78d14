"""One model, several questions: each gets as much of its time as the others."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

SHARE = 0.25  # seconds that a question has the model for while others wait


class Shares:
    """Lets threads have one thing by turns.

    Args:
        seconds: For how long a thread has it while others wait.
    """

    def __init__(self, seconds: float = SHARE) -> None:
        self._seconds = seconds
        self._changed = threading.Condition()
        self._queue: deque[int] = deque()  # of threads; the first one has it
        self._since = 0.0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Has it, from the first turn on; in between `pass_on` lets others."""
        with self._changed:
            self._queue.append(threading.get_ident())
            self._wait()
        try:
            yield
        finally:
            with self._changed:
                self._queue.popleft()
                self._changed.notify_all()

    def pass_on(self) -> None:
        """Lets the others have their turns, if there are any and this thread's share is over."""
        if len(self._queue) == 1 or time.monotonic() - self._since < self._seconds:
            return
        with self._changed:
            self._queue.rotate(-1)
            self._changed.notify_all()
            self._wait()

    def _wait(self) -> None:
        me = threading.get_ident()
        while self._queue[0] != me:
            self._changed.wait()
        self._since = time.monotonic()
