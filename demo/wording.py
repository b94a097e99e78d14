"""Nouns in sentences, and the short words that pictures spell."""

from pathlib import Path

from . import art

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


def is_or_are(n: int) -> str:
    """Returns the verb for so many."""
    return "is" if n == 1 else "are"


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


def there_are(count: int, noun: str) -> str:
    return f"There {'is' if count == 1 else 'are'} {counted(count, noun)}."


def sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


WORDS = (Path(__file__).parent / "words.txt").read_text().split()  # short ones, in capitals
HELD_OUT_WORDS = WORDS[::8]  # drawn for evaluation only
LONG_WORDS = (Path(__file__).parent / "long_words.txt").read_text().split()  # six or seven letters, for training
TRAIN_WORDS = [w for w in WORDS if w not in set(HELD_OUT_WORDS)]
