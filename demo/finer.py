"""More intents of `phrases.txt` about one picture: what people know of things, order, corners, twins, parts of a count.

`TOPICS`: functions of (rng, view) that return a question, None where the picture does not allow it; and how often each
comes. `spoken` asks them among its own.
"""

import itertools
from collections import Counter

import numpy as np

from . import art, render, synonyms
from .further import (
    APART,
    NUMBERS,
    ORDINAL,
    Ask,
    View,
    absent,
    called,
    countable,
    has_colors,
    in_words_or_digits,
    kinds_of,
    listed,
    lone,
    middle,
    noun,
    overlaps,
    the_word,
    two_of,
)
from .phrasebook import say
from .questions import _AT
from .render import pick
from .wording import COUNTABLE, a, counted, is_or_are, plural, sentence, the, there_are

CORNERS = {"top left": "bottom right", "top right": "bottom left", "bottom left": "top right",
           "bottom right": "top left"}  # fmt: skip
MOST_RECKONED = 99  # larger numbers are not reckoned with
_VOWELS = "AEIOU"
_MOST = {  # the last along an axis: sign, and what people call it
    (0, -1): ("furthest to the left", "the leftmost", "first from the left", "closest to the left edge"),
    (0, 1): ("furthest to the right", "the rightmost", "last from the left", "closest to the right edge"),
    (1, -1): ("highest up", "the highest", "the topmost", "closest to the upper edge", "nearest to the top"),
    (1, 1): ("lowest down", "the lowest", "the bottommost", "closest to the lower edge", "nearest to the bottom"),
}  # fmt: skip
_THAN = {(0, -1): "further left", (0, 1): "further right", (1, -1): "higher", (1, 1): "lower"}
_WAYS = {"from left to right": (0, 1), "from right to left": (0, -1), "from top to bottom": (1, 1),
         "from the top down": (1, 1), "from the bottom up": (1, -1)}  # fmt: skip


def _known_place(view: View, name: str) -> str:
    return "" if view.picture.skill == "easy_vqa" else view.place(name)


# ------------------------------------------------------------------------------------------ what people know


def has_trait(name: str, trait: str) -> bool | None:
    """Whether a thing has one of `synonyms.TRAITS`; None where people doubt it."""
    _, having, doubtful = synonyms.TRAITS[trait]
    if name in having or (trait == "food" and art.KIND_OF.get(name) in synonyms.EDIBLE):
        return True
    return None if name in doubtful else False


def _trait(rng, view):
    trait = pick(rng, list(synonyms.TRAITS))
    if lone(view) and rng.random() < 0.4:  # one that it has
        own = [t for t in synonyms.TRAITS if has_trait(view.single, t)]
        trait = pick(rng, own) if own else trait
    if not view.named or view.shapes or view.text:
        return None
    told = {name: has_trait(name, trait) for name in view.named}
    if None in told.values():
        return None
    does = pick(rng, synonyms.TRAITS[trait][0])
    having = [name for name, has in told.items() if has]
    if lone(view):
        yes = told[view.single]
        return Ask(say(rng, "has trait", does=does), f"{'Yes' if yes else 'No'}, it is {a(view.single)}.",
                   about=view.single)  # fmt: skip
    if len(having) == 1 and having[0] in view.unique and rng.random() < 0.7:
        return Ask(say(rng, "which has trait", does=does), f"It is {a(having[0])}.", about=having[0])
    return Ask(say(rng, "any trait", does=does), "Yes." if having else "No.")


def _claim_not(rng, view):
    if not lone(view):
        return None
    right = rng.random() < 0.5
    word = a(called(rng, view, view.single if right else absent(rng, view)))
    return Ask(say(rng, "claim not", a=word), f"{'Yes' if right else 'No'}, it is {a(view.single)}.", about=view.single)


# ------------------------------------------------------------------------------------------ parts of a count


def _kinds_there(view: View) -> dict[str, list[str]]:
    """The names of each kind that two names or more are of."""
    found: dict[str, list[str]] = {}
    for name in view.named:
        for kind in kinds_of(name):
            found.setdefault(kind, []).append(name)
    return {kind: names for kind, names in found.items() if len(names) > 1 and kind in synonyms.KINDS}


