"""What the page shows -> what the model reads.

A message of the page is gradio's: {"role": ..., "content": [{"type": "text", "text": ...} or {"type": "file", "file":
{"path": ...}}]}; notices are the app's own and never reach the model.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path

from gradio.utils import get_upload_folder

from chat.errors import ChatError
from chat.pictures import MAX_PICTURES, open_picture

EMPTY = "The message is empty. Please type a question."
REMOVED = "[picture no longer available: uploads are kept for a day]"


def to_messages(history: list[dict], system: str) -> list[dict]:
    """Turns what the page shows into what the model reads.

    Args:
        history: The chatbot's messages, ending with the user's question.
        system: The system prompt; blank for none.

    Returns:
        Messages as chat templates take them, user and assistant alternating, pictures opened. A question that was
        answered by a notice never reached the model: both are left out. Questions with no answer between are joined.

    Raises:
        ChatError: The question is empty, or a picture cannot be used, or there are too many.
    """
    turns = _turns(history)
    if not turns or turns[-1]["role"] != "user":
        raise ChatError(EMPTY)
    _open_pictures(turns)
    if system.strip():
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return turns


def _turns(history: list[dict]) -> list[dict]:
    """User and assistant alternating, pictures as paths."""
    turns: list[dict] = []
    for message in history:
        if is_notice(message):
            while turns and turns[-1]["role"] == "user":
                turns.pop()
            continue
        for item in message["content"]:
            if (part := _to_part(item)) is None:
                continue
            if not turns or turns[-1]["role"] != message["role"]:
                turns.append({"role": message["role"], "content": [part]})
            elif part["type"] == turns[-1]["content"][-1]["type"] == "text":
                turns[-1]["content"][-1]["text"] += "\n\n" + part["text"]
            else:
                turns[-1]["content"].append(part)
    return turns


def _to_part(item: dict) -> dict | None:
    if item["type"] == "file":
        path = item["file"]["path"]
        return {"type": "image", "image": path} if is_upload(path) else {"type": "text", "text": REMOVED}
    if item["type"] == "text" and item["text"].strip():
        return {"type": "text", "text": item["text"]}
    return None


def _open_pictures(turns: list[dict]) -> None:
    """Replaces the pictures' paths by the pictures, after counting them."""
    if sum(part["type"] == "image" for part in turns[-1]["content"]) > MAX_PICTURES:
        raise ChatError(f"Please send at most {MAX_PICTURES} pictures.")
    pictures = [part for turn in turns for part in turn["content"] if part["type"] == "image"]
    if len(pictures) > MAX_PICTURES:
        raise ChatError(
            f"This chat has {len(pictures)} pictures, and {MAX_PICTURES} is the most. Please start a new chat."
        )
    for part in pictures:
        part["image"] = open_picture(part["image"])


def said(role: str, text: str) -> dict:
    """A message of text; not the bare string, of which gradio strips the indentation."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def notice(text: object) -> dict:
    """An assistant message by the app itself; the model never reads it."""
    return {**said("assistant", f"⚠️ {text}"), "metadata": {"id": "notice"}}


def is_notice(message: dict) -> bool:
    return (message.get("metadata") or {}).get("id") == "notice"


def is_upload(path: str) -> bool:
    """Whether a file is one of the uploaded ones and still there."""
    resolved = Path(path).resolve()
    return resolved.is_relative_to(Path(get_upload_folder()).resolve()) and resolved.is_file()


def cleaned(history: list[dict]) -> list[dict]:
    """The chat with only texts and pictures in it; a picture that is gone becomes a text that says so."""

    def clean(item: dict) -> dict:
        gone = item["type"] == "file" and not is_upload(item["file"]["path"])
        return {"type": "text", "text": REMOVED} if gone else item

    return [
        {**message, "content": [clean(item) for item in message["content"] if item["type"] in ("text", "file")]}
        for message in history
    ]


def question(text: str, files: list[str]) -> list[dict]:
    """The user's messages: one of pictures, one of text, because gradio edits a text only in a message of its own."""
    pictures = [{"role": "user", "content": [{"path": path} for path in files]}] if files else []
    return [*pictures, said("user", text)] if text else pictures


def open_chat(saved: str) -> tuple:
    """A saved chat and its id; an empty string opens a new one."""
    chat = json.loads(saved) if saved else {"id": uuid.uuid4().hex, "messages": "[]"}
    return cleaned(json.loads(chat["messages"])), chat["id"]
