"""Requests that are answered with a sentence and no more."""

from __future__ import annotations

import json
from typing import Any


class Refusal(Exception):
    """Why a request is not answered.

    Attributes:
        status: HTTP's number for it.
        message: One sentence for the user.
        headers: What the answer says beside it.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers or {}


async def refuse(send: Any, refusal: Refusal) -> None:
    """Answers with the sentence as {"error": ...}; "detail" has it too, where Gradio's clients look for it."""
    body = json.dumps({"error": refusal.message, "detail": refusal.message}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    if refusal.status in (408, 413):
        headers["connection"] = "close"
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
