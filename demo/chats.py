"""Chats about pictures, and without any.

* `follow_up(rng, picture, turns)`: a chat about one picture.
* `two_pictures(rng, styles)`: a chat with two.
* `without_picture(rng)`: a chat without any.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from . import art, render
from .pictures import Picture, sample_picture, thing_picture
from .questions import NAMING_OPEN, READ_NUMBER, READ_WORD
from .render import pick
from .wording import COUNTABLE, a, plural, the


@dataclass
class Chat:
    """Turns that follow each other: (pictures shown in this turn, question, answer). The system prompt may be empty."""

    turns: list[tuple[list[Image.Image], str, str]] = field(default_factory=list)
    system: str = ""


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
    return about_two(rng, names, one, two, lambda: sample_picture(rng, styles))


def about_two(
    rng: np.random.Generator, names: tuple[str, str], one: Picture, two: Picture, another: Callable[[], Picture]
) -> Chat:
    """A chat about two pictures of one thing each, or the first of them and another one.

    Args:
        rng: source of chance.
        names: what the two show.
        one, two: the two.
        another: gives any picture.
    """
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
    second = another() if rng.random() < 0.4 else two
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
TALK = [
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
        "I was trained from scratch, with drawn pictures.",
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
            forms, answer = pick(rng, TALK)
            question = pick(rng, forms)
        else:
            question, answer = pick(rng, _UNKNOWABLE), UNKNOWN
        chat.turns.append(([], casual(rng, question), answer))
    return chat


def small_talk(rng: np.random.Generator) -> tuple[str, str]:
    """What is said before a picture is shown, and the answer."""
    forms, answer = pick(rng, [*TALK[:4], TALK[0], TALK[7]])
    return pick(rng, forms), answer


def aside(rng: np.random.Generator) -> tuple[str, str]:
    """A question that has nothing to do with the picture at hand, and its answer."""
    if rng.random() < 0.6:
        forms, answer = pick(rng, TALK[1:6])
        return pick(rng, forms), answer
    return pick(rng, _UNKNOWABLE), UNKNOWN
