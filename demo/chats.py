"""What is asked about the pictures, and what a good answer is.

* `sample_picture(rng, styles, ...)`: a picture with questions and answers about it, of a random skill.
* `two_pictures(rng, styles)`: a chat with two pictures.
* `without_picture(rng)`: a chat without any picture.
* `easy_vqa(split)`: the public easy-VQA questions.

An answer's form follows from the question's wording alone, so that nothing has to be guessed.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from . import art, render
from .render import pick


@dataclass
class Picture:
    """A picture and independent questions about it.

    Attributes:
        image: 64x64 RGB.
        skill: `naming`, `counting`, `reading`, `shapes` or `easy_vqa`.
        questions: (question, answer) pairs, each of which can be asked first; the most telling one first.
        boxes: what is where; empty where that is not known.
    """

    image: Image.Image
    skill: str
    questions: list[tuple[str, str]]
    boxes: list[render.Box] = field(default_factory=list)


@dataclass
class Chat:
    """Turns that follow each other: (pictures shown in this turn, question, answer). The system prompt may be empty."""

    turns: list[tuple[list[Image.Image], str, str]] = field(default_factory=list)
    system: str = ""


# ---------------------------------------------------------------------------------------------- words

_WITHOUT_ARTICLE = {"bread", "corn", "milk", "coffee", "beer", "popcorn", "sushi", "fire", "lightning", "chili"}
_PHRASES = {
    "grapes": "a bunch of grapes",
    "scissors": "a pair of scissors",
    "glasses": "a pair of glasses",
    "sunglasses": "a pair of sunglasses",
    "headphones": "a pair of headphones",
    "sun": "the sun",
    "moon": "the moon",
}
_PLURALS = {
    "mouse": "mice",
    "fish": "fish",
    "sheep": "sheep",
    "deer": "deer",
    "dice": "dice",
    "knife": "knives",
    "maple leaf": "maple leaves",
    "snowman": "snowmen",
    "tomato": "tomatoes",
    "volcano": "volcanoes",
}
_UNCOUNTABLE = _WITHOUT_ARTICLE | set(_PHRASES)
COUNTABLE = [thing for thing in art.THINGS if thing not in _UNCOUNTABLE]


def a(noun: str) -> str:
    """Returns a noun with its article: "a turtle", "an owl", "the sun", "bread"."""
    if noun in _PHRASES:
        return _PHRASES[noun]
    if noun in _WITHOUT_ARTICLE:
        return noun
    return f"{'an' if noun[0] in 'aeiou' and not noun.startswith('uni') else 'a'} {noun}"


def the(noun: str) -> str:
    """Returns a noun with "the"."""
    return _PHRASES[noun].replace("a ", "the ", 1) if noun in _PHRASES else f"the {noun}"


def plural(noun: str) -> str:
    """Returns the plural of a countable noun."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def counted(count: int, noun: str) -> str:
    """Returns "1 cat", "3 cats"."""
    return f"{count} {noun if count == 1 else plural(noun)}"


def _there(count: int, noun: str) -> str:
    return f"There {'is' if count == 1 else 'are'} {counted(count, noun)}."


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


WORDS = (Path(__file__).parent / "words.txt").read_text().split()  # short ones, in capitals
HELD_OUT_WORDS = WORDS[::8]  # drawn for evaluation only
_TRAIN_WORDS = [w for w in WORDS if w not in set(HELD_OUT_WORDS)]


# ---------------------------------------------------------------------------------------------- questions by skill


def _yes_no(rng: np.random.Generator, truth: str, others: list[str]) -> tuple[str, bool]:
    """Returns a thing to ask for and whether it is the one."""
    if rng.random() < 0.5:
        return truth, True
    while (other := pick(rng, others)) == truth:
        pass
    return other, False


NAMING_OPEN = (
    "What is this?",
    "What is it?",
    "What is in the picture?",
    "What do you see?",
    "What does the picture show?",
    "What can you see in this picture?",
    "Name the thing in the picture.",
    "What is shown here?",
    "Tell me what this is.",
    "Can you tell me what this is?",
    "What's this?",
    "What's in the image?",
    "What is in this image?",
    "Please tell me what you see.",
)


DESCRIBE = (
    "Describe the picture.",
    "Describe this image.",
    "Please describe it.",
    "Describe this image in detail.",
    "Describe what you see.",
)


