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
from functools import partial
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig
from transformers.generation.streamers import BaseStreamer

import chat
from chat.errors import ChatError, without_folders
from chat.loading import BUGS, in_a_sentence, load
from chat.pixels import Pixels
from chat.prompt import can_pan_and_scan, encode_chat, pixels_of
from chat.question import Question
from chat.reader import Reader
from chat.repo import Repo
from chat.shares import Shares
from chat.uploads import Uploads
from chat.written import Written

AT_ONCE = 1 if chat.ON_ZERO_GPU else 4  # questions that share the model's time
EXPIRY_SECONDS = 600  # from one look for what was not used for a day to the next
UPDATES_PER_SECOND = 10  # of the page while an answer streams; one costs a core 2 to 4 ms

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """An answer so far.

    Attributes:
        text: Of an answer that goes on, what was added.
        prompt_tokens: Of an answer that goes on, its beginning is among them.
        remembered_tokens: Of the prompt's.
        picture_tokens: Of the prompt's.
        first_token_seconds: From the question's arrival at the engine, encoding included.
        tokens_per_second: After the first token; None before there is a second one.
        finish: "stop", "length" or "stopped" once it is whole: the model ended it, it reached a limit, or was stopped.
    """

    text: str
    prompt_tokens: int
    remembered_tokens: int
    new_tokens: int
    first_token_seconds: float
    tokens_per_second: float | None
    picture_tokens: int = 0
    finish: str | None = None


@dataclass(frozen=True)
class Reading:
    """What is being done before there is an answer: "reading 1,024 of 4,096 tokens"."""

    progress: str
    done: int = 0
    total: int = 0


@dataclass
class _Prompt:
    """What the model reads: the prompt, and of an answer that goes on its beginning."""

    inputs: dict[str, torch.Tensor]
    asked: list[int]
    begun: list[int]
    text: str  # of the beginning
    picture_tokens: int

    @property
    def tokens(self) -> int:
        return self.inputs["input_ids"].shape[1]


