"""Questions put to the engine, and to the handlers of the page, without a page."""

from __future__ import annotations

import asyncio

from chat.engine import Answer, Engine, Reading, Sampling
from chat.handlers import Chat
from tests.chat.helpers.histories import said

GREEDY = Sampling(max_new_tokens=12, temperature=1.0, top_p=1.0, top_k=0, greedy=True)
HISTORY = [said("user", "what is this?")]


def collect(engine: Engine, history: list[dict], sampling: Sampling = GREEDY) -> list[Answer | Reading]:
    async def run() -> list[Answer | Reading]:
        return [answer async for answer in engine.stream(history, "", sampling)]

    return asyncio.run(run())


def respond(chat: Chat, history: list[dict]) -> list[tuple]:
    async def run() -> list[tuple]:
        return [step async for step in chat.respond(history, "", 12, 1.0, 1.0, 0, True)]

    return asyncio.run(run())