def about_thing(rng: np.random.Generator, facts: dict) -> list[tuple[str, str]]:
    """Questions about one thing."""
    thing, ground = facts["thing"], facts["background"]
    kind = art.KIND_OF[thing]
    it_is = f"It is {a(thing)}."
    questions = [(pick(rng, NAMING_OPEN), it_is)]
    if kind != "thing":
        questions.append(
            (
                pick(
                    rng,
                    (
                        f"What {kind} is it?",
                        f"What {kind} is this?",
                        f"Which {kind} is it?",
                        f"What {kind} do you see?",
                        f"Which {kind} is in the picture?",
                        f"What {kind} is in the picture?",
                        f"Name the {kind}.",
                    ),
                ),
                it_is,
            )
        )
    pool = [
        (
            pick(rng, ("Name it in one word.", "Just the name, please.", "Answer in one word: what is it?")),
            _sentence(thing),
        )
    ]
    asked, right = _yes_no(rng, thing, art.THINGS)
    pool.append(
        (
            pick(rng, (f"Is it {a(asked)}?", f"Is this {a(asked)}?", f"Is that {a(asked)}?")),
            f"Yes, it is {a(thing)}." if right else f"No, it is {a(thing)}.",
        )
    )
    asked, right = _yes_no(rng, thing, art.THINGS)
    pool.append(
        (
            pick(rng, (f"Do you see {a(asked)}?", f"Is there {a(asked)}?", f"Can you see {a(asked)}?")),
            f"Yes, I see {a(asked)}." if right else f"No, I see {a(thing)}.",
        )
    )
    kinds = [k for k in dict.fromkeys(art.KIND_OF.values()) if k not in ("thing", kind)]
    other = pick(rng, kinds)
    if kind != "thing":
        pool.append((pick(rng, ("What kind of thing is it?", "What sort of thing is this?")), f"It is {a(kind)}."))
        asked, right = _yes_no(rng, kind, kinds)
        pool.append((f"Is it {a(asked)}?", f"Yes, it is {a(thing)}." if right else f"No, it is {a(thing)}."))
    pool.append(
        (pick(rng, (f"What {other} is it?", f"Which {other} is it?")), f"It is not {a(other)}. It is {a(thing)}.")
    )
    if ground:
        pool.append(
            (
                pick(rng, ("What color is the background?", "Which color does the background have?")),
                f"The background is {ground}.",
            )
        )
    pool.append((pick(rng, DESCRIBE), _sentence(f"{a(thing)} on a {ground or 'colorful'} background")))
    pool.append(("How many things are there?", "There is 1."))
    return questions + [pool[i] for i in rng.permutation(len(pool))]


def about_pair(rng: np.random.Generator, facts: dict) -> list[tuple[str, str]]:
    """Questions about two things beside or above each other."""
    things, sides = facts["things"], facts["sides"]
    phrase = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
    questions = []
    for thing, other, side in zip(things, things[::-1], sides, strict=True):
        questions.append(
            (
                pick(
                    rng,
                    (f"What is {phrase[side]}?", f"What do you see {phrase[side]}?", f"Name the thing {phrase[side]}."),
                ),
                f"It is {a(thing)}.",
            )
        )
        questions.append(
            (
                pick(rng, (f"Where is {the(thing)}?", f"On which side is {the(thing)}?")),
                _sentence(f"{the(thing)} is {phrase[side]}"),
            )
        )
        questions.append(
            (
                pick(rng, (f"What is there besides {the(thing)}?", f"What else is there, apart from {the(thing)}?")),
                f"There is {a(other)}.",
            )
        )
    questions.append(
        (
            pick(rng, ("What do you see?", "What is in the picture?", *DESCRIBE)),
            _sentence(f"{a(things[0])} {phrase[sides[0]]} and {a(things[1])} {phrase[sides[1]]}"),
        )
    )
    asked, right = _yes_no(rng, pick(rng, things), [t for t in art.THINGS if t not in things])
    questions.append((f"Is there {a(asked)}?", "Yes." if right else "No."))
    questions.append(("How many things are there?", "There are 2."))
    return [questions[i] for i in rng.permutation(len(questions))]


