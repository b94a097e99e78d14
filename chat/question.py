"""What a client sends -> a question to the engine: whole, of the right types, within the limits.

A message is {"role": "user" or "assistant", "content": [{"type": "text", "text": ...} or {"type": "picture", "id":
SHA-256 of the file}]}.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from chat.errors import ChatError

EMPTY = "The message is empty. Please type a question."
MALFORMED = "This is no question in the form that the server knows. Please reload the page."
MAX_PICTURES = 8  # in one chat: each is some hundred tokens of context and a run of the vision tower
MAX_NEW_TOKENS = 8192
CHARACTERS_A_TOKEN = 8  # more than any language has: a chat with more characters is refused before it is tokenized
PICTURE_ID = re.compile(r"[0-9a-f]{64}")
RANGES = {"temperature": (0.05, 2), "top_p": (0.05, 1), "top_k": (0, 200)}


@dataclass(frozen=True)
class Sampling:
    """How to pick tokens; the fields mean what they mean for transformers' `generate`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    greedy: bool

    def generate_kwargs(self) -> dict[str, Any]:
        if self.greedy:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


@dataclass(frozen=True)
class Question:
    """A chat to be answered.

    Attributes:
        messages: User and assistant alternating, the user first; a user's ends it, or with `go_on` an assistant's.
        system: The system prompt; blank for none.
        sampling: How to pick tokens.
        go_on: Whether the last answer, which was cut off, is to go on.
        pan_and_scan: Whether long pictures are looked at in parts too.
    """

    messages: list[dict]
    system: str
    sampling: Sampling
    go_on: bool = False
    pan_and_scan: bool = False


def read_question(asked: Any, context: int) -> Question:
    """Reads a question as the page sends it, parsed from JSON.

    Args:
        asked: {"messages", "system", "continue", "sampling", "pan_and_scan"}.
        context: The model's, in tokens.

    Raises:
        ChatError: It is of another form, empty, or beyond a limit.
    """
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        raise ChatError(MALFORMED)
    system, go_on, pan_and_scan = (
        asked.get("system", ""),
        asked.get("continue", False),
        asked.get("pan_and_scan", False),
    )
    if not isinstance(system, str) or not isinstance(go_on, bool) or not isinstance(pan_and_scan, bool):
        raise ChatError(MALFORMED)
    messages = [_read_message(message) for message in asked["messages"]]
    return checked(Question(messages, system, read_sampling(asked.get("sampling")), go_on, pan_and_scan), context)


def _read_message(message: Any) -> dict:
    if not isinstance(message, dict) or message.get("role") not in ("user", "assistant"):
        raise ChatError(MALFORMED)
    content = message.get("content")
    if not isinstance(content, list):
        raise ChatError(MALFORMED)
    return {"role": message["role"], "content": [_read_part(part) for part in content]}


def _read_part(part: Any) -> dict:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind == "picture" and isinstance(part.get("id"), str) and PICTURE_ID.fullmatch(part["id"]):
        return {"type": "picture", "id": part["id"]}
    raise ChatError(MALFORMED)


def read_sampling(given: Any) -> Sampling:
    """Reads the settings.

    Raises:
        ChatError: One is missing, of another type, or out of its range.
    """
    if not isinstance(given, dict):
        raise ChatError(MALFORMED)
    values = {}
    for field in fields(Sampling):
        value = given.get(field.name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        whole = number and float(value).is_integer()
        if not {"bool": isinstance(value, bool), "int": whole, "float": number}[field.type]:
            raise ChatError(f"The setting {field.name} is missing, or of another kind than it should be.")
        values[field.name] = int(value) if field.type == "int" else value
    ranges = {"max_new_tokens": (1, MAX_NEW_TOKENS), **RANGES}
    for name, (low, high) in ranges.items():
        if not low <= values[name] <= high:
            raise ChatError(f"The setting {name} is {values[name]:g}, and has to be from {low:g} to {high:g}.")
    return Sampling(**values)


def checked(question: Question, context: int) -> Question:
    """Joins what belongs together, and checks the rest.

    Raises:
        ChatError: There is nothing to answer, the texts are too long, or there are too many pictures.
    """
    messages = _joined(question.messages)
    wanted = "assistant" if question.go_on else "user"
    if not messages or messages[0]["role"] != "user" or messages[-1]["role"] != wanted:
        raise ChatError(EMPTY)
    _check_length(messages, question.system, context)
    counts = [sum(part["type"] == "picture" for part in message["content"]) for message in messages]
    if counts[-1] > MAX_PICTURES:
        raise ChatError(f"Please send at most {MAX_PICTURES} pictures.")
    if sum(counts) > MAX_PICTURES:
        raise ChatError(
            f"This chat has {sum(counts)} pictures, and {MAX_PICTURES} is the most. Please start a new chat."
        )
    return Question(messages, question.system, question.sampling, question.go_on, question.pan_and_scan)


def _joined(messages: list[dict]) -> list[dict]:
    """The messages without blank parts; those of one role that follow each other become one."""
    joined: list[dict] = []
    for message in messages:
        for part in message["content"]:
            if part["type"] == "text" and not part["text"].strip():
                continue
            if not joined or joined[-1]["role"] != message["role"]:
                joined.append({"role": message["role"], "content": [part]})
            elif part["type"] == joined[-1]["content"][-1]["type"] == "text":
                text = joined[-1]["content"][-1]["text"] + "\n\n" + part["text"]
                joined[-1]["content"][-1] = {"type": "text", "text": text}
            else:
                joined[-1]["content"].append(part)
    return joined


def _check_length(messages: list[dict], system: str, context: int) -> None:
    texts = [part["text"] for message in messages for part in message["content"] if part["type"] == "text"]
    characters, most = len(system) + sum(map(len, texts)), context * CHARACTERS_A_TOKEN
    if characters > most:
        raise ChatError(
            f"The chat has {characters:,} characters, and {most:,} is the most for the model's context of {context:,} "
            "tokens. Please shorten the message or start a new chat."
        )
