"""Who waits in Gradio's queue: no more of one client than its share, and nobody who does not listen."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs

import gradio as gr

from chat.refusals import Refusal, refuse

QUEUE_LIMIT = 16  # questions waiting
CLIENT_LIMIT = 8  # questions of one address, waiting or being answered
LISTEN_SECONDS = 10  # until a question that nobody listens to leaves
JOIN = re.compile(r"/gradio_api/(queue/join|call/chat/?)")
LISTEN = re.compile(r"/gradio_api/(queue/data|call/\w+/(?P<event>\w+))")


class Waiting:
    """ASGI middleware that looks after the queue of a Gradio app."""

    def __init__(self, app: Any, blocks: gr.Blocks) -> None:
        self._app = app
        self._queue = blocks._queue
        self._listeners: Counter[str] = Counter()  # by the session or the event that they listen to
        self._last_heard: dict[str, float] = {}
        self._watch: asyncio.Task | None = None

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "POST" and JOIN.fullmatch(scope["path"]):
            await self._join(scope, receive, send)
        elif match := LISTEN.fullmatch(scope["path"]):
            asked = parse_qs(scope.get("query_string", b"").decode("latin-1"))
            await self._listen(match["event"] or asked.get("session_hash", [""])[0], scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _join(self, scope: dict, receive: Any, send: Any) -> None:
        if self._watch is None:
            self._watch = asyncio.create_task(self._watch_forever())
        address = scope["client"] and scope["client"][0]
        theirs = sum(event.request.client and event.request.client.host == address for event in self._events())
        if theirs >= CLIENT_LIMIT:
            sentence = f"{theirs} questions of yours are waiting already. Please try again when one has been answered."
            await refuse(send, Refusal(429, sentence))
        elif len(self._queue) >= QUEUE_LIMIT:
            sentence = f"The queue is full, with {QUEUE_LIMIT} waiting. Please try again in a moment."
            await refuse(send, Refusal(503, sentence))
        else:
            await self._app(scope, receive, send)

    async def _listen(self, key: str, scope: dict, receive: Any, send: Any) -> None:
        self._listeners[key] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._listeners[key] -= 1
            if not self._listeners[key]:
                del self._listeners[key]
                self._last_heard[key] = time.monotonic()

    def _events(self) -> Iterator[Any]:
        """All questions, waiting or being answered."""
        for queue in self._queue.event_queue_per_concurrency_id.values():
            yield from queue.queue
        for job in self._queue.active_jobs:
            yield from job or ()

    async def _watch_forever(self) -> None:
        while True:
            await asyncio.sleep(1)
            now = time.monotonic()
            for key in [key for key, heard in self._last_heard.items() if heard < now - LISTEN_SECONDS]:
                del self._last_heard[key]
            for event in list(self._events()):
                keys = (event.session_hash, event._id)
                heard = max(event.enqueue_time, *(self._last_heard.get(key, 0.0) for key in keys))
                if not any(key in self._listeners for key in keys) and heard < now - LISTEN_SECONDS:
                    await self._queue.clean_events(event_id=event._id)
