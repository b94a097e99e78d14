"""Pictures with questions about them.

* `sample_picture(rng, styles, ...)`: a picture of a random skill.
* `easy_vqa(split)`: the public easy-VQA pictures and questions.
"""

import functools
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from . import art, lettering, render, synonyms
from .questions import (
    about_counts,
    about_crowd,
    about_pair,
    about_scene,
    about_shapes,
    about_text,
    about_thing,
    about_twins,
    easy_answer,
    easy_questions,
)
from .render import pick
from .wording import COUNTABLE, HELD_OUT_WORDS, LONG_WORDS, TRAIN_WORDS


@dataclass
class Picture:
    """A picture and independent questions about it.

    Attributes:
        image: 64x64 RGB.
        skill: `naming`, `counting`, `scene`, `reading`, `shapes` or `easy_vqa`.
        questions: (question, answer) pairs, each of which can be asked first; the most telling one first.
        boxes: what is where; empty where that is not known.
        background: a color's name, "pale", or None where it has several.
        text: what is written, in capitals.
        sides: of two things alone: "left" and "right", or "top" and "bottom".
    """

    image: Image.Image
    skill: str
    questions: list[tuple[str, str]]
    boxes: list[render.Box] = field(default_factory=list)
    background: str | None = None
    text: str = ""
    sides: tuple[str, ...] = ()

    @functools.cached_property
    def names(self) -> set[str]:
        """Of its things and shapes; letters have none."""
        return set() if self.text else {box.what for box in self.boxes}

    @functools.cached_property
    def kinds(self) -> set[str]:
        """What sorts of things are on it."""
        return {art.KIND_OF[name] for name in self.names if name in art.KIND_OF}


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
            letters = list(pick(rng, TRAIN_WORDS))
            for letter in changed[: int(rng.integers(1, 3))]:
                letters[int(rng.integers(len(letters)))] = letter
        if (word := "".join(letters)) not in HELD_OUT_WORDS:
            return word


def _long_text(rng: np.random.Generator) -> str:
    """Five or six digits, or a word of six or seven letters, most often with one or two of them changed."""
    if rng.random() < 0.25:
        return str(int(rng.integers(10_000, 1_000_000)))
    letters = list(pick(rng, LONG_WORDS))
    for _ in range(int(rng.integers(3))):
        letters[int(rng.integers(len(letters)))] = pick(rng, _ALPHABET)
    return "".join(letters)


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


def thing_picture(
    rng: np.random.Generator, thing: str, styles: tuple[str, ...], distort: bool = True, mix: float = 0.0
) -> Picture:
    """A picture of one thing."""
    image, facts = render.draw_thing(rng, thing, styles, distort, mix)
    return Picture(image, "naming", about_thing(rng, facts), facts["boxes"], facts["background"])


_KINDS = [kind for kind in dict.fromkeys(art.KIND_OF.values()) if kind != "thing"]
_FAMILIES = [[thing for thing in art.THINGS if art.KIND_OF[thing] == kind] for kind in _KINDS]
_FAMILIES += synonyms.SORTS.values()


def _related(rng: np.random.Generator, names: list[str], among: list[str], alike: float) -> list[str]:
    """The names, or as often as `alike` says others, two or more of them of one kind, as people show them."""
    if len(names) < 2 or not alike or rng.random() >= alike:
        return names
    family = [name for name in pick(rng, _FAMILIES) if name in among]
    some = [family[i] for i in rng.permutation(len(family))[: int(rng.integers(2, len(names) + 1))]]
    return some + [name for name in names if name not in some][: len(names) - len(some)]


def pair_picture(
    rng: np.random.Generator, styles: tuple[str, ...], mix: float = 0.0, alike: float = 0.0, level: int | None = None
) -> Picture:
    """A picture of two things; `alike` see `sample_picture`, `level` see `render.draw_pair`."""
    pair = tuple(_related(rng, [art.THINGS[i] for i in rng.permutation(len(art.THINGS))[:2]], art.THINGS, alike))
    image, facts = render.draw_pair(rng, pair, styles, mix, level)
    questions = about_pair(rng, facts)
    return Picture(image, "naming", questions, facts["boxes"], facts["background"], sides=facts["sides"])