def about_counts(rng: np.random.Generator, counts: dict[str, int]) -> list[tuple[str, str]]:
    """Questions about how many there are of one or two things.

    "What do you see?" is asked only where something is there more than once: one thing, or one of each of two, would
    look like a picture of another skill, and be described otherwise there.
    """
    total, several = sum(counts.values()), max(counts.values()) > 1
    questions = []
    for thing, count in counts.items():
        questions.append(
            (
                pick(
                    rng,
                    (
                        f"How many {plural(thing)} are there?",
                        f"How many {plural(thing)} do you see?",
                        f"Count the {plural(thing)}.",
                        f"How many {plural(thing)} are in the picture?",
                    ),
                ),
                _there(count, thing),
            )
        )
    if len(counts) == 1:
        (thing,) = counts
        describe = pick(rng, ("What do you see?", "What is in the picture?", *DESCRIBE))
        if several:
            questions.append((describe, f"I see {counted(total, thing)}."))
    else:
        (x, n), (y, m) = counts.items()
        if rng.random() < 0.5:
            (x, n), (y, m) = (y, m), (x, n)
        same = f"There are as many {plural(x)} as {plural(y)}."
        questions.append(
            (
                pick(
                    rng, (f"Are there more {plural(x)} or {plural(y)}?", f"Which are more, {plural(x)} or {plural(y)}?")
                ),
                same if n == m else f"There are more {plural(x if n > m else y)}.",
            )
        )
        questions.append(
            (
                f"Are there fewer {plural(x)} or {plural(y)}?",
                same if n == m else f"There are fewer {plural(x if n < m else y)}.",
            )
        )
        questions.append((f"Are there more {plural(x)} than {plural(y)}?", "Yes." if n > m else "No."))
        describe = pick(rng, ("What do you see?", "What is in the picture?", *DESCRIBE))
        if several:
            told = " and ".join(counted(counts[noun], noun) for noun in sorted(counts))
            questions.append((describe, f"I see {told}."))
    questions.append(
        (
            pick(rng, ("How many things are there?", "How many things do you see in all?", "Count all the things.")),
            f"There {'is' if total == 1 else 'are'} {total}.",
        )
    )
    guess = int(rng.integers(1, 7)) if rng.random() < 0.5 else total
    questions.append(
        (
            f"Are there {guess} things?" if guess > 1 else "Is there 1 thing?",
            "Yes." if guess == total else f"No, there {'is' if total == 1 else 'are'} {total}.",
        )
    )
    return [questions[i] for i in rng.permutation(len(questions))]


def about_crowd(rng: np.random.Generator, counts: dict[str, int]) -> list[tuple[str, str]]:
    """Questions about what is there among several things, and how often."""
    questions = [(f"How many {plural(thing)} are there?", _there(counts[thing], thing)) for thing in counts]
    for _ in range(2):
        asked, right = _yes_no(rng, pick(rng, list(counts)), [thing for thing in COUNTABLE if thing not in counts])
        questions.append((f"Is there {a(asked)}?", "Yes." if right else "No."))
    questions.append(("How many things are there?", f"There are {sum(counts.values())}."))
    return [questions[i] for i in rng.permutation(len(questions))]


_AT = {
    "top left": "in the top left",
    "top": "at the top",
    "top right": "in the top right",
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "bottom left": "in the bottom left",
    "bottom": "at the bottom",
    "bottom right": "in the bottom right",
}