def _clear(view: View, kind: str) -> bool:
    """Whether nobody doubts of anything that is there if it is of a kind."""
    return not (view.named.keys() & set(synonyms.DOUBTFUL.get(kind, ())))


def _part(rng, view):
    """How many of a kind are of one name, or are not."""
    names = [name for name in countable(view)]
    if len(view.named) < 2 or not names or view.text or view.picture.skill == "easy_vqa":
        return None
    name = pick(rng, names)
    kinds = ["shape"] if view.shapes else [k for k, of in _kinds_there(view).items() if name in of and _clear(view, k)]
    things, n = plural(called(rng, view, name, alone=False)), view.counts[name]
    if not kinds:
        if rng.random() < 0.2:
            name = absent(rng, view, countable=True)
            things = plural(name)
            return Ask(say(rng, "of them", things=things), f"There are no {things}.") if name in COUNTABLE else None
        return Ask(say(rng, "of them", things=things), there_are(n, name), about=name if n == 1 else "")
    kind = pick(rng, kinds)
    many = "shapes" if view.shapes else synonyms.KINDS[kind]
    if rng.random() < 0.4:
        rest = (len(view.boxes) if view.shapes else sum(view.counts[one] for one in view.kinds(kind))) - n
        return Ask(say(rng, "of kind not", kinds=many, things=things), f"There {is_or_are(rest)} {rest}.")
    return Ask(say(rng, "of kind", kinds=many, things=things), there_are(n, name), about=name if n == 1 else "")


def _kind_sum(rng, view):
    """How many there are of a kind that several names are of."""
    kinds = [kind for kind in _kinds_there(view) if _clear(view, kind)]
    if not kinds or view.shapes:
        return None
    kind = pick(rng, kinds)
    n = sum(view.counts[name] for name in view.kinds(kind))
    return Ask(say(rng, "kind count", kinds=synonyms.KINDS[kind], kind=kind), f"There are {n}.")


def _alone(rng, view):
    """What is there once, and what several times."""
    names = countable(view)
    if len(view.named) < 2 or names != list(view.named) or view.text or view.picture.skill == "easy_vqa":
        return None
    kinds = [k for k, of in _kinds_there(view).items() if len(of) == len(view.named)] or ["thing"]
    kind = "shape" if view.shapes else pick(rng, kinds)
    once, more = view.unique, [name for name in names if name not in view.unique]
    choice = rng.random()
    if choice < 0.4 and len(once) == 1:
        return Ask(say(rng, "once", kind=kind), f"It is {noun(view, once[0])}.", about=once[0])
    if choice < 0.7 and len(more) == 1:
        told = there_are(view.counts[more[0]], more[0])
        return Ask(say(rng, "more than once", kind=kind), told, several=more[0])
    name = pick(rng, names)
    n = view.counts[name]
    if n > 1 and sum(view.counts[other] == n for other in names) == 1:
        return Ask(say(rng, "n times", n=in_words_or_digits(rng, n), kind=kind), there_are(n, name), several=name)
    return None


def _most_of(rng, view):
    """What there is most and least of."""
    names = countable(view)
    if len(names) < 2 or names != list(view.named) or view.picture.skill == "easy_vqa":
        return None
    order = view.counts.most_common()
    if order[0][1] == order[1][1]:
        return None
    kinds = [k for k, of in _kinds_there(view).items() if len(of) == len(view.named)] or ["thing"]
    kind = "shape" if view.shapes else pick(rng, kinds)
    many = {"shape": "shapes", "thing": "things"}.get(kind) or synonyms.KINDS[kind]
    name = order[0][0]
    if len(order) == 2 and rng.random() < 0.3:
        return Ask(say(rng, "least of", kind=kind, kinds=many), f"There are fewer {plural(order[1][0])}.")
    return Ask(say(rng, "most of", kind=kind, kinds=many), f"There are more {plural(name)}.", several=name)


