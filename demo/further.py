"""Questions beside the forms of `questions`: every skill asked of every picture, also where the answer is no.

* `View`: a picture as these questions see it.
* `ask(rng, view, topic)`: a question of a topic, None where the picture does not allow it.
* `describe(view)`: what is in a picture, in one sentence.

All answers follow from `Picture.boxes` and the other facts of a picture. What a picture cannot tell is `untold`.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from . import art, render, synonyms
from .pictures import Picture
from .questions import _AT, NAMING_OPEN, READ_WORD
from .render import pick
from .untold import untold
from .wording import COUNTABLE, TRAIN_WORDS, a, counted, plural, sentence, the, there_are

CLEAR = 2.5  # pixels that a middle lies off the border of a cell at least, where its place is asked
APART = 5.0  # pixels between two middles at least, where one is left of the other, or above it
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven")
ORDINAL = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh")


@dataclass
class Ask:
    """A question and its answer.

    Attributes:
        question, answer: as asked and told.
        topic: which kind of question it is.
        short: how it is asked right after another one of its topic; empty where there is no such form.
        about: the one thing in the picture that the answer speaks of, if it does; "it" in the next question.
        named: whether it says what it asks about, so that it can be asked of one of several pictures.
        then: what is right, after an answer that begins with "No"; empty where that says it all.
        several: the things of one name that the answer speaks of, if it does; "they" in the next question.
    """

    question: str
    answer: str
    topic: str = ""
    short: str = ""
    about: str = ""
    named: bool = False
    then: str = ""
    several: str = ""


class View:
    """A picture as the questions see it: things or shapes by name, or a text."""

    def __init__(self, picture: Picture):
        self.picture = picture
        self.text = picture.text
        boxes = [] if self.text else picture.boxes
        self.named: dict[str, list[render.Box]] = {}
        for box in boxes:
            self.named.setdefault(box.what, []).append(box)
        self.boxes = boxes
        self.counts = Counter(box.what for box in boxes)
        # each shape has one color, and the star among the things none or its own two
        self.shapes = bool(boxes) and picture.skill not in ("naming", "scene") and set(self.named) <= set(render.SHAPES)
        self.shapes = self.shapes and all(box.color for box in boxes)
        self.single = boxes[0].what if len(boxes) == 1 else ""
        self.unique = [name for name, found in self.named.items() if len(found) == 1]
        self.known = bool(picture.boxes)

    def colors(self, name: str) -> tuple[str, ...]:
        """The color or two colors of what has this name; none where there is no telling in two words."""
        told = {(box.color,) if box.color else box.colors for box in self.named[name]}
        return told.pop() if len(told) == 1 else ()

    def kinds(self, kind: str) -> list[str]:
        """What is there of a kind of `art.KIND_OF` or `synonyms.SORTS`."""
        return [name for name in self.named if kind in kinds_of(name) and not self.shapes]

    def place(self, name: str) -> str:
        """Where the one thing of this name is; empty where that is on the border of two places."""
        box = self.named[name][0]
        if self.picture.sides:
            return self.picture.sides[self.boxes.index(box)]
        x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        third = render.SIZE / 3
        if any(abs(v - border) < CLEAR for v in (x, y) for border in (third, 2 * third)):
            return ""
        return render.place_of(min(max(x / render.SIZE, 0), 0.999), min(max(y / render.SIZE, 0), 0.999))


def kinds_of(name: str) -> list[str]:
    """The kinds that a thing is of, the widest first; none of a "thing", which is of no kind."""
    wide = art.KIND_OF.get(name, "thing")
    return ([] if wide == "thing" else [wide]) + [sort for sort, names in synonyms.SORTS.items() if name in names]


_SPOKEN_KINDS = ("animal", "fruit", "vegetable", "vehicle", "plant", "building", "tool", "instrument", "ball")


def called(rng: np.random.Generator, view: View, name: str, alone: bool = True) -> str:
    """A word for a thing or shape: its own, or now and then another, as "the animal" where only one kind is there.

    Args:
        rng: source of chance.
        view: the picture.
        name: what is called.
        alone: whether the question is about this picture alone.
    """
    kind = art.KIND_OF.get(name)
    if alone and name in view.named and kind in _SPOKEN_KINDS and view.kinds(kind) == [name] and rng.random() < 0.1:
        return kind
    words = synonyms.SHAPES if view.shapes else synonyms.THINGS
    others = words.get(name, ())
    return pick(rng, others) if others and rng.random() < (0.5 if view.shapes else 0.3) else name


def the_word(word: str) -> str:
    return the(word) if word in art.THINGS else f"the {word}"


def absent(rng: np.random.Generator, view: View, countable: bool = False) -> str:
    """Something that is not there: of the same sort as what is there most often."""
    shape = view.shapes if rng.random() < 0.8 else not view.shapes
    names = list(render.SHAPES) if shape else COUNTABLE if countable else art.THINGS
    missing = [name for name in names if not (view.named.keys() & {name, *synonyms.WIDER.get(name, ())})]
    return pick(rng, missing) if missing else pick(rng, [n for n in COUNTABLE if n not in view.named])


def noun(view: View, name: str) -> str:
    """Article and name, with its color if it is a shape."""
    return a(f"{view.named[name][0].color} {name}") if view.shapes else a(name)


def listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _sure(rng: np.random.Generator, chance: float = 0.5) -> bool:
    return rng.random() < chance


# ------------------------------------------------------------------------------------------ what and how many


def describe(view: View) -> str:
    """Says what is in a picture; empty where that is not known."""
    picture = view.picture
    if view.text:
        return f"It is the {'number' if view.text.isdigit() else 'word'} {view.text}."
    if not view.known:
        return ""
    if picture.skill == "easy_vqa":
        return f"I see a {view.boxes[0].color} {view.single}."
    if picture.sides:
        at = [f"{a(box.what)} {_AT[side]}" for box, side in zip(view.boxes, picture.sides, strict=True)]
        return sentence(" and ".join(at))
    if picture.skill == "naming":
        return f"It is {a(view.single)}."
    if picture.skill == "scene" and view.single:
        return f"It is {a(view.single)}."
    if picture.skill == "shapes":
        order = [(shape, color) for shape in render.SHAPES for color in render.COLORS]
        boxes = sorted(view.boxes, key=lambda box: order.index(box[:2]))
        return f"I see {listed([a(f'{box.color} {box.what}') for box in boxes])}."
    if max(view.counts.values()) == 1 and len(view.counts) < 3:
        return ""  # looks like a picture of another skill
    if view.shapes:
        return ""  # told apart by form or by color: no telling which
    if max(view.counts.values()) == 1:
        return f"I see {listed([a(name) for name in sorted(view.counts)])}."
    return f"I see {listed([counted(view.counts[name], name) for name in sorted(view.counts)])}."


def _what(rng, view):
    answer = describe(view)
    if not answer:
        return None
    forms = ("What's in this picture?", "What is this a picture of?", "What have we here?", "What can you see?",
             "What is there to see?", "What do we have here?", "What am I looking at?", "So what is it?",
             "Tell me what you see.", "What's that?", "What is that?", "Do you know what this is?",
             *NAMING_OPEN)  # fmt: skip
    return Ask(pick(rng, forms), answer, about=view.single)


def _either(rng, view):
    if not view.single or view.shapes:
        return None
    other = pick(rng, [thing for thing in art.THINGS if thing != view.single])
    one, two = (view.single, other) if _sure(rng) else (other, view.single)
    return Ask(f"Is it {a(called(rng, view, one))} or {a(called(rng, view, two))}?", f"It is {a(view.single)}.",
               about=view.single)  # fmt: skip


def _claimed(rng, view):
    if not view.single or view.shapes:
        return None
    right = _sure(rng)
    name = view.single if right else absent(rng, view)
    forms = ("I think it is {}.", "It looks like {}.", "That must be {}.", "So it is {}?", "It's {}, right?",
             "Isn't it {}?", "It is {}, isn't it?")  # fmt: skip
    answer = f"{'Yes' if right else 'No'}, it is {a(view.single)}."
    return Ask(pick(rng, forms).format(a(called(rng, view, name))), answer, about=view.single)


def _exists(rng, view):
    there = bool(view.named) and _sure(rng)
    name = pick(rng, list(view.named)) if there else absent(rng, view)
    word = called(rng, view, name)
    many = name in COUNTABLE or name in render.SHAPES
    forms = ["Is there {} anywhere?", "Is there {} in this picture?", "Does the picture show {}?", "Is {} there?",
             "Can you find {}?", "Is there {} too?", "Does it have {} in it?", "Do you see {} anywhere?",
             "Is there also {}?", "Is there {} as well?", "Do you see {} as well?"]  # fmt: skip
    if many and _sure(rng, 0.4):
        question = pick(rng, ("Are there any {}?", "Any {}?", "Do you see any {}?", "Can you see any {}?")).format(
            plural(word)
        )
    else:
        question = pick(rng, forms).format(a(word))
    about = name if there and name in view.unique else ""
    return Ask(question, "Yes." if there else "No.", short=pick(rng, ("And {}?", "What about {}?", "{}?")).format(
        a(word)), about=about, named=True)  # fmt: skip


def _kind_exists(rng, view):
    kind = pick(rng, list(synonyms.KINDS))
    if not view.known or (view.shapes and kind in ("ball", "toy")):
        return None
    if view.kinds("ball") and kind == "toy":
        return None
    one, many = a(kind), synonyms.KINDS[kind]
    forms = (f"Is there {one}?", f"Are there any {many}?", f"Do you see any {many}?", f"Is there {one} in the picture?")
    found = view.kinds(kind)
    return Ask(pick(rng, forms), "Yes." if found else "No.", short=f"And {one}?", named=True,
               about=found[0] if len(found) == 1 and found[0] in view.unique else "")  # fmt: skip


def _kind_listed(rng, view):
    kind = pick(rng, list(synonyms.KINDS))
    if not view.known or view.single:
        return None
    many = synonyms.KINDS[kind]
    found = sorted(view.kinds(kind))
    if not found:
        answer = f"There are no {many}."
    elif view.picture.sides or max(view.counts[name] for name in found) == 1:
        answer = f"I see {listed([a(name) for name in found])}."
    else:
        answer = f"I see {listed([counted(view.counts[name], name) for name in found])}."
    forms = (f"What {many} are there?", f"Which {many} do you see?", f"What {many} can you see?", f"Name the {many}.")
    return Ask(pick(rng, forms), answer, short=f"And which {many}?", named=True)


def _edible(rng, view):
    if not view.single or view.shapes:
        return None
    yes = art.KIND_OF[view.single] in synonyms.EDIBLE
    forms = ("Can I eat it?", "Can you eat it?", "Is it something to eat?", "Is it food?", "Can one eat that?")
    return Ask(pick(rng, forms), f"{'Yes' if yes else 'No'}, it is {a(view.single)}.", about=view.single)


def _other_kind(rng, view):
    if not (view.text or view.shapes):
        return None
    kind = pick(rng, ("animal", "fruit", "vehicle", "food", "plant", "tool"))
    forms = (f"What {kind} is it?", f"Which {kind} is this?", f"What {kind} do you see?", f"Name the {kind}.")
    return Ask(pick(rng, forms), f"There is no {kind}.")


def _count(rng, view):
    there = bool(view.named) and _sure(rng, 0.7)
    name = pick(rng, list(view.named)) if there else absent(rng, view, countable=True)
    if name not in COUNTABLE and name not in render.SHAPES:
        return None
    words = plural(called(rng, view, name))
    forms = ("How many {} can you see?", "How many {} are in the image?", "How many {}?", "And how many {} are there?",
             "What is the number of {}?", "How many {} are shown?", "Can you count the {}?", "Please count the {}.",
             "How many {} do we have?", "how many {} in total?")  # fmt: skip
    answer = there_are(view.counts[name], name) if there else f"There are no {plural(name)}."
    short = pick(rng, ("And {}?", "And the {}?", "What about {}?", "And how many {}?")).format(words)
    about = name if there and view.counts[name] == 1 else ""
    return Ask(pick(rng, forms).format(words), answer, short=short, about=about, named=True)


def _sum(rng, view):
    names = [name for name in view.named if name in COUNTABLE or name in render.SHAPES]
    if len(names) < 2:
        return None
    one, two = (names[i] for i in rng.permutation(len(names))[:2])
    total = view.counts[one] + view.counts[two]
    forms = ("How many {} and {} in total?", "How many {} and {} are there in total?", "How many {} and {} together?",
             "How many {} and {} are there altogether?", "How many {} plus {}?", "Count the {} and the {}.",
             "How many are there if you count {} and {}?", "What is the sum of {} and {}?")  # fmt: skip
    question = pick(rng, forms).format(plural(called(rng, view, one)), plural(called(rng, view, two)))
    return Ask(question, f"There are {total}.", named=True)


def _total(rng, view):
    if not view.known or view.text:
        return None
    n = len(view.boxes)
    forms = ["How many objects are there?", "How many items do you see?", "How many are there in total?",
             "How many are there altogether?", "How many things can you see?", "How many objects can you count?",
             "What is the total number of things?", "And in total?", "How many things are in the picture?",
             "How many in all?"]  # fmt: skip
    return Ask(pick(rng, forms), f"There {'is' if n == 1 else 'are'} {n}.")


def _how_many_is_it(rng, view):
    names = [name for name in view.named if name in COUNTABLE or name in render.SHAPES]
    if not names:
        return None
    name = pick(rng, names)
    n, word = view.counts[name], called(rng, view, name)
    no = f"No, there {'is' if n == 1 else 'are'} {counted(n, name)}."
    if _sure(rng, 0.3):
        yes = f"Yes, there are {counted(n, name)}."
        return Ask(f"Is there more than one {word}?", yes if n > 1 else no, named=True)
    guess = n if _sure(rng) else int(rng.integers(1, 7))
    form = pick(rng, ("Are there {}?", "Do you see {}?", "Are these {}?"))
    return Ask(form.format(counted(guess, word)) if guess > 1 else f"Is there 1 {word}?",
               "Yes." if guess == n else no, named=True)  # fmt: skip


def _compared(rng, view):
    names = [name for name in view.named if name in COUNTABLE or name in render.SHAPES]
    if len(names) < 2:
        return None
    one, two = (names[i] for i in rng.permutation(len(names))[:2])
    n, m = view.counts[one], view.counts[two]
    same = f"There are as many {plural(one)} as {plural(two)}."
    if n > m and _sure(rng, 0.4):
        return Ask(f"How many more {plural(one)} than {plural(two)} are there?",
                   f"There {'is' if n - m == 1 else 'are'} {n - m} more.", named=True)  # fmt: skip
    forms = ("What is there more of, {} or {}?", "Which is there more of, {} or {}?", "Do you see more {} or more {}?",
             "More {} or {}?", "Which are there more of, {} or {}?")  # fmt: skip
    return Ask(pick(rng, forms).format(plural(one), plural(two)),
               same if n == m else f"There are more {plural(one if n > m else two)}.", named=True)  # fmt: skip


# ------------------------------------------------------------------------------------------ colors


def has_colors(view: View, name: str, it: bool) -> str:
    colors = view.colors(name)
    several = len(view.named[name]) > 1
    subject = "it is" if it else f"{the(name)} is" if not several else f"the {plural(name)} are"
    if it and several:
        subject = "they are"
    if not colors:
        return sentence(("they have" if several else "it has" if it else f"{the(name)} has") + " several colors")
    return sentence(f"{subject} {' and '.join(colors)}")


def _color(rng, view):
    names = [n for n in view.named if len(view.named[n]) == 1 or ((n in COUNTABLE or view.shapes) and view.colors(n))]
    if not names or view.picture.skill == "easy_vqa":  # whose own questions have answers of one word
        return None
    if _sure(rng, 0.2):
        name = absent(rng, view)
        forms = (
            "What color is {}?",
            "Which color does {} have?",
            "What is the color of {}?",
            "Tell me the color of {}.",
        )
        word = called(rng, view, name) if name not in render.SHAPES else name
        return Ask(
            pick(rng, forms).format(the_word(word)), f"There is no {name}.", short=f"And {the_word(word)}?", named=True
        )
    name = pick(rng, names)
    word = called(rng, view, name)
    if len(view.named[name]) > 1:
        forms = ("What color are the {}?", "Which color do the {} have?", "What is the color of the {}?")
        words = plural(word)
        return Ask(pick(rng, forms).format(words), has_colors(view, name, False), short=f"And the {words}?", named=True)
    if view.single and _sure(rng):
        forms = ("What color is it?", "What colour is it?", "Which color does it have?", "What is its color?",
                 "And the color?", "What color is this?", "In what color is it?")  # fmt: skip
        return Ask(pick(rng, forms), has_colors(view, name, True), about=name)
    forms = ("What color is {}?", "What colour is {}?", "Which color does {} have?", "What is the color of {}?",
             "And what color is {}?", "Tell me the color of {}.", "What color does {} have?")  # fmt: skip
    word = the_word(word)
    short = pick(rng, ("And {}?", "What about {}?")).format(word)
    return Ask(pick(rng, forms).format(word), has_colors(view, name, False), short=short, about=name, named=True)


def color_of_it(view: View, name: str) -> str:
    """Says the color of the one thing of a name that was spoken of."""
    return has_colors(view, name, it=True)


def _is_color(rng, view):
    names = [name for name in view.unique if len(view.colors(name)) == 1]
    if not names:
        return None
    name = pick(rng, names)
    (color,) = view.colors(name)
    asked = color if _sure(rng) else pick(rng, list(render.COLORS))
    if view.single and _sure(rng):
        no = f"No, it is {color}."
        return Ask(
            pick(rng, (f"Is it {asked}?", f"Is its color {asked}?")), "Yes." if asked == color else no, about=name
        )
    word = the_word(called(rng, view, name))
    forms = (f"Is {word} {asked}?", f"Does {word} have the color {asked}?", f"Is {word} {asked} or not?")
    answer = "Yes." if asked == color else sentence(f"no, {the(name)} is {color}")
    return Ask(pick(rng, forms), answer, about=name, named=True)


def _which_color(rng, view):
    """Which shape has a color; which colors there are."""
    if not view.shapes or view.picture.skill == "easy_vqa":
        return None
    colors = [box.color for box in view.boxes]
    if _sure(rng, 0.4):
        seen = [color for color in render.COLORS if color in colors]
        forms = ("What colors do you see?", "Which colors do the shapes have?", "What colors are the shapes?")
        answer = f"I see {listed(seen)}."
        return Ask(pick(rng, forms), answer)
    if max(view.counts.values()) > 1:
        return None
    asked = pick(rng, colors) if _sure(rng, 0.7) else pick(rng, list(render.COLORS))
    if colors.count(asked) > 1:
        return None
    forms = (f"What is {asked}?", f"Which one is {asked}?", f"What shape has the color {asked}?",
             f"Which of the shapes is {asked}?")  # fmt: skip
    answer = f"The {view.boxes[colors.index(asked)].what} is {asked}." if asked in colors else f"No shape is {asked}."
    about = view.boxes[colors.index(asked)].what if asked in colors else ""
    return Ask(pick(rng, forms), answer, short=pick(rng, (f"And {asked}?", f"And which one is {asked}?")),
               about=about, named=True)  # fmt: skip


def _background(rng, view):
    ground = view.picture.background
    if not view.known:
        return None
    if _sure(rng, 0.25):
        asked = ground if ground and _sure(rng) else pick(rng, list(render.COLORS))
        if ground == "pale" and asked in ("white", "pale", "gray", "pink", "yellow"):
            return None
        no = f"No, it is {ground or 'colorful'}."
        return Ask(f"Is the background {asked}?", "Yes." if asked == ground else no)
    what = the_word(view.single) if view.single else "it"
    forms = ("What is the background?", "What color is the background?", "What's in the background?",
             "What is in the background?", "Which color is the background?", "What does the background look like?",
             f"What is behind {what}?", "Describe the background.", "What color is behind it?", "And the background?",
             "What about the background?", "What colour is the background?", "What is the color of the background?",
             "How does the background look?")  # fmt: skip
    return Ask(pick(rng, forms), f"The background is {ground or 'colorful'}.")


# ------------------------------------------------------------------------------------------ places


def _where(rng, view):
    if _sure(rng, 0.15):
        name = absent(rng, view)
        forms = ("Where is {}?", "Where can I find {}?", "Where do you see {}?")
        return Ask(pick(rng, forms).format(the(name)), f"There is no {name}.", short=f"And {the(name)}?", named=True)
    names = [name for name in view.unique if view.place(name)]
    if not names or view.picture.skill == "easy_vqa":
        return None
    name = pick(rng, names)
    if view.single and not view.shapes:
        forms = ("Where is it?", "Where in the picture is it?", f"Where is {the_word(called(rng, view, name))}?")
        return Ask(pick(rng, forms), f"It is {_AT[view.place(name)]}.", about=name)
    word = the_word(called(rng, view, name))
    forms = ("Where is {}?", "Where can I find {}?", "Where do you see {}?", "In which place is {}?", "Where's {}?",
             "Where exactly is {}?", "Tell me where {} is.")  # fmt: skip
    short = pick(rng, ("And {}?", "And where is {}?", "What about {}?")).format(word)
    answer = sentence(f"{the(name)} is {_AT[view.place(name)]}")
    return Ask(pick(rng, forms).format(word), answer, short=short, about=name, named=True)


def _what_at(rng, view):
    picture = view.picture
    if picture.sides:
        side = int(rng.integers(2))
        at, name = pick(rng, synonyms.PLACES[picture.sides[side]]), view.boxes[side].what
        answer = f"It is {a(name)}."
    elif picture.skill in ("counting", "shapes", "scene") and view.known:
        places = [(view.place(name), name) for name in view.unique]
        if _sure(rng, 0.8):
            places = [entry for entry in places if entry[0]]
            if not places:
                return None
            place, name = pick(rng, places)
            if sum(overlaps(box, place) for box in view.boxes) != 1:
                return None
            answer = f"It is {noun(view, name)}."
        else:
            free = [place for place in _AT if not any(overlaps(box, place) for box in view.boxes)]
            if not free:
                return None
            place, name, answer = pick(rng, free), "", "There is nothing."
        at = pick(rng, synonyms.PLACES[place])
    else:
        return None
    forms = ["What is {}?", "What's {}?", "What can you see {}?", "What do you see {}?", "Tell me what is {}.",
             "And what is {}?", "What is there {}?"]  # fmt: skip
    sort = "shape" if view.shapes and name else art.KIND_OF.get(name, "thing") if name else "thing"
    forms += [f"Which {sort} is {{}}?", f"What {sort} is {{}}?", f"What {sort} do you see {{}}?"]
    return Ask(pick(rng, forms).format(at), answer, short=pick(rng, ("And {}?", "What about {}?")).format(at),
               about=name, named=True)  # fmt: skip


def overlaps(box: render.Box, place: str) -> bool:
    """Says whether a thing reaches into a cell of the 3x3 grid."""
    (column, row) = next(cell for cell, name in render.PLACES.items() if name == place)
    third = render.SIZE / 3
    return (
        box.left < (column + 1) * third - 1
        and box.right > column * third + 1
        and box.top < (row + 1) * third - 1
        and box.bottom > row * third + 1
    )


def _at_place(rng, view):
    """Whether the one thing of a name is at a place, and which of two places it is."""
    if view.picture.skill == "easy_vqa" or (view.single and not view.shapes):
        return None
    names = [name for name in view.unique if view.place(name)]
    if not names:
        return None
    name = pick(rng, names)
    place, word = view.place(name), the_word(called(rng, view, name))
    places = list(view.picture.sides or _AT)
    other = pick(rng, [at for at in places if not set(at.split()) & set(place.split())])
    answer = sentence(f"{the(name)} is {_AT[place]}")
    if _sure(rng, 0.3):
        one, two = (place, other) if _sure(rng) else (other, place)
        forms = ("Is {} {} or {}?", "Where is {}, {} or {}?", "Do you see {} {} or {}?")
        return Ask(pick(rng, forms).format(word, _AT[one], _AT[two]), answer, about=name, named=True)
    asked = (place if _sure(rng, 0.6) else pick(rng, place.split())) if _sure(rng) else other
    at = pick(rng, synonyms.PLACES[asked])
    no = f"No, {the(name)} is {_AT[place]}."
    return Ask(f"Is {word} {at}?", "Yes." if asked in (place, *place.split()) else no, about=name, named=True)


def _color_at(rng, view):
    """The color of the shape at a place."""
    if not view.shapes or view.picture.skill == "easy_vqa":
        return None
    places = [(view.place(name), name) for name in view.unique]
    places = [(place, name) for place, name in places if place and sum(overlaps(b, place) for b in view.boxes) == 1]
    if not places:
        return None
    place, name = pick(rng, places)
    forms = ("What color is the shape {}?", "Which color does the shape {} have?", "What is the color of the one {}?",
             "What color is the one {}?", "What color do you see {}?")  # fmt: skip
    return Ask(pick(rng, forms).format(pick(rng, synonyms.PLACES[place])), f"It is {view.named[name][0].color}.",
               about=name, named=True)  # fmt: skip


def _same_color(rng, view):
    """Whether two shapes have one color."""
    if not view.shapes or len(view.unique) < 2 or view.picture.skill == "easy_vqa":
        return None
    one, two = (view.unique[i] for i in rng.permutation(len(view.unique))[:2])
    first, second = view.named[one][0].color, view.named[two][0].color
    no = sentence(f"no, {the(one)} is {first} and {the(two)} is {second}")
    if len(view.boxes) == 2 and _sure(rng, 0.4):
        one, two = (name for name in render.SHAPES if name in view.named)
        first, second = view.named[one][0].color, view.named[two][0].color
        no = sentence(f"no, {the(one)} is {first} and {the(two)} is {second}")
        forms = ("Do they have the same color?", "Are they the same color?", "Are both of the same color?")
        return Ask(pick(rng, forms), "Yes." if first == second else no)
    forms = ("Do {} and {} have the same color?", "Are {} and {} the same color?", "Is the color of {} that of {}?")
    question = pick(rng, forms).format(the_word(called(rng, view, one)), the_word(called(rng, view, two)))
    return Ask(question, "Yes." if first == second else no, named=True)


def _there_at(rng, view):
    """Whether something is on one side of a picture of two."""
    if not view.picture.sides:
        return None
    side = int(rng.integers(2))
    name, at = view.boxes[side].what, pick(rng, synonyms.PLACES[view.picture.sides[side]])
    choice = rng.random()
    asked = name if choice < 0.5 else view.boxes[1 - side].what if choice < 0.75 else pick(rng, art.THINGS)
    forms = ("Is there {} {}?", "Do you see {} {}?", "Is it {} {}?", "Is that {} {}?", "Can you see {} {}?")
    question = pick(rng, forms).format(a(called(rng, view, asked)), at)
    return Ask(question, "Yes." if asked == name else f"No, it is {a(name)}.", about=name, named=True)


def _kind_count(rng, view):
    """How many animals, fruits and the like there are."""
    kind = pick(rng, list(synonyms.KINDS))
    if not view.known or view.text or view.shapes or (view.kinds("ball") and kind == "toy"):
        return None
    if view.named and _sure(rng, 0.6):
        kind = art.KIND_OF.get(pick(rng, list(view.named)), kind)
        if kind not in synonyms.KINDS:
            return None
    many = synonyms.KINDS[kind]
    n = sum(view.counts[name] for name in view.kinds(kind))
    forms = ("How many {} are there?", "How many {} do you see?", "How many {} can you see?", "How many {} in total?",
             "How many {} are there in total?", "Count the {}.", "How many {} are in the picture?")  # fmt: skip
    answer = f"There {'is' if n == 1 else 'are'} {n}." if n else f"There are no {many}."
    return Ask(pick(rng, forms).format(many), answer, short=f"And how many {many}?", named=True)  # fmt: skip


def _sorts(rng, view):
    """How many kinds of things there are."""
    if not view.named or view.text or view.picture.skill == "easy_vqa" or view.shapes:
        return None
    n = len(view.named)
    forms = ("How many kinds of things are there?", "How many different things do you see?",
             "How many different things are there?", "How many kinds of things can you see?")  # fmt: skip
    return Ask(pick(rng, forms), f"There {'is' if n == 1 else 'are'} {n}.")


SIDES = {
    "left of": (0, 1), "to the left of": (0, 1), "right of": (0, -1), "to the right of": (0, -1),
    "above": (1, 1), "over": (1, 1), "below": (1, -1), "under": (1, -1), "beneath": (1, -1),
}  # fmt: skip


def middle(box: render.Box) -> tuple[float, float]:
    return (box.left + box.right) / 2, (box.top + box.bottom) / 2


def _relative(rng, view):
    names = view.unique
    if len(names) < 2:
        return None
    one, two = (names[i] for i in rng.permutation(len(names))[:2])
    word = pick(rng, list(SIDES))
    axis, sign = SIDES[word]
    if view.picture.sides and axis != (view.picture.sides[0] == "top"):
        return None
    gap = (middle(view.named[two][0])[axis] - middle(view.named[one][0])[axis]) * sign
    if abs(gap) < APART:
        return None
    if len(names) == 2 == len(view.boxes) and gap > 0 and _sure(rng, 0.4):
        forms = ("What is {} {}?", "What do you see {} {}?", "Which thing is {} {}?")
        question = pick(rng, forms).format(word, the_word(called(rng, view, two)))
        return Ask(question, f"It is {noun(view, one)}.", about=one, named=True)
    question = f"Is {the_word(called(rng, view, one))} {word} {the_word(called(rng, view, two))}?"
    return Ask(question, "Yes." if gap > 0 else "No.", named=True)


def _beside(rng, view):
    if not view.picture.sides:
        return None
    side = int(rng.integers(2))
    name, other = view.boxes[side].what, view.boxes[1 - side].what
    forms = ("What is next to {}?", "What is beside {}?", "What is near {}?", "What else do you see besides {}?",
             "And what is with {}?", "What is together with {}?")  # fmt: skip
    return Ask(
        pick(rng, forms).format(the_word(called(rng, view, name))), f"There is {a(other)}.", about=other, named=True
    )


def _size(rng, view):
    if not view.single or view.shapes:
        return None
    box = view.boxes[0]
    side = max(box.right - box.left, box.bottom - box.top)
    if 33 < side < 47:
        return None
    size = "big" if side >= 47 else "small"
    if _sure(rng, 0.4):
        asked = pick(rng, ("big", "large", "small", "little"))
        yes = (asked in ("big", "large")) == (size == "big")
        return Ask(f"Is it {asked}?", "Yes." if yes else f"No, it is {size}.", about=view.single)
    forms = ("Is it big or small?", "How big is it?", "What size is it?", "Is it small or big?")
    return Ask(pick(rng, forms), f"It is {size}.", about=view.single)


# ------------------------------------------------------------------------------------------ text, shapes, art


def _read(rng, view):
    word_forms = ("What's written here?", "What is written?", "Can you read this?", "Please read the text.",
                  "What does the sign say?", "What is the text?", "Could you read that?", "What text do you see?",
                  "Is anything written there?", "Is there any text?", "Do you see any letters?", "Read this.",
                  "What does the picture say?", "Is something written on it?")  # fmt: skip
    if view.text:
        question = pick(rng, word_forms)
        says = f"It says {view.text}."
        return Ask(question, f"Yes, it says {view.text}." if question.split()[0] in ("Is", "Do") else says)
    if not view.known:
        return None
    if _sure(rng, 0.3):
        return Ask(pick(rng, ("What number is this?", "What number is it?", "Which number do you see?",
                              "Read the number.", "Is there a number?")), "There is no number.")  # fmt: skip
    forms = word_forms + READ_WORD
    question = pick(rng, forms)
    if "word" in question:
        return Ask(question, "There is no word.")
    return Ask(question, "There is no text.")


def _letters(rng, view):
    text = view.text
    if not text:
        return None
    unit, noun = ("digit", "number") if text.isdigit() else ("letter", "word")
    n = int(rng.integers(len(text)))
    choice = rng.random()
    if choice < 0.3:
        order = "middle" if len(text) == 3 and n == 1 and _sure(rng) else "last" if n == len(text) - 1 else ORDINAL[n]
        forms = (f"What is the {order} {unit}?", f"Which {unit} is the {order} one?", f"And the {order} {unit}?")
        return Ask(pick(rng, forms), f"It is {text[n]}.", short=f"And the {order} one?")
    if choice < 0.45:
        forms = ("Spell it.", "Can you spell it?", f"Which {unit}s do you see?", f"What {unit}s are there?",
                 f"Name the {unit}s.", "Please spell it.")  # fmt: skip
        return Ask(pick(rng, forms), ", ".join(text) + ".")
    if choice < 0.6:
        right = _sure(rng)
        other = text if right else str(int(rng.integers(10 ** len(text)))) if text.isdigit() else pick(rng, TRAIN_WORDS)
        forms = (
            f"Does it say {other}?",
            f"Is it the {noun} {other}?",
            f"Is {other} written there?",
            f"Is this {other}?",
        )
        return Ask(pick(rng, forms), "Yes." if other == text else f"No, it says {text}.")
    if choice < 0.7:
        asked = pick(rng, ("word", "number"))
        return Ask(pick(rng, (f"Is it a {asked}?", f"Is this a {asked}?")),
                   f"Yes, it is a {noun}." if asked == noun else f"No, it is a {noun}.")  # fmt: skip
    if choice < 0.8:
        return Ask(pick(rng, (f"How many {unit}s does it have?", f"How many {unit}s can you see?", f"How many {unit}s?",
                              f"How many {unit}s does the {noun} have?", f"How long is the {noun}?")),
                   there_are(len(text), unit))  # fmt: skip
    ink = view.picture.boxes[0].color
    what = pick(rng, (f"the {noun}", "the text", "the writing", "it"))
    if _sure(rng, 0.4):
        asked = ink if _sure(rng) else pick(rng, list(render.COLORS))
        return Ask(f"Is {what} {asked}?", "Yes." if asked == ink else f"No, it is {ink}.")
    if _sure(rng, 0.3):
        return Ask(pick(rng, (f"What color are the {unit}s?", f"Which color do the {unit}s have?")), f"They are {ink}.")
    return Ask(pick(rng, (f"What color is {what}?", f"Which color does {what} have?")), f"It is {ink}.")


def _shapes(rng, view):
    forms = ("What shapes are there?", "Which shapes do you see?", "What shapes can you see?", "List the shapes.",
             "Name the shapes.", "Which shapes are there?", "Tell me the shapes.", "What are the shapes?")  # fmt: skip
    if view.picture.skill == "shapes":
        return Ask(pick(rng, forms), describe(view))
    if view.known and not view.shapes and not set(view.named) & {"star", "diamond", "heart"}:
        return Ask(pick(rng, (*forms, "What shape is it?", "How many shapes are there?", "Count the shapes.")),
                   "There are no shapes.")  # fmt: skip
    if view.picture.skill == "easy_vqa" and view.known:
        color, shape = view.boxes[0].color, view.single
        return Ask(pick(rng, forms), f"I see a {color} {shape}.", about=shape)
    return None


def _art(rng, view):
    choice = pick(rng, ("photo", "drawing", "painting", "cartoon"))
    if choice in ("photo", "painting"):
        forms = (f"Is this a {choice}?", f"Is it a {choice}?", f"Is that a {choice}?", f"Is this a real {choice}?")
        return Ask(pick(rng, forms), "No, it is a drawing.")
    if choice == "drawing":
        return Ask(pick(rng, ("Is this a drawing?", "Is it a drawing?", "Is it drawn?")), "Yes, it is a drawing.")
    forms = ("Is this a drawing or a photo?", "Is it a photo or a drawing?", "What kind of picture is this?",
             "Is it a painting or a drawing?")  # fmt: skip
    return Ask(pick(rng, forms), "It is a drawing.")


def _untold(rng, view):
    subject = "it"
    if view.unique and not view.text and _sure(rng, 0.5 if view.single else 1.0):
        subject = the_word(called(rng, view, pick(rng, view.unique)))
    return Ask(*untold(rng, subject))


TOPICS = {
    "what": (_what, 3), "either": (_either, 2), "claimed": (_claimed, 1), "exists": (_exists, 5),
    "kind exists": (_kind_exists, 2), "kinds": (_kind_listed, 1), "edible": (_edible, 1),
    "other kind": (_other_kind, 1), "count": (_count, 5), "sum": (_sum, 4), "total": (_total, 2),
    "how many": (_how_many_is_it, 2),
    "compared": (_compared, 2), "color": (_color, 8), "is color": (_is_color, 3), "which color": (_which_color, 3),
    "background": (_background, 4), "where": (_where, 4), "at place": (_at_place, 3),
    "color at": (_color_at, 2), "same color": (_same_color, 1), "there at": (_there_at, 2),
    "kind count": (_kind_count, 2), "sorts": (_sorts, 1), "what at": (_what_at, 5), "relative": (_relative, 4),
    "beside": (_beside, 2), "size": (_size, 1), "read": (_read, 3), "letters": (_letters, 6), "shapes": (_shapes, 2),
    "art": (_art, 1), "untold": (_untold, 5),
}  # fmt: skip
_some_topic = render.by_weight({name: weight for name, (_, weight) in TOPICS.items()})


def ask(rng: np.random.Generator, view: View, topic: str = "") -> Ask | None:
    """Returns a question of a topic, or of any; None where the picture does not allow the one that was drawn."""
    topic = topic or _some_topic(rng)
    if not view.known and topic not in ("art", "untold"):
        return None
    asked = TOPICS[topic][0](rng, view)
    if asked is not None:
        asked.topic = topic
    return asked


def about(rng: np.random.Generator, picture: Picture, count: int) -> list[tuple[str, str]]:
    """Returns at most so many different questions about a picture, each of which can be asked first."""
    view, questions = View(picture), {}
    for _ in range(3 * count):
        if len(questions) == count:
            break
        if (asked := ask(rng, view)) is not None and not asked.question.startswith("And "):
            questions.setdefault(asked.question, asked.answer)
    return list(questions.items())


def in_words_or_digits(rng: np.random.Generator, n: int) -> str:
    """Returns a number from zero to seven, in digits or letters."""
    return str(n) if rng.random() < 0.6 else NUMBERS[n]


def countable(view: View) -> list[str]:
    """Returns the names of what can be counted."""
    return [name for name in view.named if name in COUNTABLE or name in render.SHAPES]


def two_of(rng: np.random.Generator, view: View) -> list[str]:
    """Returns two of these names; none where there are fewer."""
    names = countable(view)
    return [names[i] for i in rng.permutation(len(names))[:2]] if len(names) > 1 else []


def lone(view: View) -> str:
    """Returns the one thing of a picture of one thing; empty for other pictures."""
    return "" if view.shapes else view.single