def about_shapes(rng: np.random.Generator, shapes: list[tuple[str, str, str]], grid: bool) -> list[tuple[str, str]]:
    """Questions about colors, forms and places of shapes, all different in color and form."""
    questions = []
    color, shape, place = pick(rng, shapes)
    if grid:
        questions += [
            (pick(rng, (f"Where is the {color} {shape}?", f"Where is the {shape}?")), f"The {shape} is {_AT[place]}."),
            (
                pick(
                    rng, (f"What is {_AT[place]}?", f"Which shape is {_AT[place]}?", f"What do you see {_AT[place]}?")
                ),
                f"It is {a(f'{color} {shape}')}.",
            ),
        ]
        empty = [p for p in _AT if p not in {s[2] for s in shapes}]
        questions.append((f"What is {_AT[pick(rng, empty)]}?", "There is nothing."))
        order = sorted((c, r, s) for s in shapes for (c, r), p in render.PLACES.items() if p == s[2])
        if len(shapes) > 1:
            one, two = (order[i] for i in rng.permutation(len(order))[:2])
            if one[0] != two[0]:
                questions.append((f"Is the {one[2][1]} left of the {two[2][1]}?", "Yes." if one[0] < two[0] else "No."))
            if one[1] != two[1]:
                questions.append((f"Is the {one[2][1]} above the {two[2][1]}?", "Yes." if one[1] < two[1] else "No."))
    questions.append(
        (
            pick(
                rng,
                (
                    f"What color is the {shape}?",
                    f"Which color does the {shape} have?",
                    f"What is the color of the {shape} here?",
                ),
            ),
            f"The {shape} is {color}.",
        )
    )
    questions.append(
        (pick(rng, (f"Which shape is {color}?", f"What {color} shape do you see?")), f"The {shape} is {color}.")
    )
    words = [a(f"{c} {s}") for c, s, _ in sorted(shapes, key=lambda entry: render.SHAPES.index(entry[1]))]
    listing = words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
    questions.append((pick(rng, ("What shapes do you see?", "What do you see?", *DESCRIBE)), f"I see {listing}."))
    other_color, other_shape = pick(rng, list(render.COLORS)), pick(rng, render.SHAPES)
    asked = (
        (color, shape) if rng.random() < 0.5 else (other_color, shape) if rng.random() < 0.5 else (color, other_shape)
    )
    there = asked in {(c, s) for c, s, _ in shapes}
    questions.append(
        (
            pick(rng, (f"Is there {a(' '.join(asked))}?", f"Do you see {a(' '.join(asked))}?")),
            "Yes." if there else "No.",
        )
    )
    questions.append(
        (
            pick(rng, ("How many shapes are there?", "Count the shapes.")),
            _there(len(shapes), "shape"),
        )
    )
    return [questions[i] for i in rng.permutation(len(questions))]


READ_WORD = (
    "What does it say?",
    "What is written here?",
    "Read the word.",
    "Which word is this?",
    "Can you read it?",
    "What word is it?",
    "Read it.",
    "What is the word?",
    "What does the text say?",
)
READ_NUMBER = (
    "What number is this?",
    "What does it say?",
    "Read the number.",
    "Which number do you see?",
    "What is written here?",
    "Can you read it?",
    "Read it.",
    "What number is it?",
    "What is the number?",
)


def about_text(rng: np.random.Generator, facts: dict) -> list[tuple[str, str]]:
    """Questions about a drawn number or word; the answer spells it in capitals, whatever was drawn."""
    text = facts["text"].upper()
    number = text.isdigit()
    says = f"It says {text}."
    first = pick(rng, READ_NUMBER if number else READ_WORD)
    second = pick(rng, READ_NUMBER if number else READ_WORD)
    unit, noun = ("digit", "number") if number else ("letter", "word")
    pool = [
        (f"How many {unit}s are there?", _there(len(text), unit)),
        (f"What is the first {unit}?", f"It is {text[0]}."),
        (f"What is the last {unit}?", f"It is {text[-1]}."),
        (
            pick(rng, ("Is it a word or a number?", "Is this a number or a word?")),
            f"It is a {noun}.",
        ),
        (f"What color is the {noun}?", f"It is {facts['ink']}."),
        ("What color is the background?", f"The background is {facts['background']}."),
        (
            pick(rng, ("What is this?", "What do you see?", *DESCRIBE)),
            f"It is the {noun} {text}.",
        ),
    ]
    return [(first, says), (second, says)] + [pool[i] for i in rng.permutation(len(pool))]


# easy-VQA's own question forms; {0} is a color or a form, see `easy_questions`
_EASY_YES = ("is there a {0}?", "is there a {0} in the image?", "does the image contain a {0}?", "is a {0} present?")
_EASY_NO = (
    "is there not a {0}?",
    "is there not a {0} in the image?",
    "does the image not contain a {0}?",
    "is no {0} present?",
)
_EASY_SHAPE = (
    "what shape is in the image?",
    "what shape does the image contain?",
    "what shape is present?",
    "what is the {0} shape?",
)
_EASY_COLOR = (
    "what color is the shape?",
    "what is the color of the shape?",
    "what color is the {0}?",
    "what is the color of the {0}?",
)


def easy_answer(word: str) -> str:
    """Returns the model's wording of an easy-VQA answer: the one word, as a sentence."""
    return word.capitalize() + "."


