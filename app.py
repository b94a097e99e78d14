"""Chat with a Gemma 3 INT4 checkpoint in the browser; the same file is the Hugging Face Space.

    python app.py [--model FOLDER_OR_HUB_ID] [--host HOST] [--port PORT]

    Engine         loads one model in the background and answers one chat at a time, token by token, until told to stop
    encode_chat    messages -> model inputs; text never becomes a control token
    open_picture   an uploaded file -> an upright RGB picture, or a ChatError that says what is wrong with it
    build_page     the page around an engine, with the API endpoint `/chat`
    open_page      serves it on a local address

The browser holds the chats and sends the whole chat with each question. Between two questions the server keeps nothing
but the uploaded pictures, and those for a day.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

try:
    import spaces  # ZeroGPU's package; it has to come before torch
except ImportError:
    spaces = None

import argparse
import asyncio
import html
import json
import logging
import queue
import re
import struct
import threading
import time
import uuid
import warnings
import zlib
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.utils import get_upload_folder
from huggingface_hub import metadata_load, snapshot_download
from PIL import Image, ImageOps
from starlette.middleware import Middleware
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import set_tqdm_hook

HERE = Path(__file__).resolve().parent
MAX_PICTURES = 8  # in one chat: each is some hundred tokens of context and a run of the vision tower
MAX_PICTURE_BYTES = 20 * 2**20
MAX_PICTURE_PIXELS = 50_000_000  # 150 MB once decoded
MAX_UPLOAD = "64mb"  # the server refuses more; what is between the two limits gets a message in the chat
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # others of Pillow's start outside programs
UPLOADS_KEPT = 24 * 3600  # seconds
QUEUE_LIMIT = 16  # questions waiting
UPDATES_PER_SECOND = 10  # of the page while an answer streams; one costs a core 2 to 4 ms
CHATS_KEPT = 50  # in the browser's local storage, which holds about 5 MB
CHAT_SIZE = 1_000_000  # characters of a chat that is kept; more is longer than any context
ON_ZERO_GPU = spaces is not None and os.environ.get("SPACES_ZERO_GPU") == "true"
BUSY = {"interactive": False, "submit_btn": False, "stop_btn": True}  # the text box while an answer streams
IDLE = {"interactive": True, "submit_btn": True, "stop_btn": False}
EMPTY = "The message is empty. Type a question, or add a picture."
REMOVED = "[picture no longer available: uploads are kept for a day]"

log = logging.getLogger("app")


class ChatError(Exception):
    """A question that cannot be answered; its text is shown to the user."""


# -------------------------------------------------------------------------------------------- pictures


def open_picture(path: str | Path) -> Image.Image:
    """Reads an uploaded picture: upright as its EXIF orientation says, transparency on white, RGB.

    Raises:
        ChatError: Not a picture, damaged, or too large.
    """
    path = Path(path)
    megabytes = path.stat().st_size / 2**20
    if path.stat().st_size > MAX_PICTURE_BYTES:
        raise ChatError(
            f"{path.name} has {megabytes:.0f} MB. Please send at most {MAX_PICTURE_BYTES // 2**20} MB a picture."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size check below is stricter
            picture = Image.open(path, formats=PICTURE_FORMATS)
        if picture.width * picture.height > MAX_PICTURE_PIXELS:
            raise ChatError(
                f"{path.name} has {picture.width} × {picture.height} pixels. "
                f"Please send at most {MAX_PICTURE_PIXELS // 10**6} megapixels a picture."
            )
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I;16"):
            picture = picture.point(lambda value: value / 256, "L")  # Pillow would clip 16 bits at 255
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")
    except Image.DecompressionBombError:
        raise ChatError(f"{path.name} is far too large a picture. Please scale it down first.") from None
    except Image.UnidentifiedImageError:
        raise ChatError(f"{path.name} is not a picture I can read. PNG, JPEG, WebP, GIF, BMP and TIFF work.") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise ChatError(f"{path.name} is damaged or cut short ({error}). Please send the picture again.") from error


# ---------------------------------------------------------------------------------------------- prompt


def to_messages(history: list[dict], system: str) -> list[dict]:
    """Turns what the page shows into what the model reads.

    Args:
        history: The chatbot's messages, ending with the user's question.
        system: The system prompt; blank for none.

    Returns:
        Messages as chat templates take them, user and assistant alternating, pictures opened. A question that was
        answered by a notice never reached the model: both are left out. Questions with no answer between are joined.

    Raises:
        ChatError: The question is empty, or a picture cannot be used, or there are too many.
    """
    turns: list[dict] = []
    for message in history:
        if is_notice(message):
            while turns and turns[-1]["role"] == "user":
                turns.pop()
            continue
        for item in message["content"]:
            if (part := _to_part(item)) is None:
                continue
            if not turns or turns[-1]["role"] != message["role"]:
                turns.append({"role": message["role"], "content": [part]})
            elif part["type"] == turns[-1]["content"][-1]["type"] == "text":
                turns[-1]["content"][-1]["text"] += "\n\n" + part["text"]
            else:
                turns[-1]["content"].append(part)
    if not turns or turns[-1]["role"] != "user":
        raise ChatError(EMPTY)
    parts = [part for turn in turns for part in turn["content"]]
    pictures = [part for part in parts if part["type"] == "image"]
    if sum(part["type"] == "image" for part in turns[-1]["content"]) > MAX_PICTURES:
        raise ChatError(f"Please send at most {MAX_PICTURES} pictures.")
    if len(pictures) > MAX_PICTURES:
        raise ChatError(
            f"This chat has {len(pictures)} pictures, and {MAX_PICTURES} is the most. Please start a new chat."
        )
    for part in pictures:
        part["image"] = open_picture(part["image"])
    if system.strip():
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return turns


def _to_part(item: dict) -> dict | None:
    if item["type"] == "file":
        path = item["file"]["path"]
        return {"type": "image", "image": path} if is_upload(path) else {"type": "text", "text": REMOVED}
    if item["type"] == "text" and item["text"].strip():
        return {"type": "text", "text": item["text"]}
    return None


def encode_chat(processor: Any, messages: list[dict]) -> dict[str, torch.Tensor]:
    """Encodes a chat as `processor.apply_chat_template` does, except that text stays text.

    The template is rendered with a mark in the place of each text, and only what the template itself wrote is looked up
    among the special tokens. The texts are then put back and encoded as plain text: `<end_of_turn>` typed by a user is
    13 characters and ends nothing.

    Args:
        processor: A Gemma3Processor, or the tokenizer of a text-only model.
        messages: As from `to_messages`.

    Returns:
        input_ids and attention_mask int64 [1, tokens]; of a Gemma3Processor also token_type_ids int64 [1, tokens], 1
        where a row of image features goes; with pictures also pixel_values float32 [pictures, 3, side, side].

    Raises:
        ChatError: A picture for a model that has no eyes.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    texts: list[str] = []
    pictures: list[Image.Image] = []

    def mask(part: dict) -> dict:
        if part["type"] == "image":
            pictures.append(part["image"])
            return {"type": "image"}
        texts.append(part["text"].strip())
        return {"type": "text", "text": f"\ue000{len(texts) - 1}\ue001"}

    masked = [{"role": turn["role"], "content": [mask(part) for part in turn["content"]]} for turn in messages]
    rendered = processor.apply_chat_template(masked, tokenize=False, add_generation_prompt=True)
    inputs: dict[str, torch.Tensor] = {}
    if pictures:
        if processor is tokenizer:
            raise ChatError("This model reads text only. Please ask without a picture.")
        rendered = rendered.replace(tokenizer.boi_token, processor.full_image_sequence)
        inputs["pixel_values"] = processor.image_processor([pictures], return_tensors="pt")["pixel_values"]

    special = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids: list[int] = []
    for piece in re.split("(" + "|".join(map(re.escape, special)) + ")", rendered):
        if piece in special:
            ids.append(special[piece])
        elif piece:
            text = re.sub("\ue000(\\d+)\ue001", lambda match: texts[int(match[1])], piece)
            ids += tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if processor is not tokenizer:
        inputs["token_type_ids"] = (inputs["input_ids"] == tokenizer.image_token_id).long()
    return inputs