def _fewer(rng, view):
    """Yes and no about more and fewer, and by how many."""
    if not (two := two_of(rng, view)):
        return None
    n, m = (view.counts[name] for name in two)
    things, others = (plural(called(rng, view, name)) for name in two)
    choice = rng.random()
    if choice < 0.4:
        return Ask(say(rng, "are fewer", things=things, others=others), "Yes." if n < m else "No.")
    if choice < 0.75:
        return Ask(say(rng, "are more", things=things, others=others), "Yes." if n > m else "No.")
    if n == m:
        return Ask(say(rng, "difference", things=things, others=others), "There is no difference.")
    if n < m:
        things, others = others, things
    return Ask(
        say(rng, "difference", things=things, others=others), f"There {is_or_are(abs(n - m))} {abs(n - m)} more."
    )


def _at_least(rng, view):
    names = countable(view)
    if not names:
        return None
    name = pick(rng, names)
    n, than, things = view.counts[name], int(rng.integers(2, 6)), plural(called(rng, view, name))
    if rng.random() < 0.5:
        return Ask(
            say(rng, "fewer than", n=in_words_or_digits(rng, than), things=things), "Yes." if n < than else "No."
        )
    return Ask(say(rng, "at least", n=in_words_or_digits(rng, than), things=things), "Yes." if n >= than else "No.")


def _listed_kind(rng, view):
    """Which they are, of things of one kind whose number is told."""
    kinds = {kind: names for kind, names in _kinds_there(view).items() if _clear(view, kind)}
    if not kinds or view.shapes:
        return None
    kind = pick(rng, list(kinds))
    found = sorted(view.kinds(kind))
    if any(view.counts[name] > 1 for name in found):
        return None
    asked = say(rng, "n kinds", n=in_words_or_digits(rng, len(found)), kinds=synonyms.KINDS[kind])
    return Ask(asked, f"I see {listed([a(name) for name in found])}.")


def _not_that(rng, view):
    """Which of two it is that something is not."""
    if len(view.named) != 2 or view.picture.skill == "easy_vqa" or len(view.unique) < 1:
        return None
    found = pick(rng, view.unique)
    other = next(name for name in view.named if name != found)
    thing = "shape" if view.shapes else "thing"
    return Ask(
        say(rng, "which is not", a=a(called(rng, view, other, alone=False)), thing=thing),
        f"It is {noun(view, found)}.",
        about=found,
    )


def _rest(rng, view):
    """What there is beside things that are there several times."""
    names = countable(view)
    if len(view.named) < 2 or names != list(view.named) or view.shapes or view.picture.skill == "easy_vqa":
        return None
    several = [name for name in names if view.counts[name] > 1]
    if not several:
        return None
    name = pick(rng, several)
    rest = sorted(other for other in names if other != name)
    told = [a(other) if view.counts[other] == 1 else f"{view.counts[other]} {plural(other)}" for other in rest]
    one = len(rest) == 1
    answer = (f"There is {told[0]}." if view.counts[rest[0]] == 1 else f"There are {told[0]}.") if one else (
        f"I see {listed(told)}.")  # fmt: skip
    return Ask(say(rng, "rest", things=plural(called(rng, view, name))), answer,
               about=rest[0] if one and view.counts[rest[0]] == 1 else "")  # fmt: skip


# ------------------------------------------------------------------------------------------ order and corners


def _along(view: View, axis: int) -> list[str]:
    """The names of things that are there once each, in order; empty where two lie side by side."""
    if len(view.unique) != len(view.named) or len(view.unique) < 2 or view.picture.skill == "easy_vqa":
        return []
    order = sorted(view.unique, key=lambda name: middle(view.named[name][0])[axis])
    places = [middle(view.named[name][0])[axis] for name in order]
    return order if all(b - a >= APART for a, b in itertools.pairwise(places)) else []


def _extreme(rng, view):
    axis, sign = pick(rng, list(_MOST))
    if not (order := _along(view, axis)):
        return None
    name = order[-1 if sign > 0 else 0]
    return Ask(say(rng, "extreme", most=pick(rng, _MOST[axis, sign])), f"It is {noun(view, name)}.", about=name)


def _in_order(rng, view):
    way = pick(rng, list(_WAYS))
    axis, sign = _WAYS[way]
    order = _along(view, axis)[::sign]
    if not order or len(order) > 4:
        return None
    things = "shapes" if view.shapes else "things"
    return Ask(say(rng, "in order", way=way, things=things), f"I see {listed([noun(view, name) for name in order])}.")


