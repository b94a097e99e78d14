"""Chats, as the page sends them."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image

from chat.question import Question, Sampling

GREEDY = Sampling(max_new_tokens=12, temperature=1.0, top_p=1.0, top_k=0, greedy=True)


def text(value: str) -> dict:
    """A part of a message."""
    return {"type": "text", "text": value}


def picture(number: str) -> dict:
    """A part of a message: an uploaded picture."""
    return {"type": "picture", "id": number}


def said(role: str, *items: str | dict) -> dict:
    """A message of texts and pictures."""
    return {"role": role, "content": [text(item) if isinstance(item, str) else item for item in items]}


HISTORY = [said("user", "what is this?")]


def question(messages: list[dict] = HISTORY, sampling: Sampling = GREEDY, **more: Any) -> Question:
    return Question(messages, more.pop("system", ""), sampling, **more)


def asked(messages: list[dict] = HISTORY, sampling: Sampling = GREEDY, **more: Any) -> dict:
    """A question as the page sends it."""
    return {"messages": messages, "system": "", "continue": False, "sampling": vars(sampling), **more}


def png(color: str | tuple = "red", size: tuple[int, int] = (50, 50), mode: str = "RGB") -> bytes:
    """A picture's file."""
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, "PNG")
    return file.getvalue()