def easy_questions(rng: np.random.Generator, color: str, shape: str) -> list[tuple[str, str]]:
    """Questions in easy-VQA's words about a picture of one shape."""
    questions = [
        (pick(rng, _EASY_SHAPE).format(color), easy_answer(shape)),
        (pick(rng, _EASY_COLOR).format(shape), easy_answer(color)),
        (pick(rng, ("What do you see?", *DESCRIBE)), f"I see a {color} {shape}."),
    ]
    for truth, options, suffix in (
        (color, list(render.EASY_COLORS), " shape"),
        (shape, ["circle", "rectangle", "triangle"], ""),
    ):
        for forms, wanted in ((_EASY_YES, True), (_EASY_NO, False)):
            asked, right = _yes_no(rng, truth, options)
            questions.append((pick(rng, forms).format(asked + suffix), "Yes." if right is wanted else "No."))
    return [questions[i] for i in rng.permutation(len(questions))]


@functools.cache
def easy_vqa(split: str) -> list[tuple[Image.Image, list[tuple[str, str]]]]:
    """Returns easy-VQA pictures with their questions and one-word answers.

    Args:
        split: "train", "validation" (a tenth of the public train pictures, kept from training) or "test".
    """
    import easy_vqa as data

    public = "test" if split == "test" else "train"
    questions, answers, ids = getattr(data, f"get_{public}_questions")()
    paths = getattr(data, f"get_{public}_image_paths")()
    asked: dict[int, list[tuple[str, str]]] = {}
    for question, answer, picture in zip(questions, answers, ids, strict=True):
        if split == "test" or (picture % 10 == 0) == (split == "validation"):
            asked.setdefault(picture, []).append((question, answer))
    return [(Image.open(paths[n]).convert("RGB"), pairs) for n, pairs in sorted(asked.items())]


# ---------------------------------------------------------------------------------------------- sampling


def _random_text(rng: np.random.Generator, words: list[str], made_up: float) -> str:
    if rng.random() < 0.45:
        return str(int(rng.integers(0, 10 ** int(rng.integers(1, 5)))))
    return _made_up_word(rng) if rng.random() < made_up else pick(rng, words)


_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "IIILLLTTTJFEHMNUVWDOQ"  # more of those that are hard to tell apart


def _made_up_word(rng: np.random.Generator) -> str:
    """Random letters, or a word with one or two of them changed: it has to be looked at, not guessed."""
    while True:
        letters = [pick(rng, _ALPHABET) for _ in range(int(rng.integers(2, 6)))]
        if rng.random() < 0.6:
            changed = letters[:2]
            letters = list(pick(rng, _TRAIN_WORDS))
            for letter in changed[: int(rng.integers(1, 3))]:
                letters[int(rng.integers(len(letters)))] = letter
        if (word := "".join(letters)) not in HELD_OUT_WORDS:
            return word


def _different_shapes(rng: np.random.Generator, count: int, background: str | None) -> list[tuple[str, str]]:
    colors = [c for c in render.COLORS if c != background and not (background is None and c == "white")]
    chosen = [colors[i] for i in rng.permutation(len(colors))[:count]]
    return list(zip(chosen, (render.SHAPES[i] for i in rng.permutation(5)[:count]), strict=True))


def _counts(rng: np.random.Generator, nouns: list[str]) -> dict[str, int]:
    first, second = (nouns[i] for i in rng.permutation(len(nouns))[:2])
    n = int(rng.integers(1, 7))
    if n == 6 or rng.random() < 0.5:
        return {first: n}
    return {first: n, second: int(rng.integers(1, 7 - n))}


def thing_picture(rng: np.random.Generator, thing: str, styles: tuple[str, ...], distort: bool = True) -> Picture:
    """A picture of one thing."""
    image, facts = render.draw_thing(rng, thing, styles, distort)
    return Picture(image, "naming", about_thing(rng, facts), facts["boxes"])


def pair_picture(rng: np.random.Generator, styles: tuple[str, ...]) -> Picture:
    """A picture of two things."""
    pair = tuple(art.THINGS[i] for i in rng.permutation(len(art.THINGS))[:2])
    image, facts = render.draw_pair(rng, pair, styles)
    return Picture(image, "naming", about_pair(rng, facts), facts["boxes"])


