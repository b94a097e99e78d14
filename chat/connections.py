"""Connections that keep the server waiting are closed."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect

LOOK_SECONDS = 10  # in which a request's first line and headers, or some of an answer, have to arrive
SEND_SECONDS = 60  # for a client to take a part of an answer that goes on
MOST = 512  # connections at once


def hurry(protocol: type) -> type:
    """A protocol of uvicorn's whose connections are closed where nothing goes on.

    That is where no request arrives, or takes too long to, and where a client takes nothing of its answer. A slow one
    that takes some of it between two looks is let.
    """

    class Hurried(protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._lost = False
            self._seen: tuple[Any, int] | None = (self.cycle, 0)
            self.loop.call_later(LOOK_SECONDS, self._look)

        def connection_lost(self, error: Exception | None) -> None:
            self._lost = True
            super().connection_lost(error)

        def _look(self) -> None:
            if self._lost:
                return
            waits = self.cycle is None or self.cycle.response_complete or self.transport.is_closing()
            unsent = self.transport.get_write_buffer_size()
            if waits and self._seen and self._seen[0] is self.cycle and unsent >= self._seen[1]:
                self.transport.abort()
                return
            self._seen = (self.cycle, unsent) if waits else None
            self.loop.call_later(LOOK_SECONDS, self._look)

    return Hurried


class Deadline:
    """ASGI middleware that gives up on a client that does not take its answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        gave_up = False

        async def send_soon(message: dict) -> None:
            nonlocal gave_up
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await send(message)
            except TimeoutError:
                gave_up = True
                raise

        try:
            await self._app(scope, receive, send_soon)
        except (TimeoutError, ExceptionGroup, ClientDisconnect):  # what Starlette's responses make of the first
            if not gave_up:
                raise
