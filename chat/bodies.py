"""What a request may send: how much, how fast, and of which shape; checked before anything else reads it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from chat.pictures import MAX_PICTURE_BYTES
from chat.question import CHARACTERS_A_TOKEN, PICTURE_ID
from chat.refusals import Refusal, refuse

PICTURE_PATHS = ("/pictures", "/gradio_api/upload")
AROUND = 64 * 2**10  # bytes for what is around a picture or a chat's texts
ALL_BODIES = 256 * 2**20  # bytes that all requests together may have in memory
PICTURE_SECONDS, JSON_SECONDS = 120, 20  # for a body to arrive
MAX_VALUES = 20_000  # of a JSON text: strings, numbers, lists and objects
MAX_LEVELS = 100  # of lists and objects in one another
DRAINED = 256 * 2**20  # bytes of a refused body that are read, so that its sender hears the answer
PAUSE_SECONDS = 2  # in which nothing more of it comes, where its sender waits for the answer
UPLOADED = re.compile(rf"({PICTURE_ID.pattern})/[^/\\]*")


class Bodies:
    """ASGI middleware that reads the bodies of POST requests, and hands on those that are within the limits.

    Args:
        app: What they are handed to.
        context: The model's, in tokens; longer texts than could ever fit are refused unread.
    """

    def __init__(self, app: Any, context: int) -> None:
        self._app = app
        self._text_limit = 4 * CHARACTERS_A_TOKEN * context + AROUND  # UTF-8 has four bytes a character at most
        self._held = 0

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        picture = scope["path"] in PICTURE_PATHS
        limit = MAX_PICTURE_BYTES + AROUND if picture else self._text_limit
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        size = int(length) if length.isdigit() else limit
        if size > limit:
            if b"expect" not in headers:  # else its sender waits to be told to send it
                await _drain(receive)
            await refuse(send, Refusal(413, _too_large(size, limit)))
            return
        if self._held + size > ALL_BODIES:
            await refuse(send, Refusal(503, "The server is busy with other uploads. Please try again in a moment."))
            return
        self._held += size
        try:
            body = await _read(receive, limit, PICTURE_SECONDS if picture else JSON_SECONDS)
            if not picture and body and scope["path"] != "/login":
                body = check_json(body)
        except Refusal as refusal:
            await refuse(send, refusal)
        else:
            replaced = (b"content-length", b"transfer-encoding")
            kept = [(name, value) for name, value in scope["headers"] if name not in replaced]
            kept.append((b"content-length", str(len(body)).encode()))
            await self._app({**scope, "headers": kept}, _replay(body, receive), send)
        finally:
            self._held -= size


def _too_large(size: int, limit: int) -> str:
    return f"This request has {size / 2**20:.1f} MB, and {limit / 2**20:.1f} MB is the most."


async def _read(receive: Any, limit: int, seconds: float) -> bytes:
    """A request's body.

    Raises:
        Refusal: It is too large, too slow, or its sender has gone.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "The request was not sent to its end.")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > limit:
                    break
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise Refusal(408, f"The request did not arrive within {seconds} seconds.") from None
    if message.get("more_body"):
        await _drain(receive)
    raise Refusal(413, _too_large(size, limit))


async def _drain(receive: Any) -> None:
    """Reads what a sender still sends, for some seconds, and keeps nothing of it."""
    size = 0
    try:
        async with asyncio.timeout(JSON_SECONDS):
            while size < DRAINED:
                message = await asyncio.wait_for(receive(), PAUSE_SECONDS)
                size += len(message.get("body", b""))
                if not message.get("more_body"):
                    return
    except TimeoutError:
        return


def _replay(body: bytes, receive: Any) -> Any:
    """Gives a body that was read already, then what comes after it."""
    sent = False

    async def replay() -> dict:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def check_json(body: bytes) -> bytes:
    """Checks a JSON text, and takes the files in it out of Gradio's hands, which would fetch addresses and open paths.

    A file as Gradio's clients write it, {"path": what the upload answered, ...}, becomes {"picture": its id}.

    Raises:
        Refusal: It is no JSON, has too many values or levels, or a file that was not uploaded.
    """
    try:
        whole = [json.loads(body)]
    except (ValueError, RecursionError):
        raise Refusal(400, "This request is not JSON.") from None
    waiting: list[tuple[Any, int]] = [(whole, 0)]
    values, files = 0, False
    while waiting:
        here, level = waiting.pop()
        if level > MAX_LEVELS:
            raise Refusal(400, f"This request has more than {MAX_LEVELS} levels of lists and objects.")
        items = list(here.items() if isinstance(here, dict) else enumerate(here))
        values += len(items)
        if values > MAX_VALUES:
            raise Refusal(413, f"This request has more than {MAX_VALUES:,} values.")
        for key, value in items:
            if isinstance(value, dict) and "path" in value:
                here[key] = {"picture": _uploaded(value["path"])}
                files = True
            elif isinstance(value, (dict, list)):
                waiting.append((value, level + 1))
    return json.dumps(whole[0]).encode() if files else body


def _uploaded(path: Any) -> str:
    match = UPLOADED.fullmatch(path) if isinstance(path, str) else None
    if match is None:
        raise Refusal(422, "A file of this request was not uploaded by a user. Upload it first.")
    return match[1]
