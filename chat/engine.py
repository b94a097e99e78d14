"""One model: loaded in the background, answering chats token by token, until told to stop."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer

import chat
from chat.errors import ChatError
from chat.loading import BUGS, in_a_sentence, load
from chat.memory import Memory
from chat.messages import to_messages
from chat.prompt import encode_chat
from chat.reader import Reader
from chat.repo import Repo
from chat.shares import Shares

AT_ONCE = 1 if chat.ON_ZERO_GPU else 4  # questions that share the model's time
EXPIRY_SECONDS = 600  # from one look for what was not used for a day to the next
UPDATES_PER_SECOND = 10  # of the page while an answer streams; one costs a core 2 to 4 ms

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sampling:
    """How to pick tokens; the fields mean what they mean for transformers' `generate`."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    greedy: bool

    def generate_kwargs(self) -> dict[str, Any]:
        if self.greedy:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


@dataclass(frozen=True)
class Answer:
    """An answer so far. `first_token_seconds` counts from the question's arrival at the engine, encoding included."""

    text: str
    prompt_tokens: int
    remembered_tokens: int  # of the prompt's
    new_tokens: int
    first_token_seconds: float
    tokens_per_second: float | None  # after the first token; None before there is a second one


@dataclass(frozen=True)
class Reading:
    """What is being done before there is an answer: "reading 1,024 of 4,096 tokens"."""

    progress: str


class _TokenQueue(BaseStreamer):
    """Hands what happens to the thread that reads the queue: each new token and the time it came, and progress."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[tuple[int, float] | Reading | None] = queue.SimpleQueue()
        self.remembered = 0
        self._prompt_seen = False

    def tell(self, progress: str) -> None:
        self.queue.put(Reading(progress))

    def recalled(self, tokens: int) -> None:
        self.remembered = tokens

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self.queue.put((int(value), time.perf_counter()))
        self._prompt_seen = True  # generate() sends the prompt first

    def end(self) -> None:
        """The job's own end closes the queue, because it comes after errors too."""