# ---------------------------------------------------------------------------------------------- engine


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
        model_id: A folder or a Hub repository that `from_pretrained` takes.

    Raises:
        OSError: There is no such model, or it cannot be reached.
    """

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id
        self.config = AutoConfig.from_pretrained(model_id, trust_remote_code=True)
        self.text_config = self.config.get_text_config()
        self.sees = getattr(self.config, "vision_config", None) is not None
        self.context: int = self.text_config.max_position_embeddings
        self.defaults = _generation_defaults(model_id)
        self.name = _model_name(model_id)
        self.about = _about(model_id)
        self.model: Any = None
        self.processor: Any = None
        self.facts = ""  # about the loaded model, for the status line
        self.progress = "loading"
        self.failure: str | None = None
        self.loaded = threading.Event()  # set when loading is over, well or not
        self._jobs = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")  # its errors come back with the job
        self.answer = spaces.GPU(duration=gpu_seconds)(self._answer) if spaces is not None else self._answer

    def start_loading(self) -> None:
        """Loads in the background, so that the page is up meanwhile. ZeroGPU wants the weights before the page."""
        if ON_ZERO_GPU:
            self._load()
            self.loaded.set()
        else:
            self._jobs.submit(self._load).add_done_callback(self._end_loading)

    def _load(self) -> None:
        report = _progress_reporter(self)
        set_tqdm_hook(lambda factory, args, kwargs: report(*args, **kwargs))
        folder = self.model_id
        if not Path(folder).is_dir():
            folder = snapshot_download(folder, ignore_patterns=["*.gguf", "*.bin"], tqdm_class=report)
        self.progress = "loading the processor"
        self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
        self.progress = "loading weights"
        auto = AutoModelForImageTextToText if self.sees else AutoModelForCausalLM
        device_map = "cuda" if torch.cuda.is_available() else None
        self.model = auto.from_pretrained(folder, trust_remote_code=True, device_map=device_map).eval()
        self.facts = _model_facts(self.model, _count_parameters(self.config, auto))

    def _end_loading(self, job: Future) -> None:
        set_tqdm_hook(None)
        if (error := job.exception()) is not None:
            self.failure = f"{type(error).__name__}: {error}"
            log.error("loading %s failed", self.model_id, exc_info=error)
        self.loaded.set()

    async def stream(self, history: list[dict], system: str, sampling: Sampling) -> AsyncIterator[Answer]:
        """Answers a chat; closing or cancelling the iterator stops the model before its next token.

        Raises:
            ChatError: The question cannot be answered, or the model failed.
        """
        if self.failure is not None:
            raise ChatError(f"The model could not be loaded. {self.failure}")
        stop = threading.Event()
        # A ZeroGPU worker is a process of its own: an event does not reach it, it ends when the iterator is closed.
        answers = self.answer(history, system, sampling, *([] if ON_ZERO_GPU else [stop]))
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


def _generation_defaults(model_id: str) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(model_id)
    except OSError:  # the repo has no generation_config.json
        return GenerationConfig()


def _model_name(model_id: str) -> str:
    """The Hub id; for a folder the first heading of its card, else the folder's name."""
    folder = Path(model_id)
    if not folder.is_dir():
        return model_id
    card = folder / "README.md"
    heading = re.search(r"^# (.+)$", card.read_text(encoding="utf-8"), re.MULTILINE) if card.is_file() else None
    return heading[1].strip() if heading else folder.resolve().name