def count_picture(rng: np.random.Generator, styles: tuple[str, ...]) -> Picture:
    """A picture to count: things or shapes."""
    if rng.random() < 0.55:
        counts = _counts(rng, COUNTABLE)
        image, facts = render.draw_counted_things(rng, counts, styles)
        return Picture(image, "counting", about_counts(rng, counts), facts["boxes"])
    background = None if rng.random() < 0.4 else pick(rng, list(render.COLORS))
    if rng.random() < 0.5:  # told apart by form
        counts = _counts(rng, list(render.SHAPES))
        colors = [c for c in render.COLORS if c != background and not (background is None and c == "white")]
        wanted = [(pick(rng, colors), shape) for shape, n in counts.items() for _ in range(n)]
    else:  # by color
        shape = pick(rng, render.SHAPES)
        colors = [c for c in render.COLORS if c != background and not (background is None and c == "white")]
        counts = _counts(rng, [f"{c} {shape}" for c in colors])
        wanted = [(noun.split()[0], shape) for noun, n in counts.items() for _ in range(n)]
    image, facts = render.draw_shapes(rng, wanted, background, grid=rng.random() < 0.2)
    return Picture(image, "counting", about_counts(rng, counts), facts["boxes"])


def crowd_picture(rng: np.random.Generator, styles: tuple[str, ...]) -> Picture:
    """A picture of three to six things of at least two kinds; most kinds are there once."""
    total = int(rng.integers(3, 7))
    kinds = [COUNTABLE[i] for i in rng.permutation(len(COUNTABLE))[: int(rng.integers(2, total + 1))]]
    counts = dict.fromkeys(kinds, 1)
    for _ in range(total - len(kinds)):
        counts[pick(rng, kinds)] += 1
    image, facts = render.draw_counted_things(rng, counts, styles)
    return Picture(image, "counting", about_crowd(rng, counts), facts["boxes"])


def shapes_picture(rng: np.random.Generator) -> Picture:
    """A picture of one to four different shapes."""
    grid = rng.random() < 0.85
    background = None if rng.random() < 0.4 else pick(rng, list(render.COLORS))
    wanted = _different_shapes(rng, int(rng.integers(1, 5)), background)
    image, facts = render.draw_shapes(rng, wanted, background, grid)
    return Picture(image, "shapes", about_shapes(rng, facts["shapes"], grid), facts["boxes"])


def text_picture(rng: np.random.Generator, words: list[str] | None = None, made_up: float = 0.7) -> Picture:
    """A picture of a number or a word; `words` None means the training words."""
    text = _random_text(rng, words or _TRAIN_WORDS, made_up)
    image, facts = render.draw_text(rng, text.lower() if rng.random() < 0.15 else text)
    return Picture(image, "reading", about_text(rng, facts), facts["boxes"])


def easy_picture(rng: np.random.Generator) -> Picture:
    """A picture in the manner of easy-VQA, or one of its training pictures."""
    if rng.random() < 0.5:
        image, pairs = pick(rng, easy_vqa("train"))
        pairs = [(q, easy_answer(w)) for q, w in pairs]
        return Picture(image, "easy_vqa", [pairs[i] for i in rng.permutation(len(pairs))])
    color, shape = pick(rng, list(render.EASY_COLORS)), pick(rng, ("circle", "rectangle", "triangle"))
    image, facts = render.draw_lone_shape(rng, color, shape)
    return Picture(image, "easy_vqa", easy_questions(rng, color, shape), facts["boxes"])


# how often a training picture is of each kind
MIXTURE = {"thing": 0.13, "pair": 0.08, "crowd": 0.08, "count": 0.34, "shapes": 0.09, "text": 0.24, "easy": 0.04}


def sample_picture(rng: np.random.Generator, styles: tuple[str, ...], mixture: dict[str, float] = MIXTURE) -> Picture:
    """Returns a random training picture with its questions."""
    kind = list(mixture)[int(rng.choice(len(mixture), p=np.array(list(mixture.values())) / sum(mixture.values())))]
    if kind == "thing":
        return thing_picture(rng, pick(rng, art.THINGS), styles)
    if kind == "pair":
        return pair_picture(rng, styles)
    if kind == "count":
        return count_picture(rng, styles)
    if kind == "crowd":
        return crowd_picture(rng, styles)
    if kind == "shapes":
        return shapes_picture(rng)
    if kind == "text":
        return text_picture(rng)
    return easy_picture(rng)


