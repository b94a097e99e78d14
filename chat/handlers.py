"""What the page and the API endpoint `/chat` do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import gradio as gr
from jinja2 import Environment

from chat.engine import Answer, Engine, Reading, Sampling
from chat.errors import ChatError
from chat.loading import short
from chat.messages import EMPTY, cleaned, notice, question, said

BUSY = {"interactive": False, "submit_btn": False, "stop_btn": True}  # the text box while an answer streams
IDLE = {"interactive": True, "submit_btn": True, "stop_btn": False}
STATUS = Environment(autoescape=True).from_string(Path(__file__).with_name("status.html").read_text(encoding="utf-8"))


class Chat:
    """What the page and the endpoint do, for one engine. A chat is not kept here, it comes with each question."""

    def __init__(self, engine: Engine, examples: list[dict]) -> None:
        self.engine = engine
        self.examples = examples

    def ask(self, message: dict, history: list[dict]) -> tuple:
        """Puts the typed message into the chat and empties the text box."""
        if not message["files"] and not message["text"].strip():
            return [*history, notice(EMPTY)], gr.skip()
        return [*history, *question(message["text"], message["files"])], gr.MultimodalTextbox(None, **BUSY)

    def ask_example(self, history: list[dict], event: gr.SelectData) -> tuple:
        """Puts one of the example questions into the chat."""
        example = self.examples[event.index]
        files = [file["path"] for file in example["files"]]
        return [*history, *question(example["text"], files)], gr.MultimodalTextbox(**BUSY)

    def retry(self, history: list[dict]) -> tuple:
        """Takes the last answer away."""
        while history and history[-1]["role"] == "assistant":
            history = history[:-1]
        return history, gr.MultimodalTextbox(**BUSY)

    def edit(self, history: list[dict], event: gr.EditData) -> tuple:
        """Goes back to the message that the page has just put a new text into."""
        return history[: event.index + 1], gr.MultimodalTextbox(**BUSY)

    async def respond(self, history: list[dict], system: str, *sampling: Any) -> AsyncIterator[tuple]:
        """Streams the answer to the last message into the chat, and the facts about it into the status line."""
        history = cleaned(history)
        if not history or history[-1]["role"] != "user":
            yield gr.skip(), gr.skip()
            return
        while not self.engine.loaded.is_set():
            yield [*history, notice(f"The model is not ready yet: {self.engine.progress} …")], status_html(self.engine)
            await asyncio.sleep(0.5)
        try:
            async with aclosing(self.engine.stream(history, system, Sampling(*sampling))) as answers:
                answer = None
                async for answer in answers:
                    if isinstance(answer, Reading):
                        yield gr.skip(), status_html(self.engine, reading=answer)
                    else:
                        yield [*history, said("assistant", answer.text)], status_html(self.engine, answer)
                if isinstance(answer, Answer):  # once more: the memory has grown
                    yield [*history, said("assistant", answer.text)], status_html(self.engine, answer)
        except ChatError as error:
            yield [*history, notice(error)], gr.skip()

    async def endpoint(
        self,
        message: dict,
        history: list[dict],
        system_prompt: str,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        greedy: bool,
    ) -> AsyncIterator[tuple]:
        """Answers a message of text and pictures, streaming the answer so far. The calls of one client are one chat."""
        files = [{"type": "file", "file": {"path": path}} for path in message["files"]]
        history = [*history, {"role": "user", "content": [*files, {"type": "text", "text": message["text"]}]}]
        while not self.engine.loaded.is_set():
            await asyncio.sleep(0.1)
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, greedy)
        try:
            async with aclosing(self.engine.stream(history, system_prompt, sampling)) as answers:
                async for answer in answers:
                    if isinstance(answer, Reading):
                        continue
                    yield answer.text, [*history, said("assistant", answer.text)]
        except ChatError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def load_status(self) -> tuple:
        return status_html(self.engine), gr.Timer(active=not self.engine.loaded.is_set())


def status_html(engine: Engine, answer: Answer | None = None, reading: Reading | None = None) -> str:
    """The lines above the chat: which model, where and how it runs, what is being read, what the last answer took.

    A screen reader reads them out when they change, but not with each token of an answer.
    """
    return STATUS.render(
        name=engine.repo.name,
        about=engine.repo.about,
        failure=engine.failure,
        progress="" if engine.loaded.is_set() else engine.progress.capitalize(),
        facts=f"{engine.facts} · {_memory_facts(engine)}",
        reading=reading and reading.progress.capitalize(),
        context=f"{engine.context:,} tokens" + ("" if engine.sees else " · reads text only, no pictures"),
        answer=answer and _answer_facts(engine, answer),
    )


def _memory_facts(engine: Engine) -> str:
    memory = engine.reader and engine.reader.memory
    if not memory or not memory.limit:
        return "remembers no chats"
    return f"remembers chats: {short(memory.bytes)}B of at most {short(memory.limit)}B"


def _answer_facts(engine: Engine, answer: Answer) -> str:
    speed = f"{answer.tokens_per_second:.1f} tokens/s" if answer.tokens_per_second else "one token"
    remembered = f", {answer.remembered_tokens:,} of them remembered" if answer.remembered_tokens else ""
    return (
        f"{answer.prompt_tokens:,} prompt tokens{remembered} · first token after {answer.first_token_seconds:.2f} s · "
        f"{speed} · context {answer.prompt_tokens + answer.new_tokens:,} of {engine.context:,}"
    )