def _about(model_id: str) -> str:
    """What a demonstration checkpoint can do: the first paragraph of its examples/README.md, headings aside."""
    page = Path(model_id) / "examples" / "README.md"
    if not page.is_file():
        return ""
    paragraphs = [block for block in page.read_text(encoding="utf-8").split("\n\n") if not block.startswith("#")]
    return " ".join(paragraphs[0].split()) if paragraphs else ""


def _count_parameters(config: Any, auto: type) -> int:
    """The architecture's number of parameters, tied ones once; an int4 weight counts as the one it stands for."""
    plain = type(config).from_dict({**config.to_dict(), "quantization_config": None})
    with torch.device("meta"):
        return auto.from_config(plain).num_parameters()


def _model_facts(model: Any, parameters: int) -> str:
    int4_bytes = getattr(model, "int4_bytes", None)
    if int4_bytes is None:
        memory = f"{_short(model.get_memory_footprint())}B in memory, none of it int4"
    else:
        memory = f"{_short(int4_bytes)}B of int4 weights in memory"
    backend = getattr(model, "int4_backend", "transformers")
    return f"{_short(parameters)} parameters · {memory} · device {model.device} · backend {backend}"


def _short(number: int) -> str:
    """1234567 -> '1.2 M'."""
    return f"{number / 1e9:.1f} G" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _progress_reporter(engine: Engine) -> type[tqdm]:
    """A progress bar class that writes to the engine as well as to the terminal."""

    class Report(tqdm):
        def display(self, *args: Any, **kwargs: Any) -> None:
            super().display(*args, **kwargs)
            share = f" {self.n / self.total:.0%}" if self.total else ""
            engine.progress = f"{self.desc.rstrip(': ').lower() or 'loading'}{share}"

    return Report