def _higher(rng, view):
    if len(view.unique) < 2:
        return None
    one, two = (view.unique[i] for i in rng.permutation(len(view.unique))[:2])
    axis, sign = pick(rng, list(_THAN))
    gap = (middle(view.named[one][0])[axis] - middle(view.named[two][0])[axis]) * sign
    if abs(gap) < APART:
        return None
    than, words = _THAN[axis, sign], [the_word(called(rng, view, name)) for name in (one, two)]
    if rng.random() < 0.5:
        asked = say(rng, "is higher", the=words[0], than=than, the2=words[1])
        return Ask(asked, "Yes." if gap > 0 else "No.")
    name = one if gap > 0 else two
    asked = say(rng, "which is higher", the=words[0], than=than, the2=words[1])
    return Ask(asked, f"It is {noun(view, name)}.", about=name)


def _corner(rng, view):
    names = [name for name in view.unique if _known_place(view, name)]
    if not names or view.picture.sides:
        return None
    name = pick(rng, names)
    place, word = view.place(name), the_word(called(rng, view, name))
    choice = rng.random()
    if place in CORNERS and choice < 0.55:
        if lone(view):
            return Ask(say(rng, "corner it"), f"It is {_AT[place]}.", topic="where", about=name)
        answer = sentence(f"{the(name)} is {_AT[place]}")
        return Ask(say(rng, "which corner", the=word), answer, topic="where", about=name)
    if place in CORNERS and choice < 0.75:
        reached = [box for box in view.boxes if overlaps(box, CORNERS[place])]
        found = [one for one in names if view.place(one) == CORNERS[place]]
        if reached and not (len(reached) == len(found) == 1):
            return None
        answer = f"It is {noun(view, found[0])}." if found else "There is nothing."
        return Ask(say(rng, "opposite", the=word), answer, about=found[0] if found else "")
    no = f"No, it is {_AT[place]}." if lone(view) else f"No, {the(name)} is {_AT[place]}."
    told = "Yes." if place in CORNERS else no
    return Ask(say(rng, "in a corner", the=word), told, topic="where", about=name)


def _either_place(rng, view):
    """Which of two places the one thing is in, or on which of two sides."""
    name = lone(view) or (view.single if view.shapes else "")
    if not name or not (place := _known_place(view, name)):
        return None
    if place == "middle" or rng.random() < 0.3:
        one, two = "in the middle", "in a corner"
        if place != "middle" and place not in CORNERS:
            return None
        words = (one, two)
    else:
        part = pick(rng, place.split())
        words = {"left": ("left", "right"), "right": ("left", "right"), "top": ("at the top", "at the bottom"),
                 "bottom": ("at the top", "at the bottom")}[part]  # fmt: skip
    words = words if rng.random() < 0.5 else words[::-1]
    return Ask(say(rng, "either place", one=words[0], two=words[1]), f"It is {_AT[place]}.", topic="where", about=name)


# ------------------------------------------------------------------------------------------ colors


def _single_colors(view: View) -> dict[str, str]:
    """The color of each name, if each has but one."""
    told = {name: view.colors(name) for name in view.named}
    return {name: of[0] for name, of in told.items() if len(of) == 1}


def _color_exists(rng, view):
    told = _single_colors(view)
    if not told or len(told) < len(view.named) or view.text or view.picture.skill == "easy_vqa":
        return None
    there = rng.random() < 0.5
    color = pick(rng, list(told.values()) if there else [c for c in render.COLORS if c not in told.values()])
    if color == view.picture.background or (view.picture.background in (None, "pale") and not there):
        return None
    return Ask(say(rng, "color exists", color=color), "Yes." if there else "No.")


def _colors_of_both(rng, view):
    told = _single_colors(view)
    if view.shapes or len(view.unique) != 2 or len(view.boxes) != 2 or len(told) != 2:
        return None
    one, two = sorted(told)
    return Ask(say(rng, "both colors"), sentence(f"{the(one)} is {told[one]} and {the(two)} is {told[two]}"))


def _color_at(rng, view):
    names = [name for name in view.unique if _known_place(view, name) and len(view.colors(name)) == 1]
    if not names or len(view.boxes) < 2:
        return None
    name = pick(rng, names)
    place = view.place(name)
    if not view.picture.sides and sum(overlaps(box, place) for box in view.boxes) != 1:
        return None
    what = "shape" if view.shapes else pick(rng, ["thing", "one", *kinds_of(name)[:1]])
    asked = say(rng, "color at", place=pick(rng, synonyms.PLACES[place]), thing=what)
    return Ask(asked, has_colors(view, name, it=True), topic="color", about=name)


