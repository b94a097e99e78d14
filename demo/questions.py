"""What is asked about a picture, and what a good answer is.

An answer's form follows from the question's wording alone, so that nothing has to be guessed.
"""

import numpy as np

from . import art, render
from .render import pick
from .wording import COUNTABLE, a, counted, plural, sentence, the, there_are


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
            sentence(thing),
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
    pool.append((pick(rng, DESCRIBE), sentence(f"{a(thing)} on a {ground or 'colorful'} background")))
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
                sentence(f"{the(thing)} is {phrase[side]}"),
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
            sentence(f"{a(things[0])} {phrase[sides[0]]} and {a(things[1])} {phrase[sides[1]]}"),
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
                there_are(count, thing),
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
    questions = [(f"How many {plural(thing)} are there?", there_are(counts[thing], thing)) for thing in counts]
    for _ in range(2):
        asked, right = _yes_no(rng, pick(rng, list(counts)), [thing for thing in COUNTABLE if thing not in counts])
        questions.append((f"Is there {a(asked)}?", "Yes." if right else "No."))
    questions.append(("How many things are there?", f"There are {sum(counts.values())}."))
    return [questions[i] for i in rng.permutation(len(questions))]


def about_scene(rng: np.random.Generator, things: list[str]) -> list[tuple[str, str]]:
    """Questions about what is there among several things of different names."""
    questions = [("How many things are there?", f"There are {len(things)}.")]
    for _ in range(2):
        asked, right = _yes_no(rng, pick(rng, things), [thing for thing in art.THINGS if thing not in things])
        questions.append((f"Is there {a(asked)}?", "Yes." if right else "No."))
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
            there_are(len(shapes), "shape"),
        )
    )
    return [questions[i] for i in rng.permutation(len(questions))]


def about_twins(rng: np.random.Generator, shapes: list[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Questions about shapes of which some share their form or color, none both; for training alone."""
    order = sorted(shapes, key=lambda entry: (render.SHAPES.index(entry[1]), list(render.COLORS).index(entry[0])))
    words = [a(f"{color} {shape}") for color, shape, _ in order]
    color, shape, place = pick(rng, shapes)
    return [
        (pick(rng, ("What shapes do you see?", *DESCRIBE)), f"I see {', '.join(words[:-1])} and {words[-1]}."),
        (f"What is {_AT[place]}?", f"It is {a(f'{color} {shape}')}."),
        (pick(rng, ("How many shapes are there?", "Count the shapes.")), there_are(len(shapes), "shape")),
    ]


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
        (f"How many {unit}s are there?", there_are(len(text), unit)),
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