# ------------------------------------------------------------------------------------------------ chat


def said(role: str, text: str) -> dict:
    """A message of text; not the bare string, of which gradio strips the indentation."""
    return {"role": role, "content": [{"type": "text", "text": text}]}


def notice(text: object) -> dict:
    """An assistant message by the app itself; the model never reads it."""
    return {**said("assistant", f"⚠️ {text}"), "metadata": {"id": "notice"}}


def is_notice(message: dict) -> bool:
    return (message.get("metadata") or {}).get("id") == "notice"


def is_upload(path: str) -> bool:
    """Whether a file is one of the uploaded ones and still there."""
    resolved = Path(path).resolve()
    return resolved.is_relative_to(Path(get_upload_folder()).resolve()) and resolved.is_file()


def cleaned(history: list[dict]) -> list[dict]:
    """The chat with only texts and pictures in it; a picture that is gone becomes a text that says so."""

    def clean(item: dict) -> dict:
        gone = item["type"] == "file" and not is_upload(item["file"]["path"])
        return {"type": "text", "text": REMOVED} if gone else item

    return [
        {**message, "content": [clean(item) for item in message["content"] if item["type"] in ("text", "file")]}
        for message in history
    ]


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
                async for answer in answers:
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
        question = [{"type": "file", "file": {"path": path}} for path in message["files"]]
        question.append({"type": "text", "text": message["text"]})
        history = [*history, {"role": "user", "content": question}]
        while not self.engine.loaded.is_set():
            await asyncio.sleep(0.1)
        sampling = Sampling(max_new_tokens, temperature, top_p, top_k, greedy)
        try:
            async with aclosing(self.engine.stream(history, system_prompt, sampling)) as answers:
                async for answer in answers:
                    yield answer.text, [*history, said("assistant", answer.text)]
        except ChatError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def load_status(self) -> tuple:
        return status_html(self.engine), gr.Timer(active=not self.engine.loaded.is_set())


def question(text: str, files: list[str]) -> list[dict]:
    """The user's messages: one of pictures, one of text, because gradio edits a text only in a message of its own."""
    pictures = [{"role": "user", "content": [{"path": path} for path in files]}] if files else []
    return [*pictures, said("user", text)] if text else pictures


def open_chat(saved: str) -> tuple:
    """A saved chat and its id; an empty string opens a new one."""
    chat = json.loads(saved) if saved else {"id": uuid.uuid4().hex, "messages": "[]"}
    return cleaned(json.loads(chat["messages"])), chat["id"]


# ------------------------------------------------------------------------------------------------ page

CSS = """
#status, #chat, #message { width: 100%; max-width: 900px; margin-inline: auto; }
#status { line-height: 1.5; padding: 2px 6px 0; }
#status h1 { font-size: 1.2rem; font-weight: 650; margin: 0; }
#status p { margin: 0; font-size: 0.85rem; color: var(--body-text-color-subdued); }
#status .about { font-size: 0.92rem; color: var(--body-text-color); }
#status .failed { color: var(--error-text-color); }
#chat, #chat .bot.message { background: none; border-width: 0 !important; box-shadow: none; }
#chat .bubble-wrap { background: none; }
#chat .message-row { margin-top: 6px; }
#chat .example-image-container { width: 56px; height: 56px; }
.gradio-container { overflow: clip !important; }
@media (max-width: 640px) {  /* gradio puts these below its .contain */
  #chat .examples { grid-template-columns: 1fr 1fr; margin: 0; padding: 8px; gap: 8px; }
  #chat .example { padding: 8px; }
  #status .about { font-size: 0.85rem; line-height: 1.4; }
  .column:has(#chat .message-row) .about { display: none; }
  #chat { height: auto !important; }
  #chat:has(.message-row) { height: 200px !important; }
  .form:has(#message) { position: sticky; bottom: 0; z-index: 1; }
}
#chat .component-wrap .message { background: none; border: none; padding: 0; }
#chat .component-wrap img { max-height: 220px; width: auto; border-radius: var(--radius-lg); }
#chat .message-row:has(.component-wrap) + .message-buttons { display: none; }
@media (hover: hover) {
  #chat .message-buttons { opacity: 0; transition: opacity 0.15s; }
  #chat .message-row:hover + .message-buttons { opacity: 1; }
  #chat .message-buttons:is(:hover, :focus-within, :last-child) { opacity: 1; }
}
.sidebar:not(.open) .sidebar-content { visibility: hidden; transition: visibility 0.3s; }
#chat-list .table-wrap, #chat-list table { margin: 0; padding: 0; }
#chat-list td, #chat-list td div { margin: 0; padding: 4px 6px; text-align: left; }
"""

