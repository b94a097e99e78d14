"""What is asked next about the same picture: which one exactly, what then, the other one, and this one, both together.

`follow(rng, view, asked)`: such a question, None where the last one or two do not lead to one.
"""

import re

import numpy as np

from . import art, render
from .further import Ask, View, color_of_it, has_colors, kinds_of, listed, noun
from .phrasebook import say
from .questions import _AT
from .wording import COUNTABLE, a, plural, there_are

_BARE = re.compile(r"^(?:And what about|What about|And how many|And where is|And which one is|And which|And) (.*)\?$")


def _exactly(rng, view, last):
    """Which one it is, where only its kind was spoken of."""
    name = last.about
    if not name and (kind := _kind_named(view, last)):
        found = sorted(view.kinds(kind))
        if len(found) > 1 and all(view.counts[one] == 1 for one in found):
            return Ask(say(rng, "which exactly many"), f"I see {listed([a(one) for one in found])}.")
        return None
    if not name or view.shapes or view.text or name in last.answer or name in last.question:
        return None
    if last.topic in ("where", "color", "background"):
        return None
    return Ask(say(rng, "which exactly"), f"It is {a(name)}.", about=name)


def _kind_named(view: View, last: Ask) -> str:
    """The one kind that the last question asked for, if the answer was just yes or a number."""
    if not re.fullmatch(r"Yes\.|There are \d\.", last.answer):
        return ""
    kinds = {kind for name in view.named for kind in kinds_of(name)}
    asked = [kind for kind in kinds if re.search(rf"\b({kind}|{plural(kind)})\b", last.question.lower())]
    return asked[0] if len(asked) == 1 else ""


def _then(rng, view, last):
    """What is right, after a "No"."""
    if not last.answer.startswith("No"):
        return None
    told = last.then or last.answer[4:5].upper() + last.answer[5:]
    if not re.match(r"(It is|It says|There (is|are)|The .* is) ", told):
        return None
    color = next((word for word in render.COLORS if told.endswith(f" {word}.")), "")
    what = "color" if color else "place" if last.topic == "where" else "number" if told.startswith("There") else ""
    if what and rng.random() < 0.6:
        return Ask(say(rng, "what then of", what=what), told, about=last.about, topic=last.topic)
    return Ask(say(rng, "what then"), told, about=last.about, topic=last.topic)


def _other(rng, view, last):
    """The other of two things: its place after a place, its color after a color, else what it is."""
    two = len(view.boxes) == 2 == len(view.unique) and view.picture.skill != "easy_vqa"
    if not two or last.about not in view.unique:
        return None
    other = next(name for name in view.unique if name != last.about)
    place = view.place(other)
    if last.topic == "where" and place:
        return Ask(say(rng, "other bare" if rng.random() < 0.6 else "where other"), f"It is {_AT[place]}.",
                   topic="where", about=other)  # fmt: skip
    if last.topic in ("color", "is color") and view.colors(other):
        return Ask(say(rng, "other bare"), color_of_it(view, other), topic="color", about=other)
    if last.topic in ("where", "color", "is color", "background"):
        return None
    if place and rng.random() < 0.25:
        return Ask(say(rng, "where other"), f"It is {_AT[place]}.", topic="where", about=other)
    return Ask(say(rng, "other bare"), f"It is {noun(view, other)}.", about=other)


def _several(rng, view, last):
    """About things of one name that were spoken of, or one: how many, of what color."""
    name = last.several
    if last.about in view.unique and (last.about in COUNTABLE or view.shapes) and rng.random() < 0.3:
        if last.topic in ("where", "count"):
            return None
        return Ask(say(rng, "how many those"), there_are(1, last.about), about=last.about)
    if not name or name not in view.named:
        return None
    if rng.random() < 0.6 and str(view.counts[name]) not in last.answer:
        return Ask(say(rng, "how many those"), there_are(view.counts[name], name), several=name)
    if view.colors(name) or view.counts[name] > 1:
        return Ask(say(rng, "color they"), has_colors(view, name, True), several=name)
    return None


def _numbers(rng, view, last, before):
    """Sum and difference of two counts, one after the other."""
    if before is None:
        return None
    numbers = [re.fullmatch(r"There (?:is (?=\d)|are )(\d|no) (\w.*)\.", one.answer) for one in (before, last)]
    if not all(numbers) or numbers[0][2] == numbers[1][2]:
        return None
    n, m = (0 if found[1] == "no" else int(found[1]) for found in numbers)
    if rng.random() < 0.6:
        return Ask(say(rng, "both numbers"), f"There {'is' if n + m == 1 else 'are'} {n + m}.")
    if n == m:
        return Ask(say(rng, "number difference"), "There is no difference.")
    return Ask(say(rng, "number difference"), f"There {'is' if abs(n - m) == 1 else 'are'} {abs(n - m)} more.")


def go_on(rng: np.random.Generator, short: str) -> str:
    """A short question, "And the star?", as somebody else might ask it, or after a slip of the tongue."""
    found = _BARE.match(short)
    words = found[1] if found else short.rstrip("?")
    return say(rng, "go on" if rng.random() < 0.75 else "I meant", x=words)


def spoken_of(view: View, last: Ask) -> str:
    """Things of one name that the last answer spoke of; empty if it did not."""
    if last.several:
        return last.several
    found = re.fullmatch(r"(?:There are more|There are|I see) (\d )?(\w.*)\.", last.answer)
    names = {plural(name): name for name in view.named if name in COUNTABLE or name in art.THINGS}
    name = names.get(found[2], "") if found else ""
    return name if view.counts[name] > 1 else ""


def follow(rng: np.random.Generator, view: View, asked: list[Ask]) -> Ask | None:
    """Returns a question that leans on those before.

    Args:
        rng: source of chance.
        view: the picture that all of them are about.
        asked: what was asked about it, the last one last.
    """
    last, before = asked[-1], asked[-2] if len(asked) > 1 else None
    last.several = spoken_of(view, last)
    ways = [
        lambda: _exactly(rng, view, last),
        lambda: _then(rng, view, last),
        lambda: _other(rng, view, last),
        lambda: _several(rng, view, last),
        lambda: _numbers(rng, view, last, before),
    ]
    for i in rng.permutation(len(ways)):
        if (found := ways[i]()) is not None:
            return found
    return None
