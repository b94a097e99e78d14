"""Waiting for what another thread does, with a limit."""

from __future__ import annotations

import time
from collections.abc import Callable


def steps_until_still(steps: list[float]) -> int:
    """Waits until the model has taken no step for a second; returns how many it took."""
    while time.monotonic() - steps[-1] < 1:
        time.sleep(0.05)
    return len(steps)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for a minute"
        time.sleep(0.01)
