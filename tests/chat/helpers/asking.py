"""Questions put to the engine, and to the page's endpoint without a server."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from gradio.context import LocalContext

from chat.answers import Answers
from chat.engine import Answer, Engine, Reading
from chat.question import Question
from tests.chat.helpers.histories import question


def collect(engine: Engine, asked: Question | None = None) -> list[Answer | Reading]:
    async def run() -> list[Answer | Reading]:
        return [answer async for answer in engine.stream(asked or question())]

    return asyncio.run(run())


def events(engine: Engine, asked: Any) -> list[dict]:
    """What the page is sent for a question."""

    async def run() -> list[dict]:
        LocalContext.blocks.set(SimpleNamespace(state_holder=SimpleNamespace(session_data={})))
        request = SimpleNamespace(session_hash="a")
        return [event async for event in Answers(engine).page_answer(asked, request)]

    return asyncio.run(run())
