"""Questions as different people type them: the same question in other words, with small talk around it, or with a slip.

`reword(rng, question)` is for training alone: evaluation asks in the forms of `questions`, and by hand. `remarks.txt`
has what people say besides, before and after; every line of it was written by hand.
"""

import re
from collections.abc import Callable

import numpy as np

from .phrasebook import read
from .render import pick

_BEFORE = (
    "hey, ", "ok, ", "okay, ", "so ", "so, ", "and ", "now ", "well, ", "hm, ", "hi, ", "please, ", "great, ", "cool, ",
    "nice, ", "alright, ", "but ", "also, ", "oh, ", "wow, ", "sorry, ", "I see. ", "got it. ", "good. ", "right, ",
    "one more question: ", "quick question: ", "next question: ", "then ", "thanks, ", "thank you. ", "interesting. ",
    "my kid asks: ", "hello, ", "hey there, ", "hmm ", "let me see, ", "listen, ", "tell me, ", "tell me: ",
    "just curious, ", "for real, ", "and now, ", "look, ", "say, ", "um, ", "yes, but ", "no, I mean, ", "ah, ",
)  # fmt: skip
_AFTER = (
    " please", ", please", " then", " now", " exactly", ", do you know", ", can you tell", ", any idea", " again",
    ", thanks", ", thank you", " by the way", ", my friend", ", if you can see it", " do you think", " right now",
    ", in your opinion", ", just roughly", " actually", " really",
)  # fmt: skip
_ASKING = (  # before a question that is part of another one
    "can you tell me {}?", "could you tell me {}?", "do you know {}?", "tell me {}.", "please tell me {}.",
    "I want to know {}.", "I'd like to know {}.", "I wonder {}.", "any idea {}?", "can you say {}?", "say {}.",
    "could you please say {}?", "would you tell me {}?", "I would like to know {}.", "do you see {}?",
    "can you see {}?", "I need to know {}.", "have you any idea {}?", "let me know {}.", "can you please tell me {}?",
)  # fmt: skip
_WORDS = {  # what people say for each other, one way
    "do you see": ("can you see", "do you spot", "can you spot", "can you make out", "do you notice", "do we see",
                   "can I see", "can one see", "do you find", "can you find", "you see"),
    "can you see": ("do you see", "can you spot", "can you make out", "can you find", "do you notice"),
    "are there": ("are in there", "are there here", "are we looking at", "are shown", "are visible", "do you see",
                  "can you spot", "can you find", "are around"),
    "is there": ("is there perhaps", "is there maybe", "is there possibly", "is there also", "would there be"),
    "picture": ("image", "photo", "pic", "drawing", "picture here", "scene"),
    "image": ("picture", "photo", "pic", "drawing"),
    "pictures": ("images", "photos", "pics", "drawings"),
    "What color": ("Which color", "What colour", "Which colour"),
    "what color": ("which color", "what colour"),
    "Which color": ("What color", "What colour"),
    "What kind of": ("What sort of", "Which kind of", "What type of"),
    "Where is": ("Where's", "Whereabouts is", "Where exactly is", "In which place is", "Where can I find"),
    "What is": ("What's", "Whats"),
    "It is": ("It's", "Its"),
    "How many": ("How many", "What number of", "how much"),
    "in total": ("all together", "altogether", "in all", "overall", "all in all", "combined"),
    "together": ("in total", "altogether", "in all", "combined"),
    "on the left": ("on the left side", "to the left", "at the left", "on the left hand side"),
    "on the right": ("on the right side", "to the right", "at the right", "on the right hand side"),
    "written": ("printed", "spelled out", "written down"),
    "Count": ("Please count", "Can you count", "Could you count", "Count up", "Go ahead and count"),
    "Name": ("Please name", "Can you name", "Could you name", "Give me"),
    "Describe": ("Please describe", "Can you describe", "Could you describe"),
    "shapes": ("forms", "figures", "shapes", "geometric shapes"),
    "animal": ("animal", "creature", "animal"),
    "background": ("backdrop", "background", "ground"),
    "does it say": ("is written", "is it saying", "do the letters say", "do you read"),
    "Are you sure": ("Are you certain", "You sure", "Really", "Is that correct"),
}  # fmt: skip
_BIT = r"(?:the [a-z' -]+?|it|this|that|they|these|those|there)"
_WH = r"(?:What|Which|Where|How many|How)"
_ORDERS: tuple[tuple[re.Pattern, Callable], ...] = (  # a direct question, and how it stands within another one
    (re.compile(rf"^({_WH}\b.*?) (is|are|was) ({_BIT})( (?:in|at|on|to|left|right|above|below|under|next)\b.*)?[?]$"),
     lambda m: f"{m[1].lower()} {m[3]} {m[2]}{m[4] or ''}"),
    (re.compile(rf"^({_WH}\b.*?) (?:do|does) (you|we|{_BIT}) (see|show|say|have|read)\b(.*)[?]$"),
     lambda m: f"{m[1].lower()} {m[2]} {m[3] if m[2] in ('you', 'we', 'they', 'these') else _third(m[3])}{m[4]}"),
    (re.compile(rf"^({_WH}\b.*?) (can) (you|we|I|one) (.*)[?]$"), lambda m: f"{m[1].lower()} {m[3]} {m[2]} {m[4]}"),
    (re.compile(r"^(Is|Are) (it|this|that|they|these|those|there)( .*)[?]$"),
     lambda m: f"if {m[2]} {m[1].lower()}{m[3]}"),
    (re.compile(r"^Do you see (.*)[?]$"), lambda m: f"if you see {m[1]}"),
    (re.compile(r"^(What|Which|Who) (is|are) (.*)[?]$"), lambda m: f"{m[1].lower()} {m[2]} {m[3]}"),
)  # fmt: skip


