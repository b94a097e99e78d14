"""What the page's endpoint and the API endpoint `/chat` do, for one engine.

A chat of the page comes with each question; the calls of one API client are one chat, which is kept for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import gradio as gr

from chat.engine import Answer, Engine, Reading
from chat.errors import ChatError, MissingPictures
from chat.question import PICTURE_ID, Question, Sampling, checked, read_question, read_sampling

REMOVED = "[picture no longer available: uploads are kept for a day]"


class Answers:
    """The two endpoints."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def page_answer(self, asked: Any, request: gr.Request) -> AsyncIterator[dict]:
        """Answers a question of the page, as `read_question` takes it, in events.

        Yields:
            {"type": "reading", "text", "done", "total"}, {"type": "answer", "text"}, and at the end one of {"type":
            "done", "text", ...}, {"type": "missing", "pictures"} and {"type": "error", "message"}.
        """
        engine, sessions = self.engine, gr.context.LocalContext.blocks.get().state_holder.session_data
        sessions.pop(request.session_hash, None)  # with the last input, which here is a whole chat
        try:
            question = read_question(asked, engine.context)
            while not engine.loaded.is_set():
                yield {"type": "reading", "text": f"not ready yet: {engine.progress}", "done": 0, "total": 0}
                await asyncio.sleep(0.5)
            async with aclosing(engine.stream(question)) as answers:
                async for answer in answers:
                    yield self._event(answer)
        except MissingPictures as error:
            yield {"type": "missing", "pictures": error.ids}
        except ChatError as error:
            yield {"type": "error", "message": str(error)}
        finally:
            sessions.pop(request.session_hash, None)  # begun anew meanwhile; else it took an API client's place

    def _event(self, answer: Answer | Reading) -> dict:
        if isinstance(answer, Reading):
            return {"type": "reading", "text": answer.progress, "done": answer.done, "total": answer.total}
        if answer.finish is None:
            return {"type": "answer", "text": answer.text}
        return {"type": "done", **vars(answer), "memory_bytes": self.engine.reader.memory.bytes}

    async def chat(
        self,
        message: Any,
        history: list[dict],
        system_prompt: str,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        greedy: bool,
    ) -> AsyncIterator[tuple]:
        """Answers a message of text and pictures, streaming the answer so far. The calls of one client are one chat."""
        try:
            history = [*map(self._still_there, history), _api_message(message)]
            sampling = read_sampling(vars(Sampling(max_new_tokens, temperature, top_p, top_k, greedy)))
            question = checked(Question(history, system_prompt or "", sampling), self.engine.context)
            shown = None
            async with aclosing(self.engine.stream(question)) as answers:
                async for answer in answers:
                    if isinstance(answer, Answer) and answer.text != shown:
                        shown = answer.text
                        said = {"role": "assistant", "content": [{"type": "text", "text": shown}]}
                        yield shown, [*history, said]
        except ChatError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def _still_there(self, message: dict) -> dict:
        """A message of an earlier call; of a picture that is gone it says so."""

        def part_of(part: dict) -> dict:
            gone = part["type"] == "picture" and not self.engine.uploads.has(part["id"])
            return {"type": "text", "text": REMOVED} if gone else part

        return {**message, "content": list(map(part_of, message["content"]))}


def _api_message(message: Any) -> dict:
    """A message as the API has it, {"text", "files"}, its files as `chat.bodies` leaves them."""
    message = {"text": message} if isinstance(message, str) else message
    text, files = (message.get("text") or "", message.get("files") or []) if isinstance(message, dict) else (None, None)
    if not isinstance(text, str) or not isinstance(files, list):
        raise ChatError('A message is {"text": ..., "files": [...]}.')
    ids = [file.get("picture") if isinstance(file, dict) else None for file in files]
    if not all(isinstance(number, str) and PICTURE_ID.fullmatch(number) for number in ids):
        raise ChatError("A file of this message was not uploaded. In Python: handle_file(path).")
    pictures = [{"type": "picture", "id": number} for number in ids]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": text}]}
