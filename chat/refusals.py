"""Requests that are answered with a sentence and no more."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response


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


def refused(refusal: Refusal) -> Response:
    """The sentence as {"error": ...}; "detail" has it too, where Gradio's clients look for it."""
    headers = {"connection": "close"} if refusal.status in (408, 413) else {}
    body = {"error": refusal.message, "detail": refusal.message}
    return JSONResponse(body, refusal.status, headers | refusal.headers)


async def refuse(send: Any, refusal: Refusal) -> None:
    """Answers an HTTP request with it, in an ASGI middleware."""
    await refused(refusal)({"type": "http"}, None, send)