class Engine:
    """One model: its facts at once, its weights as soon as they are loaded, its answers a few at a time.

    Args:
        repo: As from `find_repo`.
        memory: Bytes that may be kept of chats; 0 keeps nothing, None a share of what is free once the model is loaded.

    Raises:
        OSError: Its config.json cannot be read.
    """

    def __init__(self, repo: Repo, memory: int | None = None) -> None:
        self.repo = repo
        self.config = AutoConfig.from_pretrained(repo.folder, trust_remote_code=True)
        self.sees = getattr(self.config, "vision_config", None) is not None
        self.context: int = self.config.get_text_config().max_position_embeddings
        self.defaults = _generation_defaults(repo)
        self.model: Any = None
        self.processor: Any = None
        self.reader: Reader | None = None
        self.facts = ""  # about the loaded model, for the status line
        self.progress = "loading"
        self.failure: str | None = None
        self.loaded = threading.Event()  # set when loading is over, well or not
        # Another process, as a ZeroGPU worker is, ends with the answer, and takes along what it could have kept.
        self._memory_limit = 0 if chat.ON_ZERO_GPU else memory
        self._jobs = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="model")  # its errors come back with the job
        self._shares = Shares()
        self._tokenizing = threading.Lock()
        self.answer = chat.spaces.GPU(duration=gpu_seconds)(self._answer) if chat.spaces else self._answer

    def start_loading(self) -> None:
        """Loads in the background, so that the page is up meanwhile. ZeroGPU wants the weights before the page."""
        if chat.ON_ZERO_GPU:
            self._load()
        else:
            self._jobs.submit(self._load)

    def _load(self) -> None:
        try:
            loaded = load(self.repo, self.config, self._tell)
        except Exception as error:
            self.failure = in_a_sentence(error).removeprefix(f"{self.repo.id}: ").removeprefix(f"{self.repo.folder}: ")
            bug = error if isinstance(error, BUGS) else None
            log.error("%s could not be loaded: %s", self.repo.id, self.failure, exc_info=bug)
        else:
            self.processor, self.model, self.facts = loaded.processor, loaded.model, loaded.facts
            self.reader = Reader(loaded.model, self._memory_limit)
            start = threading.Thread(target=_expire_forever, args=[weakref.ref(self.reader.memory)], daemon=True).start
            if self.reader.memory.limit:
                start()
        self.loaded.set()

    def _tell(self, progress: str) -> None:
        self.progress = progress

    async def stream(self, history: list[dict], system: str, sampling: Sampling) -> AsyncIterator[Answer | Reading]:
        """Answers a chat, and says before what is being read; closing or cancelling the iterator stops the model.

        Raises:
            ChatError: The question cannot be answered, or the model failed.
        """
        await asyncio.to_thread(self.loaded.wait)
        if self.failure is not None:
            raise ChatError(f"The model could not be loaded. {self.failure}")
        stop = threading.Event()
        # A ZeroGPU worker is a process of its own: an event does not reach it, it ends when the iterator is closed.
        answers = self.answer(history, system, sampling, *([] if chat.ON_ZERO_GPU else [stop]))
        try:
            while (answer := await asyncio.to_thread(next, answers, None)) is not None:
                if isinstance(answer, ChatError):
                    raise answer
                yield answer
        finally:
            stop.set()

    def _answer(self, *question: Any) -> Iterator[Answer | Reading | ChatError]:
        """What `_generate` yields; its error too, for of what a ZeroGPU worker raises only the class's name arrives."""
        try:
            yield from self._generate(*question)
        except ChatError as error:
            yield error

    def _generate(
        self, history: list[dict], system: str, sampling: Sampling, stop: threading.Event | None = None
    ) -> Iterator[Answer | Reading]:
        started = time.perf_counter()
        stop = stop or threading.Event()
        inputs = _result(self._jobs.submit(self._encode, history, system))
        tokens = _TokenQueue()
        job = self._jobs.submit(self._run, inputs, sampling, tokens, stop)
        job.add_done_callback(lambda _: tokens.queue.put(None))
        try:
            yield from self._collect(tokens, started, inputs["input_ids"].shape[1])
        finally:
            stop.set()
        _result(job)

    def _run(
        self, inputs: dict[str, torch.Tensor], sampling: Sampling, tokens: _TokenQueue, stop: threading.Event
    ) -> None:
        def is_over() -> bool:
            self._shares.pass_on()
            return stop.is_set()

        with self._shares.turn():
            self.reader.generate(
                **inputs,
                **sampling.generate_kwargs(),
                max_new_tokens=min(sampling.max_new_tokens, self.context - inputs["input_ids"].shape[1]),
                streamer=tokens,
                tell=tokens.tell,
                recalled=tokens.recalled,
                stop=is_over,
            )

    def _encode(self, history: list[dict], system: str) -> dict[str, torch.Tensor]:
        messages = to_messages(history, system)
        with self._tokenizing:  # a tokenizer is not for two threads
            inputs = encode_chat(self.processor, messages)
        prompt_tokens = inputs["input_ids"].shape[1]
        if prompt_tokens >= self.context:
            raise ChatError(
                f"The chat has {prompt_tokens:,} tokens, and the model's context is {self.context:,}. "
                "Please shorten the message or start a new chat."
            )
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}

    def _collect(self, tokens: _TokenQueue, started: float, prompt_tokens: int) -> Iterator[Answer | Reading]:
        """Yields progress, then the answer: at its first token, UPDATES_PER_SECOND times a second, and whole."""
        ids: list[int] = []
        shown = 0
        first = last = started
        while (item := tokens.queue.get()) is not None:
            if isinstance(item, Reading):
                yield item
                continue
            token, last = item
            first = first if ids else last
            ids.append(token)
            if tokens.queue.empty():
                updated = time.perf_counter()
                yield self._answer_so_far(ids, started, first, last, prompt_tokens, tokens.remembered)
                shown = len(ids)
                time.sleep(max(0.0, updated + 1 / UPDATES_PER_SECOND - time.perf_counter()))
        if ids and shown < len(ids):
            yield self._answer_so_far(ids, started, first, last, prompt_tokens, tokens.remembered)

    def _answer_so_far(
        self, ids: list[int], started: float, first: float, last: float, prompt_tokens: int, remembered: int
    ) -> Answer:
        with self._tokenizing:
            text = getattr(self.processor, "tokenizer", self.processor).decode(ids, skip_special_tokens=True)
        text = text.rstrip("\ufffd")  # a character of which bytes are still to come
        speed = (len(ids) - 1) / (last - first) if last > first else None
        return Answer(text, prompt_tokens, remembered, len(ids), first - started, speed)


def _result(job: Future) -> Any:
    """What the job returns; whatever went wrong in it becomes a ChatError, so that the user hears of it."""
    error = job.exception()
    if error is None:
        return job.result()
    if isinstance(error, ChatError):
        raise error
    log.error("answering failed", exc_info=error)
    raise ChatError(f"The model failed: {type(error).__name__}: {error}") from error


def _expire_forever(memory: weakref.ref[Memory]) -> None:
    while (kept := memory()) is not None:
        kept.expire()
        del kept
        time.sleep(EXPIRY_SECONDS)


def gpu_seconds(history: list[dict], system: str, sampling: Sampling, *_: Any) -> int:
    """How long a ZeroGPU worker is asked for: the start, and a slow 15 tokens a second."""
    return 20 + sampling.max_new_tokens // 15


def _generation_defaults(repo: Repo) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(repo.folder)
    except OSError:  # the repo has no generation_config.json
        return GenerationConfig()