class _TokenQueue(BaseStreamer):
    """Hands what happens to the thread that reads the queue: each new token and the time it came, and progress."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[tuple[int, float] | Reading | None] = queue.SimpleQueue()
        self.remembered = 0
        self._prompt_seen = False

    def tell(self, progress: str, done: int, total: int) -> None:
        self.queue.put(Reading(progress, done, total))

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
        uploads: Where the pictures of its questions are; by default in the user's own folder for them.

    Raises:
        OSError: Its config.json cannot be read, or the pictures' folder not be made.
    """

    def __init__(self, repo: Repo, memory: int | None = None, uploads: Uploads | None = None) -> None:
        self.repo = repo
        self.uploads = uploads or Uploads()
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
        self._pixels = Pixels(0) if self._memory_limit == 0 else Pixels()
        self._written = Written(0) if self._memory_limit == 0 else Written()
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
            if self.reader.memory.limit:
                threading.Thread(target=_expire_forever, args=[weakref.ref(self)], daemon=True).start()
        self.loaded.set()

    def _tell(self, progress: str) -> None:
        self.progress = progress

    @property
    def picture_tokens(self) -> int | None:
        """How many tokens a picture takes; None for a model that reads text only."""
        return getattr(self.config, "mm_tokens_per_image", None) if self.sees else None

    @property
    def pans_and_scans(self) -> bool:
        return self.sees and can_pan_and_scan(self.processor)

    def expire(self) -> None:
        """Drops what was not used for a day."""
        self.reader.memory.expire()
        self._pixels.expire()
        self._written.expire()

    async def stream(self, question: Question) -> AsyncIterator[Answer | Reading]:
        """Answers a chat, and says before what is being read; closing or cancelling the iterator stops the model.

        Raises:
            ChatError: The question cannot be answered, or the model failed.
        """
        await asyncio.to_thread(self.loaded.wait)
        if self.failure is not None:
            raise ChatError(f"The model could not be loaded. {without_folders(self.failure)}")
        stop = threading.Event()
        # A ZeroGPU worker is a process of its own: an event does not reach it, it ends when the iterator is closed.
        answers = self.answer(question, *([] if chat.ON_ZERO_GPU else [stop]))
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

    def _generate(self, question: Question, stop: threading.Event | None = None) -> Iterator[Answer | Reading]:
        started = time.perf_counter()
        stop = stop or threading.Event()
        prompt = _result(self._jobs.submit(self._encode, question))
        tokens = _TokenQueue()
        job = self._jobs.submit(self._run, prompt, question, tokens, stop)
        job.add_done_callback(lambda _: tokens.queue.put(None))
        try:
            yield from self._collect(tokens, started, prompt, stop)
        finally:
            stop.set()
        _result(job)

    def _run(self, prompt: _Prompt, question: Question, tokens: _TokenQueue, stop: threading.Event) -> None:
        def is_over() -> bool:
            self._shares.pass_on()
            return stop.is_set()

        with self._shares.turn():
            self.reader.generate(
                **prompt.inputs,
                **question.sampling.generate_kwargs(),
                max_new_tokens=min(question.sampling.max_new_tokens, self.context - prompt.tokens),
                streamer=tokens,
                tell=tokens.tell,
                recalled=tokens.recalled,
                stop=is_over,
            )

    def _encode(self, question: Question) -> _Prompt:
        """The question as the model reads it.

        Raises:
            ChatError: It is longer than the context, or shows pictures to a model that reads text only.
            MissingPictures: The server does not have all of its pictures.
        """
        messages, text = _for_template(question)
        pictures = [part["image"] for turn in messages for part in turn["content"] if part["type"] == "image"]
        self.uploads.check(pictures)
        with self._tokenizing:  # a tokenizer is not for two threads
            inputs = encode_chat(self.processor, messages, partial(self._look, pan_and_scan=question.pan_and_scan))
        asked = inputs["input_ids"][0].tolist()
        begun = self._begun(asked, text) if question.go_on else []
        if begun:
            _append(inputs, begun)
        if inputs["input_ids"].shape[1] >= self.context:
            raise ChatError(
                f"The chat has {inputs['input_ids'].shape[1]:,} tokens, and the model's context is {self.context:,}. "
                "Please shorten the message or start a new chat."
            )
        soft = int(inputs["token_type_ids"].sum()) if "token_type_ids" in inputs else 0
        inputs = {name: tensor.to(self.model.device) for name, tensor in inputs.items()}
        return _Prompt(inputs, asked, begun, text, soft)

    def _look(self, number: str, pan_and_scan: bool) -> torch.Tensor:
        """A picture's pixels, decoded once while they are kept."""
        pixels = self._pixels.find(number, pan_and_scan)
        if pixels is None:
            pixels = pixels_of(self.processor, self.uploads.open(number), pan_and_scan and self.pans_and_scans)
            self._pixels.keep(number, pan_and_scan, pixels)
        return pixels

    def _begun(self, asked: list[int], text: str) -> list[int]:
        """The tokens of an answer's beginning: the very ones that were written, else those that its text has."""
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        begun = self._written.find(asked, text, self._text_of)
        with self._tokenizing:
            return begun or tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def _text_of(self, ids: list[int]) -> str:
        """Tokens as text, without the beginning of a character of which bytes are still to come."""
        with self._tokenizing:
            text = getattr(self.processor, "tokenizer", self.processor).decode(ids, skip_special_tokens=True)
        return text.rstrip("\ufffd")

    def _collect(
        self, tokens: _TokenQueue, started: float, prompt: _Prompt, stop: threading.Event
    ) -> Iterator[Answer | Reading]:
        """Yields progress, then the answer: at its first token, UPDATES_PER_SECOND times a second, and whole."""
        ids: list[int] = []
        first = last = started

        def so_far(finish: str | None = None) -> Answer:
            speed = (len(ids) - 1) / (last - first) if last > first else None
            text = self._text_of([*prompt.begun, *ids])
            text = text.removeprefix(prompt.text) if prompt.begun else text
            seconds, remembered = first - started, tokens.remembered
            return Answer(text, prompt.tokens, remembered, len(ids), seconds, speed, prompt.picture_tokens, finish)

        try:
            while (item := tokens.queue.get()) is not None:
                if isinstance(item, Reading):
                    yield item
                    continue
                token, last = item
                first = first if ids else last
                ids.append(token)
                if tokens.queue.empty():
                    updated = time.perf_counter()
                    yield so_far()
                    time.sleep(max(0.0, updated + 1 / UPDATES_PER_SECOND - time.perf_counter()))
            if ids:
                yield so_far(self._finish(ids[-1], stop))
        finally:
            if ids:
                self._written.keep(prompt.asked, [*prompt.begun, *ids])

    def _finish(self, last: int, stop: threading.Event) -> str:
        ends = self.model.generation_config.eos_token_id
        if last in (ends if isinstance(ends, list) else [ends]):
            return "stop"
        return "stopped" if stop.is_set() else "length"


def _for_template(question: Question) -> tuple[list[dict], str]:
    """A chat as templates take it, pictures as their ids; and of an answer that is to go on the text."""

    def part_of(part: dict) -> dict:
        return part if part["type"] == "text" else {"type": "image", "image": part["id"]}

    messages = [{"role": turn["role"], "content": list(map(part_of, turn["content"]))} for turn in question.messages]
    text = messages.pop()["content"][0]["text"] if question.go_on else ""
    if question.system.strip():
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": question.system}]})
    return messages, text


def _append(inputs: dict[str, torch.Tensor], ids: list[int]) -> None:
    """Puts tokens of text behind a prompt."""
    more = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    more["token_type_ids"] = torch.zeros_like(more["input_ids"])
    for name in more.keys() & inputs.keys():
        inputs[name] = torch.cat([inputs[name], more[name]], dim=1)


def _result(job: Future) -> Any:
    """What the job returns; whatever went wrong in it becomes a ChatError, so that the user hears of it."""
    error = job.exception()
    if error is None:
        return job.result()
    if isinstance(error, ChatError):
        raise error
    if isinstance(error, MemoryError):  # which says what would fit
        raise ChatError(without_folders(in_a_sentence(error))) from error
    log.error("answering failed", exc_info=error)
    raise ChatError(
        f"The model failed at this question ({type(error).__name__}). The server's log says more."
    ) from error


def _expire_forever(engine: weakref.ref[Engine]) -> None:
    while (living := engine()) is not None:
        living.expire()
        del living
        time.sleep(EXPIRY_SECONDS)


def gpu_seconds(question: Question, *_: Any) -> int:
    """How long a ZeroGPU worker is asked for: the start, and a slow 15 tokens a second."""
    return 20 + question.sampling.max_new_tokens // 15


def _generation_defaults(repo: Repo) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(repo.folder)
    except OSError:  # the repo has no generation_config.json
        return GenerationConfig()
