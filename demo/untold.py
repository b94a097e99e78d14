"""Questions that a picture raises and does not answer, whatever it shows."""

import numpy as np

from .render import pick

CANNOT_TELL = "I cannot tell."
_ABOUT = (  # {0}: it, he, the cat
    "How old is {0}?", "How heavy is {0}?", "How tall is {0}?", "How much does {0} weigh?", "How much does {0} cost?",
    "How fast is {0}?", "How fast can {0} go?", "How long does {0} live?", "What is the name of {0}?",
    "What does {0} eat?", "What does {0} like?", "What does {0} taste like?", "What does {0} smell like?",
    "What sound does {0} make?", "What is {0} doing?", "What is {0} thinking?", "What is {0} made of?",
    "What is {0} used for?", "What is {0} good for?", "Who made {0}?", "Who owns {0}?", "Who drew {0}?",
    "Where does {0} live?", "Where does {0} come from?", "Where is {0} going?", "When was {0} made?",
    "Why is {0} there?", "Why is {0} here?", "Is {0} happy?", "Is {0} sad?", "Is {0} angry?", "Is {0} hungry?",
    "Is {0} asleep?", "Is {0} dangerous?", "Is {0} heavy?", "Is {0} expensive?", "Is {0} old?", "Is {0} new?",
    "Is {0} warm?", "Is {0} soft?", "Is {0} tasty?", "Is {0} male or female?", "Is {0} a boy or a girl?",
    "Is {0} yours?", "Is {0} real?", "Is {0} broken?", "Is {0} moving?", "Can {0} fly?", "Can {0} swim?",
    "Can {0} bite?", "Can {0} talk?", "Do you like {0}?", "Does {0} have a name?", "Does {0} bite?",
    "Does {0} have a tail?", "Does {0} have teeth?", "How does {0} work?", "What brand is {0}?",
    "What breed is {0}?", "What species is {0}?", "Is {0} a pet?", "Is {0} fresh?", "Is {0} smiling?",
    "Which way is {0} looking?", "Which way does {0} face?", "What is inside of {0}?", "Can I buy {0}?",
    "Does {0} look nice?", "Is {0} pretty?", "Is {0} cute?", "Is {0} clean?", "Is {0} ripe?",
)  # fmt: skip
_PARTS = (
    "legs", "eyes", "ears", "wheels", "windows", "doors", "teeth", "wings", "arms", "feet", "fingers", "leaves",
    "seeds", "buttons", "sides", "corners", "stripes", "spots", "horns", "tails", "seats", "keys", "strings", "people",
    "points", "paws", "toes", "lights", "petals",
)  # fmt: skip
_PART_FORMS = (
    "How many {1} does {0} have?", "How many {1} has {0} got?", "How many {1} are on {0}?", "Does {0} have {1}?",
    "What color are the {1} of {0}?", "Count the {1} of {0}.", "How big are the {1} of {0}?",
)  # fmt: skip
_BARE_PARTS = ("How many {1}?", "And how many {1}?", "How many {1} can you count on it?", "What about the {1}?")
_ABOUT_PICTURE = (
    "Where was this taken?", "When was this taken?", "Where is this place?", "What time of day is it?",
    "What is the weather like?", "Is it day or night?", "Is it cold there?", "Is it warm there?",
    "Who drew this?", "Who made this picture?", "Who took this picture?", "How old is the picture?",
    "What year is it from?", "What season is it?", "What country is this?", "What city is that?",
    "Why did they draw it?", "What happens next?", "What happened here?", "What is the story here?",
    "What is this picture about?", "What is the title?", "How big is the picture?", "Is this a nice picture?",
    "Do you like the picture?", "What does it mean?", "What font is that?", "What is behind the camera?",
    "Are there people here?", "How many people live there?", "What is the mood?", "What is outside of the picture?",
    "Who is the artist?", "How much is the picture worth?", "What was there before?", "How far away is it?",
)  # fmt: skip


def untold(rng: np.random.Generator, subject: str) -> tuple[str, str]:
    """Returns such a question and its honest answer.

    Args:
        rng: source of chance.
        subject: what it may be about: "it", "the cat".
    """
    choice = rng.random()
    if choice < 0.5:
        question = pick(rng, _ABOUT).format(subject)
    elif choice < 0.75:
        question = pick(rng, _PART_FORMS).format(subject, pick(rng, _PARTS))
    elif choice < 0.82:
        question = pick(rng, _BARE_PARTS).format(subject, pick(rng, _PARTS))
    else:
        question = pick(rng, _ABOUT_PICTURE)
    return question, CANNOT_TELL