def _around(rng, view):
    if not view.unique:
        return None
    word = the_word(called(rng, view, pick(rng, view.unique)))
    return Ask(say(rng, "around", the=word), f"The background is {view.picture.background or 'colorful'}.",
               topic="background")  # fmt: skip


# ------------------------------------------------------------------------------------------ shapes told by color


def _told_by_color(view: View) -> dict[str, render.Box]:
    """What names one shape by its color: "black one", and "black rectangle" where there are two rectangles."""
    if not view.shapes or len(view.boxes) < 2 or view.picture.skill == "easy_vqa":
        return {}
    colors, forms = Counter(box.color for box in view.boxes), Counter(box[:2] for box in view.boxes)
    found = {f"{box.color} one": box for box in view.boxes if colors[box.color] == 1}
    return found | {f"{box.color} {box.what}": box for box in view.boxes if forms[box[:2]] == 1}


def _box_place(box: render.Box) -> str:
    """Where a shape is; empty where that is on the border of two places."""
    x, y = middle(box)
    third = render.SIZE / 3
    if any(abs(v - border) < 2.5 for v in (x, y) for border in (third, 2 * third)):
        return ""
    return render.place_of(x / render.SIZE, y / render.SIZE)


def _colored(rng, view):
    told = _told_by_color(view)
    if not told:
        return None
    word = pick(rng, list(told))
    box = told[word]
    shape, one = box.what if view.counts[box.what] == 1 else f"{box.color} {box.what}", f"the {word}"
    choice, about = rng.random(), box.what if view.counts[box.what] == 1 else ""
    if choice < 0.25:
        if word.endswith(" one"):
            return Ask(say(rng, "form colored", color=box.color), f"It is {a(f'{box.color} {box.what}')}.", about=about)
        return None
    place = _box_place(box)
    if choice < 0.5 and place:
        answer = sentence(f"the {shape} is {_AT[place]}")
        return Ask(say(rng, "where the", the=one), answer, topic="where", about=about)
    if choice < 0.65 and place:
        others = [at for at in _AT if not set(at.split()) & set(place.split())]
        asked = place if rng.random() < 0.5 else pick(rng, others)
        answer = "Yes." if asked == place else sentence(f"no, the {shape} is {_AT[place]}")
        return Ask(say(rng, "at place", the=one, place=pick(rng, synonyms.PLACES[asked])), answer, topic="where",
                   about=about)  # fmt: skip
    others = {other: found for other, found in told.items() if found is not box}
    if not others:
        return None
    other = pick(rng, list(others))
    axis, sign = pick(rng, list(_THAN))
    gap = (middle(box)[axis] - middle(others[other])[axis]) * sign
    if abs(gap) < APART:
        return None
    side = {(0, -1): "left of", (0, 1): "right of", (1, -1): "above", (1, 1): "below"}[axis, sign]
    if rng.random() < 0.6 or len(view.boxes) > 2:
        asked = say(rng, "is left of", the=one, side=side, the2=f"the {other}")
        return Ask(asked, "Yes." if gap > 0 else "No.")
    if gap < 0:
        return None
    return Ask(say(rng, "what left of", side=side, the=f"the {other}"), f"It is {a(f'{box.color} {box.what}')}.",
               about=about)  # fmt: skip


# ------------------------------------------------------------------------------------------ text