# The saved chats, the latest first. Other tabs save theirs too: a change is made to the list as it is stored then.
CHATS = (
    f"const CHATS_KEPT = {CHATS_KEPT}, CHAT_SIZE = {CHAT_SIZE};"
    + """
const STORE = "gemma3-int4-saved-chats";
const storedChats = () => JSON.parse(localStorage.getItem(STORE) ?? "[]");
let shownChats = [];

function listChats() {
  shownChats = storedChats();
  return {__type__: "update", samples: shownChats.map((chat) => [chat.title])};
}

function putChat(id, chat) {
  const chats = [chat ?? [], storedChats().filter((other) => other.id !== id)].flat().slice(0, CHATS_KEPT);
  let room = chats.length;
  do {
    try {
      localStorage.setItem(STORE, JSON.stringify(chats.slice(0, room)));
      break;
    } catch (full) {}  // then without the oldest
  } while (--room > 0);
  return listChats();
}

function saveChat(history, id) {
  const asked = history.filter((message) => message.role === "user").flatMap((message) => message.content);
  const text = asked.find((item) => item.text?.trim())?.text.trim().replace(/\\s+/g, " ");
  const title = text ?? (asked.some((item) => item.file) ? "A picture" : "");
  const chat = {id, title: title.length > 40 ? title.slice(0, 39) + "…" : title, messages: JSON.stringify(history)};
  return title && chat.messages.length <= CHAT_SIZE ? putChat(id, chat) : listChats();
}

function leaveChat(history, id, index) {
  document.querySelector("#chat [aria-label=Cancel]")?.click();  // a half-made edit
  const wanted = shownChats[index];
  const list = saveChat(history, id);
  const opened = shownChats.find((chat) => chat.id === wanted?.id) ?? wanted;  // another tab may have gone on with it
  return [opened ? JSON.stringify(opened) : "", list];
}

function forgetChat(history, id) {
  leaveChat([], id);
  return ["", putChat(id)];
}
"""
)

# A picture dropped beside the message box, which takes its own, would else replace the page.
DROP = """
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  const input = document.querySelector("#message input[type=file]");
  if (event.defaultPrevented || !input || !event.dataTransfer.files.length) return;
  event.preventDefault();
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change"));
});
"""

FOCUS = "() => { if (matchMedia('(pointer: fine)').matches) document.querySelector('#message textarea')?.focus() }"
IS_WIDE = "() => window.innerWidth >= 1200"


# What the browser may fetch, and from where: an answer with a picture's address in it shall not call that address.
POLICY = "; ".join(f"{kind}-src 'self' data: blob:" for kind in ("img", "media", "font", "connect", "frame"))


class StayHome:
    """ASGI middleware that sends POLICY with every response."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        async def send_with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"content-security-policy", POLICY.encode())]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def theme() -> gr.themes.Base:
    """Fonts of the system: the page fetches nothing from elsewhere."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    ).set(  # to 4.5:1 and better
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )


def status_html(engine: Engine, answer: Answer | None = None) -> str:
    """The lines above the chat: which model, where and how it runs, and what the last answer took."""
    lines = [f"<h1>{html.escape(engine.name)}</h1>"]
    if engine.about:
        lines.append(f"<p class='about'>{html.escape(engine.about)}</p>")
    if engine.failure is not None:
        lines.append(f"<p class='failed'>Could not be loaded: {html.escape(engine.failure)}</p>")
    elif not engine.loaded.is_set():
        lines.append(f"<p>{html.escape(engine.progress.capitalize())} …</p>")
    else:
        lines.append(f"<p>{html.escape(engine.facts)}</p>")
        lines.append(f"<p>{_answer_facts(engine, answer) if answer else f'Context: {engine.context:,} tokens'}</p>")
    role = "" if answer else " role='status'"  # a screen reader would read out each change
    return f"<div id='status'{role}>{''.join(lines)}</div>"