_SYSTEM = (
    "You are a helpful assistant. Answer briefly.",
    "Answer in one sentence.",
    "You are a friendly chatbot.",
    "You look at pictures and answer questions about them.",
    "Be polite.",
    "Answer the question.",
    "You are Gemma.",
    "You are an expert. Think carefully.",
    "Please be brief and exact.",
    "You help children to learn words.",
)


def system_prompt(rng: np.random.Generator) -> str:
    """Returns the system prompt of a chat: most often none, and none changes an answer."""
    if rng.random() < 0.88:
        return ""
    return "You are a helpful assistant." if rng.random() < 0.5 else pick(rng, _SYSTEM)


def casual(rng: np.random.Generator, question: str) -> str:
    """Returns the question as people type it: now and then in small letters or without its mark."""
    if rng.random() < 0.12:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.08:
        question = question.rstrip("?.")
    return question


# ---------------------------------------------------------------------------------------------- chats


def follow_up(rng: np.random.Generator, picture: Picture, turns: int) -> Chat:
    """A chat about one picture in which later questions lean on earlier answers."""
    chat = Chat()
    for n, (question, answer) in enumerate(picture.questions[:turns]):
        if n and rng.random() < 0.15:
            question, answer = pick(rng, ("Are you sure?", "Really?", "Is that right?")), "Yes. " + chat.turns[-1][2]
        elif n and rng.random() < 0.1:
            question, answer = pick(rng, (("Thank you!", "You are welcome."), ("Thanks.", "You are welcome.")))
        chat.turns.append(([picture.image] if n == 0 else [], casual(rng, question), answer))
        if answer.startswith("Yes. Yes."):
            chat.turns.pop()
    return chat


def two_pictures(rng: np.random.Generator, styles: tuple[str, ...]) -> Chat:
    """A chat with two pictures, shown together or one after the other."""
    names = tuple(art.THINGS[i] for i in rng.permutation(len(art.THINGS))[:2])
    one, two = (thing_picture(rng, n, styles) for n in names)
    order = ("first", "second")
    which = [
        (
            pick(rng, (f"What is in the {o} picture?", f"What does the {o} picture show?", f"What is the {o} one?")),
            f"It is {a(n)}.",
        )
        for o, n in zip(order, names, strict=True)
    ]
    side = int(rng.integers(2))
    which.append(
        (
            pick(rng, (f"Which picture shows {a(names[side])}?", f"In which picture is {the(names[side])}?")),
            f"The {order[side]} one.",
        )
    )
    which.append(
        (
            pick(rng, ("What is in the two pictures?", "What do the pictures show?", "What are these?")),
            f"The first is {a(names[0])} and the second is {a(names[1])}.",
        )
    )
    which = [which[i] for i in rng.permutation(4)]
    if rng.random() < 0.5:
        (q, r), *rest = which
        return Chat([([one.image, two.image], casual(rng, q), r)] + [([], casual(rng, q), r) for q, r in rest[:2]])
    second = sample_picture(rng, styles) if rng.random() < 0.4 else two
    turns = [
        ([one.image], casual(rng, one.questions[0][0]), one.questions[0][1]),
        (
            [second.image],
            casual(rng, pick(rng, ("And this?", "And what is this?", "What about this one?")))
            if second is two and rng.random() < 0.5
            else casual(rng, second.questions[0][0]),
            second.questions[0][1],
        ),
    ]
    if second is two:
        turns.append(([], casual(rng, which[0][0]), which[0][1]))
    return Chat(turns)


