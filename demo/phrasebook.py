"""What people say, by what they mean by it: `say(rng, intent, **slots)` returns one of the ways to ask for something.

Every line of `phrases.txt` was written by hand; a line in brackets names the intent of those after it. `read` reads
other such files.
"""

import functools
from pathlib import Path

import numpy as np

from .render import pick


@functools.cache
def read(file: str) -> dict[str, list[str]]:
    """Returns the lines of a file of this folder, by the intent in brackets that they stand under."""
    book: dict[str, list[str]] = {}
    for line in (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            found = book.setdefault(line.strip("[]"), [])
        elif line:
            found.append(line)
    return book


def phrases() -> dict[str, list[str]]:
    """Returns the phrase book: every way of asking by its intent, with slots in braces."""
    return read("phrases.txt")


def say(rng: np.random.Generator, intent: str, **slots: str) -> str:
    """Returns one of the ways in which an intent is asked, its slots filled."""
    asked = pick(rng, phrases()[intent]).format(**slots)
    return asked[0].upper() + asked[1:] if rng.random() < 0.3 else asked
