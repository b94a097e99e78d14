"""Small talk as different people type it, in training alone: `small_talk.txt`, and the answers of `chats`.

* `greeting(rng)`: what is said before a picture is shown.
* `aside(rng)`: what is said in the midst of a chat and has nothing to do with its picture.
* `without_picture(rng)`: a chat in which no picture is shown.
"""

import numpy as np

from . import chats, render
from .phrasebook import read
from .render import pick

_ANSWERS = {talk[0][0]: talk[1] for talk in chats.TALK}
ANSWERS = {
    "hello": _ANSWERS["Hello!"],
    "thanks": _ANSWERS["Thank you!"],
    "bye": _ANSWERS["Goodbye!"],
    "praise": "Thank you.",
    "blame": "I am sorry. I do my best.",
    "who": chats.IDENTITY,
    "abilities": chats.ABILITIES,
    "how are you": _ANSWERS["How are you?"],
    "maker": _ANSWERS["Who made you?"],
    "see": _ANSWERS["Can you see?"],
    "unknowable": chats.UNKNOWN,
    "no picture": chats.NO_PICTURE,
}
OLD = 0.3  # share of what `chats` has itself
_before = render.by_weight({"hello": 4, "abilities": 2, "who": 2, "how are you": 1, "see": 2})
_amid = render.by_weight(
    {"thanks": 4, "bye": 2, "praise": 1, "blame": 0.5, "who": 1, "abilities": 1, "how are you": 0.5, "unknowable": 5}
)
_without = render.by_weight(
    {"no picture": 8, "hello": 2, "thanks": 1, "bye": 1, "who": 2, "abilities": 2, "maker": 1, "see": 1}
    | {"unknowable": 6}
)


def _said(rng: np.random.Generator, intent: str) -> tuple[str, str]:
    return pick(rng, read("small_talk.txt")[intent]), ANSWERS[intent]


def greeting(rng: np.random.Generator) -> tuple[str, str]:
    """Returns what is said before a picture is shown, and the answer."""
    return chats.small_talk(rng) if rng.random() < OLD else _said(rng, _before(rng))


def aside(rng: np.random.Generator) -> tuple[str, str]:
    """Returns a saying that has nothing to do with the picture at hand, and its answer."""
    return chats.aside(rng) if rng.random() < OLD else _said(rng, _amid(rng))


def without_picture(rng: np.random.Generator) -> chats.Chat:
    """Returns small talk, questions out of reach, and questions about a picture that is not there."""
    if rng.random() < OLD:
        return chats.without_picture(rng)
    return chats.Chat([([], *_said(rng, _without(rng))) for _ in range(int(rng.integers(1, 4)))])