def _third(verb: str) -> str:
    return "has" if verb == "have" else verb + "s"


def _indirect(rng: np.random.Generator, question: str) -> str:
    """The question as part of another one: "What color is it?" - "Do you know what color it is?"."""
    for form, order in _ORDERS:
        if found := form.match(question):
            asking = pick(rng, _ASKING).format(order(found))
            return asking[0].upper() + asking[1:]
    return question


def _other_words(rng: np.random.Generator, question: str) -> str:
    known = [words for words in _WORDS if words in question]
    if not known:
        return question
    words = pick(rng, known)
    return question.replace(words, pick(rng, _WORDS[words]), 1)


def _slip(rng: np.random.Generator, question: str) -> str:
    """One letter of one longer word in small letters too many, too few, or in its neighbor's place."""
    places = [found.start() for found in re.finditer(r"(?<=[a-z])[a-z](?=[a-z]{2})", question)]
    if not places:
        return question
    at = places[int(rng.integers(len(places)))]
    choice = rng.random()
    if choice < 0.4:
        return question[:at] + question[at + 1 :]
    if choice < 0.7:
        return question[:at] + question[at + 1] + question[at] + question[at + 2 :]
    return question[:at] + question[at] + question[at:]


def _lower_first(question: str) -> str:
    return question if question.startswith(("I ", "I'")) else question[0].lower() + question[1:]


def reword(rng: np.random.Generator, question: str) -> str:
    """Returns a question as somebody else might type it; what it asks stays, as does what is in capitals."""
    question = _reworded(rng, question)
    choice = rng.random()
    if choice < 0.12:
        before = pick(rng, read("remarks.txt")["before"])
        return f"{before} {_lower_first(question) if rng.random() < 0.5 else question}"
    return f"{question} {pick(rng, read('remarks.txt')['after'])}" if choice < 0.2 else question


def _reworded(rng: np.random.Generator, question: str) -> str:
    if rng.random() < 0.4 or len(question) < 4:
        return question
    if rng.random() < 0.4:
        question = _other_words(rng, question)
    if rng.random() < 0.25:
        question = _indirect(rng, question)
    mark = question[-1] if question[-1] in "?.!" else ""
    body = question[: len(question) - len(mark)]
    if rng.random() < 0.15:
        body += pick(rng, _AFTER)
    if rng.random() < 0.25:
        before = pick(rng, _BEFORE)
        body = before + _lower_first(body)
        if rng.random() < 0.5:
            body = body[0].upper() + body[1:]
    if rng.random() < 0.06:
        body = _slip(rng, body)
    if rng.random() < 0.3:
        body = _lower_first(body)
    if rng.random() < 0.12:
        body = body.replace("'", "").replace("What is", "Whats").replace("what is", "whats")
    choice = rng.random()
    if choice < 0.25:
        mark = ""
    elif choice < 0.3:
        mark = pick(rng, ("??", "?!", " ?", "!", "...", "."))
    return body + mark