def _answer_facts(engine: Engine, answer: Answer) -> str:
    speed = f"{answer.tokens_per_second:.1f} tokens/s" if answer.tokens_per_second else "one token"
    return (
        f"Last answer: {answer.prompt_tokens:,} prompt tokens · first token after {answer.first_token_seconds:.2f} s · "
        f"{speed} · context {answer.prompt_tokens + answer.new_tokens:,} of {engine.context:,}"
    )


def find_examples(engine: Engine) -> list[dict]:
    """The model's own example questions, else those beside this file: [{"text": question, "files": [picture]}]."""
    for folder in (Path(engine.model_id) / "examples", HERE / "examples"):
        if engine.sees and (folder / "answers.json").is_file():
            listed = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
            return [{"text": each["question"], "files": [str(folder / each["picture"])]} for each in listed]
    return []


def build_page(engine: Engine) -> gr.Blocks:
    """Builds the page and the endpoint `/chat` around an engine."""
    with gr.Blocks(
        title=engine.name, fill_height=True, analytics_enabled=False, delete_cache=(3600, UPLOADS_KEPT)
    ) as page:
        # In the page, not in the session: when an answer ends, the chat and its id come from the same moment.
        chat_id, opened = gr.Textbox(visible=False), gr.Textbox("", visible=False)
        with gr.Sidebar(open=False, width=340) as sidebar:
            new_chat = gr.Button("New chat", variant="primary", elem_id="new-chat")
            chat_list = gr.Dataset(
                components=[gr.Textbox(visible=False)],
                samples=[],
                type="index",
                layout="table",
                label="Earlier chats, kept in this browser",
                elem_id="chat-list",
            )
            with gr.Accordion("Settings", open=True):
                settings = _settings(engine)
        status = gr.HTML(status_html(engine), padding=False)
        chatbot = gr.Chatbot(
            show_label=False,
            label="Chat",
            scale=1,
            buttons=["copy", "copy_all"],
            editable="user",
            group_consecutive_messages=False,  # a bubble with a picture and a text could not be edited
            examples=find_examples(engine),
            placeholder="### Try one of these, or drop a picture of your own" if engine.sees else "### Ask something",
            elem_id="chat",
        )
        message = gr.MultimodalTextbox(
            show_label=False,
            label="Your message",
            placeholder="Ask, with or without a picture" if engine.sees else "Type a question",
            sources=["upload"] if engine.sees else [],
            file_types=["image"],
            file_count="multiple",
            max_plain_text_length=1_000_000,  # a long text shall stay a text, not become a file
            elem_id="message",
        )

        # The chatbot has replaced the examples' files by copies in the upload folder, which cleaning shall spare.
        chatbot.keep_in_cache.update(file["path"] for example in chatbot.examples for file in example["files"])

        chat = Chat(engine, chatbot.examples)
        aside: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        in_turn: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}

        def refuse(history: list[dict]) -> Any:
            """Says in the chat that the queue was full, if that was it; a stop needs no words."""
            waiting = len(page._queue)
            busy = notice(f"The queue is full, with {waiting} waiting. Please try again in a moment.")
            return [*history, busy] if waiting >= page._queue.max_size else gr.skip()

        current = [chatbot, chat_id]
        save: dict[str, Any] = {"fn": None, "inputs": current, "outputs": chat_list, "js": "saveChat", **aside}
        runs = []
        for asked in (
            message.submit(chat.ask, [message, chatbot], [chatbot, message], **aside),
            chatbot.example_select(chat.ask_example, chatbot, [chatbot, message], **aside),
            chatbot.retry(chat.retry, chatbot, [chatbot, message], **aside),
            chatbot.edit(chat.edit, chatbot, [chatbot, message], **aside),
        ):
            run = asked.success(
                chat.respond,
                [chatbot, *settings],
                [chatbot, status],
                show_progress="minimal",
                show_progress_on=chatbot,
                api_visibility="private",
                **in_turn,
            )
            asked.success(**save)
            # A stop counts as both: this may come twice. A full queue counts as a failure only.
            for over in (run.then, run.failure(refuse, chatbot, chatbot, **aside).then):
                over(**save)
                over(lambda: gr.MultimodalTextbox(**IDLE), None, message, **aside).then(js=FOCUS, **aside)
            runs.append(run)
        message.stop(None, cancels=runs, api_visibility="private")

        timer = gr.Timer(0.5)
        is_wide = gr.Checkbox(visible=False)
        # First stop, then leave: else the answer's last update could bring the old chat back.
        for leave, inputs, js in (
            (new_chat.click, current, "(history, id) => leaveChat(history, id)"),
            (chat_list.click, [*current, chat_list], "(history, id, index) => leaveChat(history, id, index)"),
            (chatbot.clear, current, "(history, id) => forgetChat(history, id)"),
        ):
            left = leave(None, inputs, [opened, chat_list], js=js, cancels=runs, api_visibility="private")
            left.then(open_chat, opened, current, **aside).then(js=FOCUS, **aside)
            left.then(chat.load_status, None, [status, timer], **aside)
        page.load(open_chat, opened, current, **aside).then(js=FOCUS, **aside)
        page.load(None, None, chat_list, js="listChats", **aside)
        gr.on([page.load, timer.tick], chat.load_status, None, [status, timer], **aside)
        fit: dict[str, Any] = {"fn": lambda wide: gr.Sidebar(open=wide), "inputs": is_wide, "outputs": sidebar}
        gr.on([page.load, new_chat.click, chat_list.click], **fit, js=IS_WIDE, **aside)

        api_history, api_answer = gr.State([]), gr.Textbox(visible=False, label="answer")
        gr.Button(visible=False).click(
            chat.endpoint,
            [message, api_history, *settings],
            [api_answer, api_history],
            api_name="chat",
            api_description=Chat.endpoint.__doc__,
            **in_turn,
        )
    return page


