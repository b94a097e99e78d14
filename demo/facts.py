"""What everybody knows of the things, and no picture shows: where a whale lives, what a key is for, which is bigger.

* `facts()`: the table of `facts.txt`; `told_apart(rng, names)`: what is true of one of some things.
* `TOPICS`: functions of (rng, view) that return a question, None where the picture does not allow it; and how often
  each comes. `spoken` asks them among its own.

The answer to an open question says both: that the picture does not tell, and what is known.
"""

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from . import art
from .further import Ask, View, called, the_word
from .phrasebook import say
from .render import pick
from .untold import CANNOT_TELL
from .wording import a

_IT = re.compile(r"\bit\b")
LARGER = 2  # steps of size between two things, for nobody to doubt which is larger


@dataclass
class Fact:
    """One thing that is known of things.

    Attributes:
        does, third: a verb with {x}: "live {x}", "lives {x}".
        asked: ways of asking for it, of "it".
        of: of each thing what is true of it, what most would say first, what might be doubted last.
    """

    does: str = ""
    third: str = ""
    asked: list[str] = field(default_factory=list)
    of: dict[str, list[str]] = field(default_factory=dict)


@functools.cache
def _table() -> dict[str, Fact]:
    table: dict[str, Fact] = {}
    for line in (Path(__file__).parent / "facts.txt").read_text(encoding="utf-8").splitlines():
        sign, _, rest = line.partition(" ")
        if line.startswith("["):
            fact = table.setdefault(line.strip("[]"), Fact())
        elif sign in ("does", "third"):
            setattr(fact, sign, rest)
        elif sign == "?":
            fact.asked.append(rest)
        elif sign == "*":
            thing, _, known = rest.partition(": ")
            fact.of[thing] = known.split(", ")
    return table


def facts() -> dict[str, Fact]:
    """Returns the table, by name; `sizes` has what it says of these."""
    return {name: fact for name, fact in _table().items() if name != "size"}


@functools.cache
def sizes() -> dict[str, int]:
    """Returns how large each thing is, from 1 to 9."""
    return {thing: int(known[0]) for thing, known in _table()["size"].of.items()}


def _known(view: View) -> bool:
    return bool(view.named) and not view.shapes and not view.text


def _asked(rng: np.random.Generator, view: View, fact: Fact, name: str) -> str:
    """One of the ways of asking for a fact, of "it" or by name."""
    asked = pick(rng, fact.asked)
    if rng.random() < 0.4 and len(_IT.findall(asked)) == 1:
        asked = _IT.sub(the_word(called(rng, view, name)), asked)
    return asked[0].upper() + asked[1:] if rng.random() < 0.3 else asked


def _told(fact: Fact, name: str) -> str:
    return f"I cannot tell, but {a(name)} {fact.third.format(x=fact.of[name][0])}."


def _open(rng, view):
    """Asks for what is known of the one thing; of one of which nothing is known, that cannot be told."""
    if not _known(view) or not view.single:
        return None
    name = view.single
    told = [fact for fact in facts().values() if (name in fact.of) == (rng.random() < 0.9)]
    if not told:
        return None
    fact = pick(rng, told)
    return Ask(_asked(rng, view, fact, name), _told(fact, name) if name in fact.of else CANNOT_TELL, about=name)


def _claim(rng, view):
    """Whether something is true of the one thing."""
    if not _known(view) or not view.single:
        return None
    name, fact, right = view.single, pick(rng, list(facts().values())), rng.random() < 0.5
    if name not in fact.of:
        return None
    value = fact.of[name][0] if right else pick(rng, sorted({known[0] for known in fact.of.values()}))
    if not right and value in fact.of[name]:
        return None
    asked = say(rng, "fact claim", does=fact.does.format(x=value), third=fact.third.format(x=value))
    return Ask(asked, f"{'Yes' if right else 'No'}, it is {a(name)}.", about=name)


def told_apart(rng: np.random.Generator, names: list[str]) -> tuple[str, str] | None:
    """Returns one of some things and what is true of it alone, as "lives in the sea"; None where nothing is found."""
    name, fact = pick(rng, names), pick(rng, list(facts().values()))
    if name not in fact.of:
        return None
    value = fact.of[name][0]
    kinds = {art.KIND_OF[thing] for thing, known in fact.of.items() if value in known}
    for other in names:  # of the others it is known not to be true, or they are of another kind altogether
        known = fact.of.get(other)
        if other != name and (value in known if known else art.KIND_OF[other] in kinds):
            return None
    return name, fact.third.format(x=value)


def _which(rng, view):
    """Of which of several things something is true."""
    if not _known(view) or len(view.unique) < 2 or len(view.unique) != len(view.named):
        return None
    if (found := told_apart(rng, view.unique)) is None:
        return None
    name, third = found
    return Ask(say(rng, "fact which", third=third), f"It is {a(name)}.", about=name)


def _size(rng, view):
    """Which of two things is larger, or whether the one is larger than another."""
    if not _known(view):
        return None
    if view.single:
        other = pick(rng, list(sizes()))
        gap = sizes()[view.single] - sizes()[other]
        if abs(gap) < LARGER:
            return None
        return Ask(say(rng, "fact larger", a=a(other)), f"{'Yes' if gap > 0 else 'No'}, it is {a(view.single)}.",
                   about=view.single)  # fmt: skip
    if len(view.named) != 2 or len(view.unique) != 2:
        return None
    small, large = sorted(view.unique, key=sizes().get)
    if sizes()[large] - sizes()[small] < LARGER:
        return None
    if rng.random() < 0.3:
        return Ask(say(rng, "fact which smaller"), f"It is {a(small)}.", about=small)
    return Ask(say(rng, "fact which larger"), f"It is {a(large)}.", about=large)


def of_it(rng: np.random.Generator, view: View, name: str) -> Ask | None:
    """Asks for what is known of the one thing among others that was just spoken of."""
    known = [fact for fact in facts().values() if name in fact.of]
    if not known or view.shapes or view.text:
        return None
    fact = pick(rng, known)
    return Ask(_asked(rng, view, fact, name), _told(fact, name), about=name)


TOPICS = {_open: 9, _claim: 6, _which: 8, _size: 4}