def count_picture(rng: np.random.Generator, styles: tuple[str, ...], mix: float = 0.0, alike: float = 0.0) -> Picture:
    """A picture to count: things or shapes."""
    if rng.random() < 0.55:
        counts = _counts(rng, COUNTABLE)
        counts = dict(zip(_related(rng, list(counts), COUNTABLE, alike), counts.values(), strict=True))
        image, facts = render.draw_counted_things(rng, counts, styles, mix)
        return Picture(image, "counting", about_counts(rng, counts), facts["boxes"], facts["background"])
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
    return Picture(image, "counting", about_counts(rng, counts), facts["boxes"], facts["background"])


def crowd_picture(rng: np.random.Generator, styles: tuple[str, ...], mix: float = 0.0, alike: float = 0.0) -> Picture:
    """A picture of three to six things of at least two kinds; most kinds are there once."""
    total = int(rng.integers(3, 7))
    kinds = [COUNTABLE[i] for i in rng.permutation(len(COUNTABLE))[: int(rng.integers(2, total + 1))]]
    kinds = _related(rng, kinds, COUNTABLE, alike)
    counts = dict.fromkeys(kinds, 1)
    for _ in range(total - len(kinds)):
        counts[pick(rng, kinds)] += 1
    image, facts = render.draw_counted_things(rng, counts, styles, mix)
    return Picture(image, "counting", about_crowd(rng, counts), facts["boxes"], facts["background"])


def scene_picture(rng: np.random.Generator, styles: tuple[str, ...], mix: float = 0.0, alike: float = 0.0) -> Picture:
    """A picture of one to five different things, each in a place that has a name."""
    count = int(rng.choice(5, p=(0.25, 0.35, 0.2, 0.12, 0.08))) + 1
    things = _related(rng, [art.THINGS[i] for i in rng.permutation(len(art.THINGS))[:count]], art.THINGS, alike)
    image, facts = render.draw_scene(rng, things, styles, mix)
    if count == 1:
        questions = about_thing(rng, {"thing": things[0], "background": facts["background"]})
    else:
        questions = about_scene(rng, things)
    return Picture(image, "scene", questions, facts["boxes"], facts["background"])


def shapes_picture(rng: np.random.Generator) -> Picture:
    """A picture of one to four different shapes."""
    grid = rng.random() < 0.85
    background = None if rng.random() < 0.4 else pick(rng, list(render.COLORS))
    wanted = _different_shapes(rng, int(rng.integers(1, 5)), background)
    image, facts = render.draw_shapes(rng, wanted, background, grid)
    questions = about_shapes(rng, facts["shapes"], grid)
    return Picture(image, "shapes", questions, facts["boxes"], facts["background"])


def twins_picture(rng: np.random.Generator) -> Picture:
    """A picture of two to four shapes, each in a place that has a name; some share their form, or their color."""
    background = None if rng.random() < 0.4 else pick(rng, list(render.COLORS))
    count = int(rng.integers(2, 5))
    (color, shape), *rest = _different_shapes(rng, count, background)
    wanted = [(color, shape), (color, rest[0][1]) if rng.random() < 0.4 else (rest[0][0], shape)]
    for other in rest[1:]:
        choice = rng.random()
        wanted.append((other[0], shape) if choice < 0.3 else (color, other[1]) if choice < 0.5 else other)
    wanted = [wanted[i] for i in rng.permutation(count)]
    image, facts = render.draw_shapes(rng, wanted, background, grid=True)
    return Picture(image, "shapes", about_twins(rng, facts["shapes"]), facts["boxes"], facts["background"])