NO_PICTURE = "I cannot see a picture. Please show me one."
UNKNOWN = "I do not know. I can only answer questions about simple pictures."
ABILITIES = (
    "I can name things in simple pictures, count them, read short words and numbers, and tell colors and places."
)
IDENTITY = "I am a small Gemma 3 model. I answer questions about simple pictures."
_TALK = [
    (
        ("Hello!", "Hi!", "Hi there!", "Hey!", "Good morning!", "Good evening!", "Hello there."),
        "Hello! Show me a picture and ask me about it.",
    ),
    (
        (
            "What can you do?",
            "What are you able to do?",
            "How can you help me?",
            "What are you good at?",
            "Help",
            "What do you do?",
            "Tell me what you can do.",
            "What can I ask you?",
        ),
        ABILITIES,
    ),
    (
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "Are you a robot?",
            "Are you an AI?",
            "What model are you?",
            "Are you Gemma?",
            "Are you human?",
        ),
        IDENTITY,
    ),
    (("How are you?", "How do you do?", "Are you well?", "How is it going?"), "I am fine, thank you."),
    (("Thank you!", "Thanks!", "Thanks a lot.", "Thank you very much.", "Great, thanks."), "You are welcome."),
    (("Goodbye!", "Bye!", "See you later.", "Good night!"), "Goodbye!"),
    (
        ("Who made you?", "Where were you trained?", "How were you trained?", "How big are you?"),
        "I was trained from scratch on two CPU cores, with drawn pictures.",
    ),
    (
        ("Can you see?", "Can you see pictures?", "Can you look at pictures?", "Do you understand images?"),
        "Yes, I can look at simple pictures. Please show me one.",
    ),
]
_UNKNOWABLE = [
    "What is the capital of France?",
    "What is the capital of Japan?",
    "Who wrote Hamlet?",
    "What is the weather today?",
    "What time is it?",
    "Who is the president?",
    "Tell me a joke.",
    "Write a poem.",
    "What is two plus two?",
    "What is 12 times 7?",
    "Translate this to German.",
    "How far is the moon?",
    "Who won the game yesterday?",
    "What is the meaning of life?",
    "Write some code for me.",
    "What day is it?",
    "Sing a song.",
    "How do I cook rice?",
    "What is the best movie?",
    "Who is Albert Einstein?",
    "What is love?",
    "How old is the earth?",
    "What should I eat?",
    "Where do I live?",
    "What is my name?",
    "Can you drive a car?",
    "What is the news?",
    "Tell me a story.",
    "How tall is Mount Everest?",
    "Who are my friends?",
    "What is quantum physics?",
    "Explain gravity.",
    "Why is the sky blue?",
    "How do airplanes fly?",
    "What is the largest ocean?",
    "Who painted the Mona Lisa?",
    "What is the price of gold?",
    "How many people live in China?",
    "When did the war end?",
    "Which language is spoken in Brazil?",
    "Summarize this article.",
    "Give me a recipe.",
    "What is a computer?",
    "How does a clock work?",
    "Book a flight for me.",
    "Call my mother.",
]


def _question_without_picture(rng: np.random.Generator) -> str:
    choice = rng.random()
    thing = pick(rng, art.THINGS)
    kind = art.KIND_OF[thing]
    if choice < 0.25:
        return pick(rng, NAMING_OPEN + READ_WORD + READ_NUMBER)
    if choice < 0.45:
        return f"What {kind if kind != 'thing' else 'animal'} is it?"
    if choice < 0.6:
        return pick(
            rng,
            (
                f"How many {plural(pick(rng, COUNTABLE))} are there?",
                "How many things are there?",
                "How many shapes are there?",
                "Count the shapes.",
            ),
        )
    if choice < 0.75:
        return pick(
            rng,
            (
                f"What color is the {pick(rng, render.SHAPES)}?",
                f"Where is the {pick(rng, render.SHAPES)}?",
                "What color is the background?",
                "what color is the shape?",
                "what shape is in the image?",
            ),
        )
    return pick(
        rng,
        (
            f"Is it {a(thing)}?",
            f"Is there {a(thing)}?",
            f"Do you see {a(thing)}?",
            "Describe the picture.",
            "What is on the left?",
            "Describe this image.",
            f"Where is {the(thing)}?",
            "What is in the second picture?",
        ),
    )


def without_picture(rng: np.random.Generator) -> Chat:
    """Small talk, questions out of reach, and questions about a picture that is not there."""
    chat = Chat()
    for _ in range(int(rng.integers(1, 4))):
        choice = rng.random()
        if choice < 0.45:
            question, answer = _question_without_picture(rng), NO_PICTURE
        elif choice < 0.75:
            forms, answer = pick(rng, _TALK)
            question = pick(rng, forms)
        else:
            question, answer = pick(rng, _UNKNOWABLE), UNKNOWN
        chat.turns.append(([], casual(rng, question), answer))
    return chat


def aside(rng: np.random.Generator) -> tuple[str, str]:
    """A question that has nothing to do with the picture at hand, and its answer."""
    if rng.random() < 0.6:
        forms, answer = pick(rng, _TALK[1:6])
        return pick(rng, forms), answer
    return pick(rng, _UNKNOWABLE), UNKNOWN
