"""The errors that a user meets: one line, exit code 2."""


class BadInput(Exception):
    """Something the user gave cannot be converted; the message names it, and says what to do next."""


class SourceLost(BadInput):
    """The source was there and cannot be read any more. Work done so far stays good."""


class NoSpace(Exception):
    """The disk is full. Work done so far stays good."""


def first_line(error: Exception) -> str:
    """Of the message of a library's error, or the name of its class where it says nothing."""
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


SHOWN = 5  # problems named before the rest is only counted


def shortened(problems: list[str]) -> str:
    """The first problems, and how many more there are."""
    more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return "; ".join(problems[:SHOWN]) + more
