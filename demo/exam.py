"""The exam's questions, drawn from seeds, skill by skill."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from . import art, chats
from .pictures import (
    Picture,
    count_picture,
    easy_vqa,
    pair_picture,
    sample_picture,
    shapes_picture,
    small_text_picture,
    text_picture,
    thing_picture,
)
from .questions import easy_answer
from .skills import COUNTS, SEEDS
from .sprites import load_sprites
from .wording import HELD_OUT_WORDS


@dataclass
class Question:
    """A chat that ends in a question, and the one right answer."""

    turns: list[tuple[list[Image.Image], str, str]]  # (pictures, question, answer); the last answer is the expected one
    system: str = ""

    @property
    def expected(self) -> str:
        return self.turns[-1][2]

    def messages(self) -> list[dict]:
        """The chat in transformers' form, up to the last question."""
        messages = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        for pictures, question, answer in self.turns:
            content = [{"type": "image", "image": picture} for picture in pictures] + [
                {"type": "text", "text": question}
            ]
            messages.append({"role": "user", "content": content})
            messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        return messages[:-1]


def _first_questions(pictures: list[Picture]) -> list[Question]:
    return [Question([([p.image], *p.questions[0])]) for p in pictures]


def _naming(rng: np.random.Generator, count: int, styles: tuple[str, ...]) -> list[Question]:
    """Every thing equally often, by open questions and by questions for its kind."""
    things = [thing for thing in art.THINGS if any(thing in load_sprites()[s] for s in styles)]
    questions = []
    for n in range(count):
        picture = thing_picture(rng, things[n % len(things)], styles, distort=False)
        last = 2 if art.KIND_OF[things[n % len(things)]] != "thing" else 1
        questions.append(Question([([picture.image], *picture.questions[int(rng.integers(last))])]))
    return questions


def _dialogue(rng: np.random.Generator, styles: tuple[str, ...]) -> Question:
    if rng.random() < 0.5:
        turns = chats.two_pictures(rng, styles).turns
    else:
        turns = []
        while len(turns) < 2:
            turns = chats.follow_up(rng, sample_picture(rng, styles), 4).turns
    return Question(turns[: int(rng.integers(2, len(turns) + 1))])


_STYLES = tuple(art.TRAIN_STYLES)
_MAKERS = {
    "easy_vqa": lambda rng, split, count: [
        Question([([image], question, easy_answer(word))])
        for image, pairs in easy_vqa(split)
        for question, word in pairs
    ][:count],
    "naming": lambda rng, split, count: _naming(rng, count, _STYLES),
    "naming_new_style": lambda rng, split, count: _naming(rng, count, tuple(art.HELD_OUT_STYLE)),
    "pairs": lambda rng, split, count: _first_questions([pair_picture(rng, _STYLES) for _ in range(count)]),
    "counting": lambda rng, split, count: _first_questions([count_picture(rng, _STYLES) for _ in range(count)]),
    "reading": lambda rng, split, count: _first_questions(
        [text_picture(rng, HELD_OUT_WORDS, made_up=0.0) for _ in range(count)]
    ),
    "shapes": lambda rng, split, count: _first_questions([shapes_picture(rng) for _ in range(count)]),
    "dialogue": lambda rng, split, count: [_dialogue(rng, _STYLES) for _ in range(count)],
    "naming_second_style": lambda rng, split, count: _naming(rng, count, tuple(art.SECOND_HELD_OUT_STYLE)),
    "small_text": lambda rng, split, count: _first_questions(
        [small_text_picture(rng, HELD_OUT_WORDS) for _ in range(count)]
    ),
    "no_picture": lambda rng, split, count: [Question(chats.without_picture(rng).turns) for _ in range(count)],
}


def questions_of(skill: str, split: str, count: int) -> list[Question]:
    """Returns the questions of one skill.

    Args:
        skill: a key of `COUNTS`.
        split: "validation" or "test".
        count: how many; easy-VQA's are at most those of the public set.

    Raises:
        KeyError: there is no such skill or split.
    """
    rng = np.random.default_rng([SEEDS[split], list(COUNTS).index(skill)])
    return _MAKERS[skill](rng, split, count)
