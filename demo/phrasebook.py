"""The phrase book: `say(rng, intent, **slots)` returns one of the ways in which an intent is asked.

Every line of `phrases.txt` was written by hand; a line in brackets names the intent of those after it.
"""

import functools
from pathlib import Path

import numpy as np

from .render import pick


@functools.cache
def phrases() -> dict[str, list[str]]:
    """Returns the phrase book: every way of asking by its intent, with slots in braces."""
    book: dict[str, list[str]] = {}
    for line in (Path(__file__).parent / "phrases.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            found = book.setdefault(line.strip("[]"), [])
        elif line:
            found.append(line)
    return book


def say(rng: np.random.Generator, intent: str, **slots: str) -> str:
    """Returns one of the ways in which an intent is asked, its slots filled."""
    asked = pick(rng, phrases()[intent]).format(**slots)
    return asked[0].upper() + asked[1:] if rng.random() < 0.3 else asked
