"""Questions in people's own words: the intents of `phrases.txt`, and how a picture answers them.

* `ask(rng, view)`: a question about a picture, None where it does not allow the one that was drawn.
* `ask_of_it(rng, view, name)`: one about what was just spoken of.
* `about(rng, picture, count)`: several questions, each of which can be asked first.

The answers are those of `questions` and `further`. More intents are in `finer` and `facts`.
"""

import numpy as np

from . import art, facts, finer, render, synonyms
from .further import (
    APART,
    ORDINAL,
    SIDES,
    Ask,
    View,
    absent,
    called,
    color_of_it,
    countable,
    describe,
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
from .pictures import Picture
from .questions import _AT
from .render import pick
from .untold import CANNOT_TELL, composed
from .wording import COUNTABLE, TRAIN_WORDS, a, counted, is_or_are, plural, sentence, the, there_are

GOES_ON = "..."  # a short question of the same topic may come next, in `further`'s words


# ------------------------------------------------------------------------------------------ what and how many


def tell(view: View) -> str:
    """Says what is in a picture, also of two things wherever they are; empty where that is not known."""
    if len(view.boxes) == 2 == len(view.unique) and not view.shapes:
        return f"I see {listed([a(name) for name in sorted(view.named)])}."
    return describe(view)


def _what(rng, view):
    return Ask(say(rng, "what"), tell(view), about=view.single)


def _what_one(rng, view):
    return view.single and Ask(say(rng, "what one"), describe(view), about=view.single)


def _what_several(rng, view):
    return Ask(say(rng, "what several"), tell(view)) if len(view.boxes) > 1 else None


def _which_kind(rng, view):
    kinds = [kind for kind in kinds_of(lone(view)) if kind != view.single]
    if not kinds:
        return None
    kind = pick(rng, kinds)
    return Ask(say(rng, "which kind", kind=kind, a_kind=a(kind)), f"It is {a(view.single)}.", about=view.single)


def _either_kind(rng, view):
    """Which of two or three kinds a thing is of."""
    kinds = kinds_of(lone(view))
    others = [kind for kind in synonyms.KINDS if kind not in kinds and _is_clear(view, kind)]
    if not kinds or len(others) < 2:
        return None
    kind, many = pick(rng, kinds), lambda kind: synonyms.KINDS.get(kind) or plural(kind)
    asked = [kind, *(others[i] for i in rng.permutation(len(others))[: 1 if rng.random() < 0.7 else 2])]
    one, two, *more = (asked[i] for i in rng.permutation(len(asked)))
    if more:
        (third,) = more
        question = say(
            rng, "three kinds", kind=one, a_kind=a(one), kinds=many(one), other=two, b_kind=a(two), others=many(two),
            third=third, c_kind=a(third), thirds=many(third),
        )  # fmt: skip
    else:
        question = say(
            rng, "either kind", kind=one, a_kind=a(one), kinds=many(one), other=two, b_kind=a(two), others=many(two)
        )
    return Ask(question, f"It is {a(kind)}.", about=view.single)


def _is_clear(view: View, kind: str) -> bool:
    """Whether nobody doubts of anything that is there if it is of a kind."""
    return not (view.named.keys() & set(synonyms.DOUBTFUL.get(kind, ())))


def _anything_else(rng, view):
    return Ask(say(rng, "anything else"), "No.") if lone(view) else None


def _besides(rng, view):
    if not 2 <= len(view.unique) == len(view.boxes) <= 3 or view.shapes:
        return None
    name = pick(rng, view.unique)
    rest = [a(other) for other in sorted(view.unique) if other != name]
    asked = say(rng, "besides", the=the_word(called(rng, view, name)))
    return Ask(asked, f"There is {rest[0]}." if len(rest) == 1 else f"I see {listed(rest)}.")


def _claim(rng, view):
    if not lone(view):
        return None
    right = rng.random() < 0.5
    word = a(called(rng, view, view.single if right else absent(rng, view)))
    answer = f"{'Yes' if right else 'No'}, it is {a(view.single)}."
    return Ask(say(rng, "claim one", a=word), answer, about=view.single, then=f"It is {a(view.single)}.")


def _either(rng, view):
    if not lone(view):
        return None
    words = [called(rng, view, name) for name in (view.single, absent(rng, view))]
    one, two = words if rng.random() < 0.5 else words[::-1]
    asked = say(rng, "either", a=a(one), b=a(two), thing=one, other=two)
    return Ask(asked, f"It is {a(view.single)}.", about=view.single)


def _sort(rng, view):
    kind = art.KIND_OF.get(lone(view), "thing")
    return None if kind == "thing" else Ask(say(rng, "sort of thing"), f"It is {a(kind)}.", about=view.single)


def _is_kind(rng, view):
    kinds = kinds_of(lone(view))
    if not kinds:
        return None
    every = sorted({*art.KIND_OF.values(), *synonyms.SORTS} - {"thing"})
    asked = pick(rng, kinds if rng.random() < 0.5 else every)
    foods = {"fruit", "vegetable", "food", "plant"}
    if asked not in kinds and (not _is_clear(view, asked) or {asked, kinds[0]} <= foods):
        return None
    answer = f"{'Yes' if asked in kinds else 'No'}, it is {a(view.single)}."
    return Ask(say(rng, "is kind", a_kind=a(asked), kind=asked), answer, about=view.single)


def _exists(rng, view):
    there = bool(view.named) and rng.random() < 0.5
    name = pick(rng, list(view.named)) if there else absent(rng, view)
    word = called(rng, view, name)
    if (name in COUNTABLE or name in render.SHAPES) and not lone(view) and rng.random() < 0.3:
        return Ask(say(rng, "exists many", things=plural(word)), "Yes." if there else "No.")
    answer = "Yes." if there else "No."
    if lone(view):
        answer = f"{'Yes' if there else 'No'}, I see {a(view.single)}."
    about = name if there and name in view.unique else ""
    return Ask(say(rng, "exists", a=a(word)), answer, topic="exists", short=GOES_ON, about=about)


def _kind_exists(rng, view):
    kind = _kind(rng, view)
    if not kind:
        return None
    found = view.kinds(kind)
    asked = say(rng, "kind exists", a_kind=a(kind), kinds=synonyms.KINDS[kind], kind=kind)
    about = found[0] if len(found) == 1 and found[0] in view.unique else ""
    return Ask(asked, "Yes." if found else "No.", about=about)


def _kind(rng, view) -> str:
    """A kind to ask for: most often one that is there."""
    kind = pick(rng, list(synonyms.KINDS))
    if view.named and not view.shapes and rng.random() < 0.6:
        kind = pick(rng, kinds_of(pick(rng, list(view.named))) or [kind])
    if (
        kind not in synonyms.KINDS
        or not _is_clear(view, kind)
        or (kind == "toy" and view.kinds("ball"))
        or (view.shapes and kind in ("ball", "toy"))
    ):
        return ""
    return kind


def _kinds(rng, view):
    kind = _kind(rng, view)
    if not kind or view.text:
        return None
    found = sorted(view.kinds(kind))
    several = any(view.counts[name] > 1 for name in found)
    told = listed([counted(view.counts[name], name) if several else a(name) for name in found]) if found else ""
    asked = say(rng, "kinds", kinds=synonyms.KINDS[kind], kind=kind)
    return Ask(asked, f"I see {told}." if found else f"There are no {synonyms.KINDS[kind]}.")


def _which_is_kind(rng, view):
    kind = _kind(rng, view)
    found = view.kinds(kind)
    if len(view.named) < 2 or len(found) != 1 or found[0] not in view.unique:
        return None
    return Ask(say(rng, "which is kind", a_kind=a(kind), kind=kind), f"It is {a(found[0])}.", about=found[0])


def _edible(rng, view):
    if not lone(view):
        return None
    yes = art.KIND_OF[view.single] in synonyms.EDIBLE
    return Ask(say(rng, "edible"), f"{'Yes' if yes else 'No'}, it is {a(view.single)}.", about=view.single)


def _count(rng, view):
    there = bool(countable(view)) and rng.random() < 0.75
    name = pick(rng, countable(view)) if there else absent(rng, view, countable=True)
    if not there and (name not in COUNTABLE and name not in render.SHAPES):
        return None
    n = view.counts[name] if there else 0
    asked = say(rng, "count", things=plural(called(rng, view, name)))
    about = name if n == 1 else ""
    answer = there_are(n, name) if there else f"There are no {plural(name)}."
    return Ask(asked, answer, topic="count", short=GOES_ON, about=about)


def _total(rng, view):
    n = len(view.boxes)
    return Ask(say(rng, "total"), f"There {is_or_are(n)} {n}.") if n else None


def _sum(rng, view):
    if not (two := two_of(rng, view)):
        return None
    one, other = (plural(called(rng, view, name)) for name in two)
    return Ask(say(rng, "sum", things=one, others=other), f"There are {sum(view.counts[name] for name in two)}.")


def _more(rng, view):
    if not (two := two_of(rng, view)):
        return None
    one, other = two
    n, m = (view.counts[name] for name in two)
    same = f"There are as many {plural(one)} as {plural(other)}."
    answer = same if n == m else f"There are more {plural(one if n > m else other)}."
    return Ask(say(rng, "more of", things=plural(one), others=plural(other)), answer)


def _kind_count(rng, view):
    kind = _kind(rng, view)
    if not kind or view.text or view.shapes:
        return None
    n = sum(view.counts[name] for name in view.kinds(kind))
    answer = f"There {is_or_are(n)} {n}." if n else f"There are no {synonyms.KINDS[kind]}."
    return Ask(say(rng, "kind count", kinds=synonyms.KINDS[kind], kind=kind), answer)


def _what_and_how_many(rng, view):
    n = len(view.boxes)
    if len(view.counts) != 1 or n < 2:
        return None
    return Ask(say(rng, "what and how many"), there_are(n, view.boxes[0].what))


def _total_claim(rng, view):
    n = len(view.boxes)
    if n < 2 or view.text:
        return None
    guess = n if rng.random() < 0.5 else int(rng.integers(1, 7))
    return Ask(
        say(rng, "total claim", n=in_words_or_digits(rng, guess)), "Yes." if guess == n else f"No, there are {n}."
    )


def _than(rng, view):
    """Whether there are more than so many; as many of one as of another."""
    if (two := two_of(rng, view)) and rng.random() < 0.5:
        one, other = (plural(called(rng, view, name)) for name in two)
        n, m = (view.counts[name] for name in two)
        return Ask(say(rng, "as many", things=one, others=other), "Yes." if n == m else "No.")
    names = countable(view)
    if not names:
        return None
    name = pick(rng, names)
    than, words = int(rng.integers(1, 6)), plural(called(rng, view, name))
    return Ask(
        say(rng, "more than", n=in_words_or_digits(rng, than), things=words),
        "Yes." if view.counts[name] > than else "No.",
    )


def _count_claim(rng, view):
    names = countable(view)
    if not names:
        return None
    name = pick(rng, names)
    n, word = view.counts[name], called(rng, view, name)
    guess = n if rng.random() < 0.5 else int(rng.integers(1, 7))
    things = f"{in_words_or_digits(rng, guess)} {word if guess == 1 else plural(word)}"
    asked = say(rng, "count claim", **{"n things": things})
    return Ask(asked, "Yes." if guess == n else f"No, there {is_or_are(n)} {counted(n, name)}.")


def _take_away(rng, view):
    if len(view.counts) != 1 or len(view.boxes) < 2:
        return None
    n = len(view.boxes)
    gone = int(rng.integers(1, n))
    return Ask(say(rng, "take away", n=in_words_or_digits(rng, gone)), f"There {is_or_are(n - gone)} {n - gone} left.")


def _all_same(rng, view):
    return Ask(say(rng, "all same"), "Yes." if len(view.counts) == 1 else "No.") if len(view.boxes) > 1 else None


def _all_kind(rng, view):
    kind = _kind(rng, view)
    if not kind or len(view.boxes) < 2 or view.shapes:
        return None
    asked = say(rng, "all kind", kinds=synonyms.KINDS[kind], kind=kind)
    return Ask(asked, "Yes." if len(view.kinds(kind)) == len(view.named) else "No.")


# ------------------------------------------------------------------------------------------ colors


def _color(rng, view):
    easy = view.picture.skill == "easy_vqa"  # whose own questions have answers of one word
    names = [n for n in view.named if len(view.named[n]) == 1 or ((n in COUNTABLE or view.shapes) and view.colors(n))]
    if not easy and view.named and rng.random() < 0.12:
        return _of_nothing(rng, view, "color the")
    if not names or easy:
        return None
    name = pick(rng, names)
    if len(view.named[name]) > 1:
        if len(view.named) > 1:
            return None
        return Ask(say(rng, "color they"), has_colors(view, name, True))
    if view.single and rng.random() < 0.5:
        return Ask(say(rng, "color it"), has_colors(view, name, True), topic="color", about=name)
    word = the_word(called(rng, view, name))
    answer = has_colors(view, name, False)
    return Ask(say(rng, "color the", the=word), answer, topic="color", short=GOES_ON, about=name)


def _of_nothing(rng, view, intent):
    """A question about what is not there."""
    name = absent(rng, view)
    return Ask(say(rng, intent, the=the_word(called(rng, view, name))), f"There is no {name}.")


def _is_two_colors(rng, view):
    """Of one thing: whether it has two colors, or that of the background."""
    if not lone(view):
        return None
    colors, ground = view.colors(view.single), view.picture.background
    if len(colors) == 1 and ground and ground != "pale" and rng.random() < 0.5:
        answer = "Yes." if colors == (ground,) else f"No, it is {colors[0]}."
        return Ask(say(rng, "ground same"), answer, about=view.single)
    if len(colors) != 2:
        return None
    asked = set(colors)
    if rng.random() < 0.5:
        asked = {list(render.COLORS)[i] for i in rng.permutation(len(render.COLORS))[:2]}
    words = [word for word in render.COLORS if word in asked]
    words = words if rng.random() < 0.5 else words[::-1]
    answer = "Yes." if asked == set(colors) else f"No, it is {' and '.join(colors)}."
    return Ask(say(rng, "is two colors", colors=" and ".join(words)), answer, about=view.single)


def _is_color(rng, view):
    names = [name for name in view.unique if len(view.colors(name)) == 1]
    if not names or view.picture.skill == "easy_vqa":
        return None
    name = pick(rng, names)
    (color,) = view.colors(name)
    asked = color if rng.random() < 0.5 else pick(rng, list(render.COLORS))
    word = the_word(called(rng, view, name))
    answer = "Yes." if asked == color else sentence(f"no, {the(name)} is {color}")
    return Ask(say(rng, "the is color", the=word, color=asked), answer, topic="is color", about=name)


def _which_is_color(rng, view):
    told = {name: view.colors(name) for name in view.named}
    if len(view.unique) < 2 or len(view.unique) != len(view.named) or not all(len(c) == 1 for c in told.values()):
        return None
    name = pick(rng, view.unique)
    (color,) = told[name]
    if sum(other == (color,) for other in told.values()) > 1:
        return None
    asked = say(rng, "which is color", color=color)
    return Ask(asked, sentence(f"{the(name)} is {color}"), topic="which color", about=name)


def _colors(rng, view):
    if not view.shapes or view.picture.skill == "easy_vqa":
        return None
    seen = [color for color in render.COLORS if color in {box.color for box in view.boxes}]
    return Ask(say(rng, "colors"), f"I see {listed(seen)}.")


def _background(rng, view):
    ground = view.picture.background
    if rng.random() < 0.7:
        return Ask(say(rng, "background"), f"The background is {ground or 'colorful'}.", topic="background")
    asked = ground if ground and rng.random() < 0.5 else pick(rng, list(render.COLORS))
    if ground == "pale":
        return None
    ground = ground or "colorful"
    answer = "Yes." if asked == ground else f"No, it is {ground}."
    return Ask(say(rng, "is background", color=asked), answer, topic="background", then=f"The background is {ground}.")


# ------------------------------------------------------------------------------------------ places


def _placed(view: View) -> list[str]:
    return [] if view.picture.skill == "easy_vqa" else [name for name in view.unique if view.place(name)]


def _where(rng, view):
    if not _placed(view):
        return None
    if rng.random() < 0.08:
        return _of_nothing(rng, view, "where the")
    name = pick(rng, _placed(view))
    if lone(view) and rng.random() < 0.4:
        return _is_at(rng, view, name)
    if lone(view):
        return Ask(say(rng, "where it"), f"It is {_AT[view.place(name)]}.", topic="where", about=name)
    word = the_word(called(rng, view, name))
    if rng.random() < 0.3:
        return _at_place(rng, view, name, word)
    answer = sentence(f"{the(name)} is {_AT[view.place(name)]}")
    return Ask(say(rng, "where the", the=word), answer, topic="where", short=GOES_ON, about=name)


def _some_place(rng, view, name) -> tuple[str, str]:
    """A place to ask for, and where the thing is."""
    place = view.place(name)
    others = [at for at in view.picture.sides or _AT if not set(at.split()) & set(place.split())]
    return place if rng.random() < 0.5 else pick(rng, others), place


def _is_at(rng, view, name):
    asked, place = _some_place(rng, view, name)
    phrase = say(rng, "is at", place=pick(rng, synonyms.PLACES[asked]))
    return Ask(phrase, "Yes." if asked == place else f"No, it is {_AT[place]}.", topic="where", about=name)


def _at_place(rng, view, name, word):
    asked, place = _some_place(rng, view, name)
    answer = "Yes." if asked == place else f"No, {the(name)} is {_AT[place]}."
    phrase = say(rng, "at place", the=word, place=pick(rng, synonyms.PLACES[asked]))
    return Ask(phrase, answer, topic="where", about=name)


def _which_side(rng, view):
    names = [name for name in _placed(view) if set(view.place(name).split()) & {"left", "right"}]
    if not names or lone(view):
        return None
    name = pick(rng, names)
    side = view.place(name).split()[-1]
    return Ask(say(rng, "which side", the=the_word(called(rng, view, name))), f"It is on the {side}.", about=name)


def _reached(view: View, place: str) -> list[str]:
    """What lies at a place, wholly or in part."""
    if view.picture.sides:
        return [box.what for box, side in zip(view.boxes, view.picture.sides, strict=True) if side == place]
    return [box.what for box in view.boxes if overlaps(box, place)]


def _what_at(rng, view):
    if view.text or view.picture.skill == "easy_vqa" or not _placed(view):
        return None
    places = view.picture.sides or tuple(_AT)
    full = [place for place in (view.place(name) for name in _placed(view)) if len(_reached(view, place)) == 1]
    empty = [place for place in places if not _reached(view, place)]
    there = bool(full) and (not empty or rng.random() < 0.65)
    if not (full if there else empty):
        return None
    place = pick(rng, full if there else empty)
    at = pick(rng, synonyms.PLACES[place])
    choice = rng.random()
    if choice < 0.18:
        return Ask(say(rng, "anything at", place=at), "Yes." if there else "No.")
    if choice < 0.36:
        return Ask(say(rng, "empty at", place=at), "No." if there else "Yes.")
    if not there:
        return Ask(say(rng, "what at", place=at), "There is nothing.", topic="what at")
    name = next(name for name in _placed(view) if view.place(name) == place)
    answer = f"It is {noun(view, name)}."
    return Ask(say(rng, "what at", place=at), answer, topic="what at", short=GOES_ON, about=name)


def _beside(rng, view):
    if len(view.boxes) != 2 or len(view.unique) != 2 or view.shapes:
        return None
    name, other = view.unique if rng.random() < 0.5 else view.unique[::-1]
    asked = say(rng, "what beside", the=the_word(called(rng, view, name)))
    return Ask(asked, f"There is {a(other)}.", about=other)


def _gap(view: View, one: str, two: str, side: str) -> float:
    """How far one thing lies on a side of another, in pixels; less than 0 if on the other side."""
    axis, sign = SIDES[side]
    return (middle(view.named[two][0])[axis] - middle(view.named[one][0])[axis]) * sign


def _only_on(view: View, name: str, side: str) -> str:
    """The one thing on a side of another; empty if there is none or several, or it is hard to say."""
    gaps = {other: _gap(view, other, name, side) for other in view.unique if other != name}
    if len(view.unique) != len(view.named) or any(abs(gap) < APART for gap in gaps.values()):
        return ""
    found = [other for other, gap in gaps.items() if gap > 0]
    return found[0] if len(found) == 1 else ""


def _relative(rng, view):
    if len(view.unique) < 2:
        return None
    one, two = (view.unique[i] for i in rng.permutation(len(view.unique))[:2])
    side = pick(rng, list(SIDES))
    words = [the_word(called(rng, view, name)) for name in (one, two)]
    if (found := _only_on(view, one, side)) and rng.random() < 0.6:
        return Ask(say(rng, "what left of", side=side, the=words[0]), f"It is {noun(view, found)}.", about=found)
    gap = _gap(view, one, two, side)
    if abs(gap) < APART:
        return None
    return Ask(say(rng, "is left of", the=words[0], side=side, the2=words[1]), "Yes." if gap > 0 else "No.")


def _between(rng, view):
    if len(view.unique) != len(view.named) or len(view.unique) < 3:
        return None
    one, two, found = (view.unique[i] for i in rng.permutation(len(view.unique))[:3])
    p, q, m = (np.array(middle(view.named[name][0])) for name in (one, two, found))
    if np.linalg.norm((p + q) / 2 - m) > 0.2 * np.linalg.norm(p - q):
        return None
    words = [the_word(called(rng, view, name)) for name in (one, two)]
    return Ask(say(rng, "between", the=words[0], the2=words[1]), f"It is {noun(view, found)}.", about=found)


def _size(rng, view):
    if not lone(view):
        return None
    box = view.boxes[0]
    side = max(box.right - box.left, box.bottom - box.top)
    return None if 33 < side < 47 else Ask(
        say(rng, "size"), f"It is {'big' if side >= 47 else 'small'}.", about=view.single)  # fmt: skip


def _drawing(rng, view):
    return Ask(say(rng, "drawing"), "It is a drawing.")


def _shapes(rng, view):
    if view.picture.skill == "shapes":
        return Ask(say(rng, "shapes"), describe(view))
    things = view.named and not view.shapes and not set(view.named) & {"star", "diamond", "heart"}
    return Ask(say(rng, "shapes"), "There are no shapes.") if things else None


def _same(rng, view):
    if not view.shapes or len(view.boxes) < 2 or view.picture.skill == "easy_vqa":
        return None
    if len(view.unique) < 2 or rng.random() < 0.4:
        return Ask(say(rng, "same shape"), "Yes." if len(view.named) == 1 else "No.")
    one, two = (view.unique[i] for i in rng.permutation(len(view.unique))[:2])
    first, second = view.named[one][0].color, view.named[two][0].color
    words = [the_word(called(rng, view, name)) for name in (one, two)]
    no = sentence(f"no, {the(one)} is {first} and {the(two)} is {second}")
    return Ask(say(rng, "same color", the=words[0], the2=words[1]), "Yes." if first == second else no)


# ------------------------------------------------------------------------------------------ text


def _text(rng, view):
    text = view.text
    if not text:
        return Ask(say(rng, "any text"), "There is no text.")
    number = text.isdigit()
    unit, kind = ("digit", "number") if number else ("letter", "word")
    says = f"It says {text}."
    choice = int(rng.integers(12))
    if choice < 2:
        return Ask(say(rng, "read"), says)
    if choice == 2:
        return Ask(say(rng, "read number" if number else "read word"), says)
    if choice < 5:
        other = str(int(rng.integers(10 ** len(text)))) if number else pick(rng, TRAIN_WORDS)
        if other == text:
            return None
        if choice == 3:
            one, two = (text, other) if rng.random() < 0.5 else (other, text)
            return Ask(say(rng, "either text", text=one, text2=two), says)
        asked = text if rng.random() < 0.5 else other
        return Ask(say(rng, "is text", text=asked), "Yes." if asked == text else f"No, it says {text}.")
    if choice < 7:
        n = int(rng.integers(len(text)))
        nth = "last" if n == len(text) - 1 and rng.random() < 0.7 else ORDINAL[n]
        nth = "middle" if n * 2 + 1 == len(text) > 1 and rng.random() < 0.5 else nth
        return Ask(say(rng, "letter at", nth=nth, unit=unit), f"It is {text[n]}.")
    if choice == 7:
        return Ask(say(rng, "letter count", units=unit + "s", unit=unit), there_are(len(text), unit))
    if choice == 8 and rng.random() < 0.5:
        n = int(rng.integers(len(text)))
        if n + 1 < len(text) and text.count(text[n]) == 1 and rng.random() < 0.5:
            return Ask(say(rng, "letter after", letter=text[n]), f"It is {text[n + 1]}.")
        end = rng.random() < 0.5
        at = text[-1] if end else text[0]
        letter = at if rng.random() < 0.5 else pick(rng, text) if rng.random() < 0.5 else pick(rng, _of(text))
        return Ask(say(rng, "end with" if end else "start with", letter=letter), "Yes." if letter == at else "No.")
    if choice == 8:
        letter = pick(rng, text) if rng.random() < 0.5 else pick(rng, _of(text))
        return Ask(say(rng, "has letter", letter=letter), "Yes." if letter in text else "No.")
    if choice == 9:
        return Ask(say(rng, "spell"), ", ".join(text) + ".")
    if choice == 10:
        return Ask(say(rng, "word or number"), f"It is a {kind}.")
    if rng.random() < 0.5:
        return Ask(say(rng, "any text"), f"Yes, it says {text}.")
    return Ask(say(rng, "text color"), f"It is {view.picture.boxes[0].color}.")


def _of(text: str) -> str:
    """What a text like this can be made of."""
    return "0123456789" if text.isdigit() else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _untold(rng, view):
    if view.text and rng.random() < 0.6:
        return Ask(say(rng, "untold text"), CANNOT_TELL)
    if rng.random() < 0.4:
        return _composed(rng, view)
    if len(view.boxes) == 2 and not view.text and rng.random() < 0.3:
        return Ask(say(rng, "untold two"), CANNOT_TELL)
    if view.unique and not view.text and rng.random() < 0.35:
        word = the_word(called(rng, view, pick(rng, view.unique)))
        return Ask(say(rng, "untold the", the=word), CANNOT_TELL)
    return Ask(say(rng, "untold it" if rng.random() < 0.65 else "untold picture"), CANNOT_TELL)


def _composed(rng, view):
    """What no picture tells, about one or several of the things, or about all."""
    name = pick(rng, countable(view)) if countable(view) and not view.text else ""
    if name and view.counts[name] > 1:
        return Ask(composed(rng, "them" if rng.random() < 0.5 else f"the {plural(name)}", alone=False), CANNOT_TELL)
    subject = the_word(called(rng, view, name)) if name and rng.random() < 0.5 else "it"
    return Ask(composed(rng, subject), CANNOT_TELL)


_TOPICS = {
    _what: 4, _what_one: 2, _what_several: 4, _which_kind: 2, _claim: 3, _either: 2, _sort: 2, _is_kind: 3,
    _either_kind: 3, _anything_else: 1, _besides: 4,
    _exists: 6, _kind_exists: 3, _kinds: 3, _which_is_kind: 4, _edible: 1, _count: 6, _total: 3, _sum: 3, _more: 3,
    _kind_count: 4, _what_and_how_many: 2, _total_claim: 2, _than: 3, _count_claim: 4, _take_away: 2, _all_same: 2,
    _all_kind: 2, _color: 7, _is_color: 4, _is_two_colors: 2, _which_is_color: 3, _colors: 2, _background: 5, _where: 6,
    _which_side: 2, _what_at: 7, _beside: 3, _relative: 6, _between: 2, _size: 1, _drawing: 1, _shapes: 2, _same: 2,
    _text: 2, _untold: 8,
} | finer.TOPICS | facts.TOPICS  # fmt: skip
_some_topic = render.by_weight(_TOPICS)


def ask(rng: np.random.Generator, view: View) -> Ask | None:
    """Returns a question about a picture; None where the picture does not allow the one that was drawn."""
    topic = _some_topic(rng)
    if view.text and rng.random() < 0.75:
        choice = rng.random()
        topic = _text if choice < 0.6 else finer.in_text if choice < 0.88 else _untold
    if not view.known and topic not in (_drawing, _untold):
        return None
    asked = topic(rng, view)
    return asked if asked and asked.answer else None


def _words_for(view: View, name: str) -> list[str]:
    """What people call a thing that was just spoken of, other than by its name."""
    if view.shapes:
        return ["shape", "one", "figure"]
    kinds = [kind for kind in kinds_of(name) if kind != name]
    return [*kinds, *kinds, "thing", "one", *(("creature", "beast", "fellow", "pet") if "animal" in kinds else ())]


def ask_of_it(rng: np.random.Generator, view: View, name: str, topic: str) -> Ask | None:
    """Returns a question about the one thing that was just spoken of.

    Args:
        rng: source of chance.
        view: the picture.
        name: the thing.
        topic: of the question before.
    """
    choice = rng.random()
    if choice < 0.3 and topic not in ("where", "what at") and (place := view.place(name)):
        if rng.random() < 0.2 and (words := _words_for(view, name)):
            word = f"{pick(rng, ('the', 'that', 'this'))} {pick(rng, words)}"
            return Ask(say(rng, "where the", the=word), f"It is {_AT[place]}.", topic="where", about=name)
        if rng.random() < 0.35:
            return _is_at(rng, view, name)
        return Ask(say(rng, "where it"), f"It is {_AT[place]}.", topic="where", about=name)
    if choice < 0.55 and topic not in ("color", "is color", "which color"):
        if rng.random() < 0.35 and (words := _words_for(view, name)):
            word = f"{pick(rng, ('the', 'that', 'this'))} {pick(rng, words)}"
            return Ask(say(rng, "color the", the=word), color_of_it(view, name), topic="color", about=name)
        return Ask(say(rng, "color it"), color_of_it(view, name), topic="color", about=name)
    if choice < 0.65 and len(colors := view.colors(name)) == 1:
        asked = colors[0] if rng.random() < 0.5 else pick(rng, list(render.COLORS))
        answer = "Yes." if asked == colors[0] else f"No, it is {colors[0]}."
        return Ask(say(rng, "is color", color=asked), answer, topic="is color", about=name)
    if choice < 0.75 and len(view.boxes) == 2 == len(view.unique):
        other = next(one for one in view.unique if one != name)
        if rng.random() < 0.4 and (told := color_of_it(view, other)):
            return Ask(say(rng, "other color"), told, topic="color", about=other)
        return Ask(say(rng, "other one"), f"It is {noun(view, other)}.", about=other)
    if choice < 0.78 and (place := view.place(name)) in finer.CORNERS:
        return Ask(say(rng, "corner it"), f"It is {_AT[place]}.", topic="where", about=name)
    if choice < 0.88:
        side = pick(rng, list(SIDES))
        if found := _only_on(view, name, side):
            return Ask(say(rng, "left of it", side=side), f"It is {noun(view, found)}.", about=found)
        return None
    if rng.random() < 0.4 and (asked := facts.of_it(rng, view, name)) is not None:
        return asked
    asked = say(rng, "untold it") if rng.random() < 0.6 else composed(rng)
    return Ask(asked, CANNOT_TELL, about=name)


def about(rng: np.random.Generator, picture: Picture, count: int) -> list[tuple[str, str]]:
    """Returns at most so many different questions about a picture, each of which can be asked first."""
    view, found = View(picture), {}
    for _ in range(4 * count):
        if len(found) == count:
            break
        if (asked := ask(rng, view)) is not None:
            found.setdefault(asked.question, asked.answer)
    return list(found.items())