def _settings(engine: Engine) -> list[gr.components.Component]:
    """The system prompt, then the fields of Sampling in their order, with the model's own defaults."""
    ours, most = engine.defaults, min(8192, engine.context)
    sliders = [
        ("Max new tokens", 1, most, min(512, most), 1, "An answer is cut off at this length."),
        ("Temperature", 0.05, 2, ours.temperature or 1.0, 0.05, "Lower is steadier, higher is freer."),
        ("Top-p", 0.05, 1, ours.top_p or 1.0, 0.01, "Picks among the likeliest tokens of this total."),
        ("Top-k", 0, 200, ours.top_k or 0, 1, "Picks among this many likeliest tokens; 0 is all."),
    ]
    return [
        gr.Textbox("", label="System prompt", lines=2, info="What the model reads before your first message."),
        *(
            gr.Slider(low, high, value, step=step, label=label, info=info)
            for label, low, high, value, step, info in sliders
        ),
        gr.Checkbox(not ours.do_sample, label="Greedy", info="Always the likeliest token: same question, same answer."),
    ]


def open_page(engine: Engine, *, host: str = "127.0.0.1", port: int | None = None, block: bool = True) -> gr.Blocks:
    """Serves the page around an engine; without a port on the first free one from 7860 up."""
    page = build_page(engine).queue(max_size=QUEUE_LIMIT)
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not block,
        share=False,
        ssr_mode=False,
        show_error=True,
        max_file_size=MAX_UPLOAD,
        run_history=False,
        footer_links=["api", "settings"],
        theme=theme(),
        css=CSS,
        head=f"<script>{CHATS}{DROP}</script>",
        app_kwargs={"middleware": [Middleware(StayHome)]},
    )
    return page


def default_model() -> str:
    """MODEL_ID; else the checkpoint in this file's folder; else, in a Space, the first model that its card names."""
    if model_id := os.environ.get("MODEL_ID"):
        return model_id
    if (HERE / "config.json").is_file():
        return str(HERE)
    card = HERE / "README.md"
    models = (metadata_load(card) or {}).get("models") if card.is_file() else None
    if not models:
        raise SystemExit("No model: there is no config.json beside app.py. Name one with --model FOLDER_OR_HUB_ID.")
    return models[0]


def main() -> None:
    parser = argparse.ArgumentParser(description="Chat with a Gemma 3 INT4 checkpoint in the browser.")
    parser.add_argument("--model", help="folder or Hub id; default: $MODEL_ID, else the checkpoint beside this file")
    parser.add_argument(
        "--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="address to listen on"
    )
    parser.add_argument("--port", type=int, help="default: $GRADIO_SERVER_PORT, else the first free one from 7860 up")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    try:
        engine = Engine(arguments.model or default_model())
    except OSError as error:
        raise SystemExit(f"The model cannot be read: {error}") from None
    engine.start_loading()
    open_page(engine, host=arguments.host, port=arguments.port)


if __name__ == "__main__":
    main()
