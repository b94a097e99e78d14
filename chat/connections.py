"""Connections that keep the server waiting are closed."""

from __future__ import annotations

import asyncio
from typing import Any

HEAD_SECONDS = 10  # for a request's first line and headers to arrive
SEND_SECONDS = 60  # for a client to take what it is sent
MOST = 512  # connections at once


def hurry(protocol: type) -> type:
    """A protocol of uvicorn's whose connections are closed where no request arrives, or takes too long to."""

    class Hurried(protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._looked_at: Any = self.cycle
            self.loop.call_later(HEAD_SECONDS, self._look)

        def _look(self) -> None:
            """Closes it, if it has been without a request since the last look."""
            if self.transport.is_closing():
                return
            waits = self.cycle is None or self.cycle.response_complete
            if waits and self.cycle is self._looked_at:
                self.transport.abort()
                return
            self._looked_at = self.cycle if waits else self
            self.loop.call_later(HEAD_SECONDS, self._look)

    return Hurried


class Deadline:
    """ASGI middleware that gives up on a client that does not take its answer."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        async def send_soon(message: dict) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        await self._app(scope, receive, send_soon)
