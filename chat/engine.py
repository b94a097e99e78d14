"""One model: loaded in the background, answering one chat at a time, token by token, until told to stop."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import chat
from chat.errors import ChatError
from chat.loading import BUGS, in_a_sentence, load
from chat.messages import to_messages
from chat.prompt import encode_chat
from chat.repo import Repo

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
    new_tokens: int
    first_token_seconds: float
    tokens_per_second: float | None  # after the first token; None before there is a second one


class _TokenQueue(BaseStreamer):
    """Hands each new token and the time it came to the thread that reads the queue."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[tuple[int, float] | None] = queue.SimpleQueue()
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self.queue.put((int(value), time.perf_counter()))
        self._prompt_seen = True  # generate() sends the prompt first

    def end(self) -> None:
        """The job's own end closes the queue, because it comes after errors too."""


class _StopWhenSet(StoppingCriteria):
    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), dtype=torch.bool, device=input_ids.device)


class Engine:
    """One model: its facts at once, its weights as soon as they are loaded, its answers one after the other.

    Args:
        repo: As from `find_repo`.

    Raises:
        OSError: Its config.json cannot be read.
    """

    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        self.config = AutoConfig.from_pretrained(repo.folder, trust_remote_code=True)
        self.sees = getattr(self.config, "vision_config", None) is not None
        self.context: int = self.config.get_text_config().max_position_embeddings
        self.defaults = _generation_defaults(repo)
        self.model: Any = None
        self.processor: Any = None
        self.facts = ""  # about the loaded model, for the status line
        self.progress = "loading"
        self.failure: str | None = None
        self.loaded = threading.Event()  # set when loading is over, well or not
        self._jobs = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")  # its errors come back with the job
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
        self.loaded.set()

    def _tell(self, progress: str) -> None:
        self.progress = progress

    async def stream(self, history: list[dict], system: str, sampling: Sampling) -> AsyncIterator[Answer]:
        """Answers a chat; closing or cancelling the iterator stops the model before its next token.

        Raises:
            ChatError: The question cannot be answered, or the model failed.
        """
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

    def _answer(self, *question: Any) -> Iterator[Answer | ChatError]:
        """What `_generate` yields; its error too, for of what a ZeroGPU worker raises only the class's name arrives."""
        try:
            yield from self._generate(*question)
        except ChatError as error:
            yield error

    def _generate(
        self, history: list[dict], system: str, sampling: Sampling, stop: threading.Event | None = None
    ) -> Iterator[Answer]:
        started = time.perf_counter()
        stop = stop or threading.Event()
        inputs = _result(self._jobs.submit(self._encode, history, system))
        prompt_tokens = inputs["input_ids"].shape[1]
        tokens = _TokenQueue()
        job = self._jobs.submit(
            self.model.generate,
            **inputs,
            **sampling.generate_kwargs(),
            max_new_tokens=min(sampling.max_new_tokens, self.context - prompt_tokens),
            streamer=tokens,
            stopping_criteria=StoppingCriteriaList([_StopWhenSet(stop)]),
        )
        job.add_done_callback(lambda _: tokens.queue.put(None))
        try:
            yield from self._collect(tokens.queue, started, prompt_tokens)
        finally:
            stop.set()
        _result(job)

    def _encode(self, history: list[dict], system: str) -> dict[str, torch.Tensor]:
        inputs = encode_chat(self.processor, to_messages(history, system))
        prompt_tokens = inputs["input_ids"].shape[1]
        if prompt_tokens >= self.context:
            raise ChatError(
                f"The chat has {prompt_tokens:,} tokens, and the model's context is {self.context:,}. "
                "Please shorten the message or start a new chat."
            )
        return {name: tensor.to(self.model.device) for name, tensor in inputs.items()}

    def _collect(self, tokens: queue.SimpleQueue, started: float, prompt_tokens: int) -> Iterator[Answer]:
        """Yields the answer at its first token, then at most UPDATES_PER_SECOND times a second, then whole."""
        ids: list[int] = []
        shown = 0
        first = last = started
        while (item := tokens.get()) is not None:
            token, last = item
            first = first if ids else last
            ids.append(token)
            if tokens.empty():
                updated = time.perf_counter()
                yield self._answer_so_far(ids, started, first, last, prompt_tokens)
                shown = len(ids)
                time.sleep(max(0.0, updated + 1 / UPDATES_PER_SECOND - time.perf_counter()))
        if ids and shown < len(ids):
            yield self._answer_so_far(ids, started, first, last, prompt_tokens)

    def _answer_so_far(self, ids: list[int], started: float, first: float, last: float, prompt_tokens: int) -> Answer:
        text = getattr(self.processor, "tokenizer", self.processor).decode(ids, skip_special_tokens=True)
        text = text.rstrip("\ufffd")  # a character of which bytes are still to come
        speed = (len(ids) - 1) / (last - first) if last > first else None
        return Answer(text, prompt_tokens, len(ids), first - started, speed)


def _result(job: Future) -> Any:
    """What the job returns; whatever went wrong in it becomes a ChatError, so that the user hears of it."""
    error = job.exception()
    if error is None:
        return job.result()
    if isinstance(error, ChatError):
        raise error
    log.error("answering failed", exc_info=error)
    raise ChatError(f"The model failed: {type(error).__name__}: {error}") from error


def gpu_seconds(history: list[dict], system: str, sampling: Sampling, *_: Any) -> int:
    """How long a ZeroGPU worker is asked for: the start, and a slow 15 tokens a second."""
    return 20 + sampling.max_new_tokens // 15


def _generation_defaults(repo: Repo) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(repo.folder)
    except OSError:  # the repo has no generation_config.json
        return GenerationConfig()