def text_picture(
    rng: np.random.Generator,
    words: list[str] | None = None,
    made_up: float = 0.7,
    small: float = 0.0,
    long: float = 0.0,
) -> Picture:
    """A picture of a number or a word.

    Args:
        rng: source of chance.
        words: None means the training words.
        made_up: how often a word is one that there is not.
        small: see `lettering.draw_text`.
        long: how often it has five to seven characters.
    """
    text = _random_text(rng, words or TRAIN_WORDS, made_up) if not long or rng.random() >= long else _long_text(rng)
    image, facts = lettering.draw_text(rng, text.lower() if rng.random() < 0.15 else text, small)
    return Picture(image, "reading", about_text(rng, facts), facts["boxes"], facts["background"], text.upper())


def small_text_picture(rng: np.random.Generator, words: list[str]) -> Picture:
    """A picture of a number or one of the words in letters of a quarter of the height, 256 pixels square."""
    text = _random_text(rng, words, made_up=0.0)
    image, facts = lettering.draw_quarter_text(rng, text)
    return Picture(image, "reading", about_text(rng, facts), [], facts["background"], text)


def easy_picture(rng: np.random.Generator) -> Picture:
    """A picture in the manner of easy-VQA, or one of its training pictures."""
    if rng.random() < 0.5:
        image, pairs = pick(rng, easy_vqa("train"))
        pairs = [(q, easy_answer(w)) for q, w in pairs]
        return Picture(image, "easy_vqa", [pairs[i] for i in rng.permutation(len(pairs))])
    color, shape = pick(rng, list(render.EASY_COLORS)), pick(rng, ("circle", "rectangle", "triangle"))
    image, facts = render.draw_lone_shape(rng, color, shape)
    return Picture(image, "easy_vqa", easy_questions(rng, color, shape), facts["boxes"], facts["background"])


# how often a picture of the exam's chats is of each kind
MIXTURE = {"thing": 0.13, "pair": 0.08, "crowd": 0.08, "count": 0.34, "shapes": 0.09, "text": 0.24, "easy": 0.04}
# ... and a training picture
LEARNED = {"thing": 0.20, "pair": 0.11, "crowd": 0.08, "scene": 0.17, "count": 0.18, "shapes": 0.07, "twins": 0.03,
           "text": 0.13, "easy": 0.03}  # fmt: skip
MIX = 0.6  # how often a training picture's drawings are made over into another style
SMALL = 0.6  # how often its letters are small
LONG = 0.2  # how often a text on it is long
ALIKE = 0.4  # how often several things on it are of one kind
LEVEL = 16  # pixels that one of two things on it lies higher at most, or further left: across corners are scenes


def sample_picture(
    rng: np.random.Generator,
    styles: tuple[str, ...],
    mixture: dict[str, float] = MIXTURE,
    mix: float = 0.0,
    small: float = 0.0,
    alike: float = 0.0,
    level: int | None = None,
    long: float = 0.0,
) -> Picture:
    """Returns a random picture with its questions.

    Args:
        rng: source of chance.
        styles: art styles to choose from.
        mixture: how often each kind of picture comes.
        mix: how often drawings are made over into another style.
        small: how often letters are small.
        alike: how often several things are of one kind.
        level: see `render.draw_pair`.
        long: how often a text has five to seven characters.
    """
    kind = list(mixture)[int(rng.choice(len(mixture), p=np.array(list(mixture.values())) / sum(mixture.values())))]
    if kind == "thing":
        return thing_picture(rng, pick(rng, art.THINGS), styles, mix=mix)
    if kind == "pair":
        return pair_picture(rng, styles, mix, alike, level)
    if kind == "count":
        return count_picture(rng, styles, mix, alike)
    if kind == "crowd":
        return crowd_picture(rng, styles, mix, alike)
    if kind == "scene":
        return scene_picture(rng, styles, mix, alike)
    if kind == "shapes":
        return shapes_picture(rng)
    if kind == "twins":
        return twins_picture(rng)
    if kind == "text":
        return text_picture(rng, small=small, long=long)
    return easy_picture(rng)