def in_text(rng, view):
    """About what is written, letter by letter."""
    text = view.text
    if not text:
        return None
    number = text.isdigit()
    unit = "digit" if number else "letter"
    choice = int(rng.integers(12))
    if choice > 7:
        return _reckoned(rng, text) if number else _spelled(rng, text)
    if choice < 2:
        end = rng.random() < 0.5
        asked = say(rng, "ends with which" if end else "begins with which", unit=unit)
        return Ask(asked, f"It is {text[-1 if end else 0]}.")
    if choice == 2 and len(text) > 1:
        n = int(rng.integers(1, len(text)))
        if text.count(text[n]) == 1:
            return Ask(say(rng, "letter before", letter=text[n], unit=unit), f"It is {text[n - 1]}.")
    if choice == 3 and len(text) > 2:
        n = int(rng.integers(1, len(text) - 1))
        if text.count(text[n - 1]) == text.count(text[n + 1]) == 1:
            asked = say(rng, "letter between", letter=text[n - 1], letter2=text[n + 1], unit=unit)
            return Ask(asked, f"It is {text[n]}.")
    if choice == 4:
        guess = len(text) if rng.random() < 0.5 else int(rng.integers(1, 8))
        told = "Yes." if guess == len(text) else f"No, there {is_or_are(len(text))} {counted(len(text), unit)}."
        return Ask(say(rng, "length claim", n=NUMBERS[guess], units=unit if guess == 1 else unit + "s"), told)
    if choice == 5:
        twice = [letter for letter in dict.fromkeys(text) if text.count(letter) > 1]
        if len(twice) == 1:
            return Ask(say(rng, "which twice", unit=unit), f"It is {twice[0]}.")
    if choice == 6 and number:
        than = int(text) + int(rng.integers(1, 30)) * (1 if rng.random() < 0.5 else -1)
        if than >= 0 and rng.random() < 0.7:
            return Ask(say(rng, "number bigger", n=str(than)), "Yes." if int(text) > than else "No.")
        return Ask(say(rng, "even or odd"), f"It is {'odd' if int(text) % 2 else 'even'}.")
    if choice == 7:
        return Ask(say(rng, "text or picture"), f"It is a {'number' if number else 'word'}.")
    return None


def _spelled(rng: np.random.Generator, word: str) -> Ask | None:
    """What follows from the letters of a word."""
    choice, nth = int(rng.integers(7)), int(rng.integers(len(word)))
    letter = word[nth]
    place = "last" if nth == len(word) - 1 else "middle" if 2 * nth + 1 == len(word) else ORDINAL[nth]
    if choice == 0:
        if rng.random() < 0.3:
            letter = pick(rng, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        n = word.count(letter)
        return Ask(
            say(rng, "letter times", letter=letter), f"There {is_or_are(n)} {n}." if n else f"There is no {letter}."
        )
    if choice == 1 and "Y" not in word:
        n = sum(one in _VOWELS for one in word)
        return Ask(say(rng, "vowel count"), f"There {is_or_are(n)} {n}." if n else "There are no vowels.")
    if choice == 2 and letter != "Y":
        return Ask(say(rng, "is vowel", nth=place), f"It is a {'vowel' if letter in _VOWELS else 'consonant'}.")
    if choice == 3 and letter != "Z":
        return Ask(say(rng, "alphabet next", nth=place), f"It is {chr(ord(letter) + 1)}.")
    if choice == 4:
        return Ask(say(rng, "backwards"), "Yes." if word == word[::-1] else "No.")
    if choice == 5:
        return Ask(say(rng, "reversed"), ", ".join(word[::-1]) + ".")
    return Ask(say(rng, "same letter ends"), "Yes." if word[0] == word[-1] else "No.")


def _reckoned(rng: np.random.Generator, number: str) -> Ask | None:
    """A sum or a difference with a small number."""
    value, n, choice = int(number), int(rng.integers(1, 11)), int(rng.integers(4))
    if value > MOST_RECKONED:
        return None
    if choice == 0:
        return Ask(say(rng, "number plus", n=str(n)), f"It is {value + n}.")
    if choice == 1:
        return Ask(say(rng, "number minus", n=str(n)), f"It is {value - n}.") if n <= value else None
    if choice == 2:
        return Ask(say(rng, "number double"), f"It is {2 * value}.")
    return Ask(say(rng, "digit sum"), f"It is {sum(map(int, number))}.") if len(number) > 1 else None


TOPICS = {
    _trait: 4, _claim_not: 1, _part: 4, _kind_sum: 5, _alone: 3, _most_of: 2, _fewer: 4, _at_least: 2, _listed_kind: 2,
    _not_that: 2, _rest: 2, _extreme: 3, _in_order: 2, _higher: 2, _corner: 5, _either_place: 2, _color_exists: 3,
    _colors_of_both: 2, _color_at: 2, _around: 1, _colored: 5,
}  # fmt: skip
