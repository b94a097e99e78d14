"""Fixtures: a stub checkpoint, a server in this process, and a guard against calls to the outside."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read where the pictures' folder is made, which shall not be another server's.
UPLOADS = tempfile.mkdtemp(prefix="app-tests-")
os.environ["GRADIO_TEMP_DIR"] = UPLOADS

import gradio as gr  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from chat.engine import Engine  # noqa: E402
from chat.repo import find_repo  # noqa: E402
from chat.server import open_server  # noqa: E402
from tests.chat.helpers.stub import save_examples, save_stub  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def upload_folder() -> Iterator[Path]:
    yield Path(UPLOADS)
    shutil.rmtree(UPLOADS)


@pytest.fixture(scope="session", autouse=True)
def no_outside_calls() -> Iterator[None]:
    """Fails the tests when this process, servers and clients included, connects to anything but this machine."""
    connect = socket.socket.connect
    outside = []

    def guarded(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            outside.append(address)
            raise OSError(f"connection to {address} while testing the app")
        connect(self, address)

    socket.socket.connect = guarded
    yield
    socket.socket.connect = connect
    assert not outside, f"the app called {outside}"


@pytest.fixture(scope="session")
def stub_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "stub"
    save_stub(folder)
    save_examples(folder)
    return folder


@pytest.fixture(scope="session")
def engine(stub_folder: Path) -> Engine:
    torch.set_num_threads(1)  # the stub is too small for more
    engine = Engine(find_repo(str(stub_folder)))
    engine.start_loading()
    assert engine.loaded.wait(60)
    assert engine.failure is None
    return engine


@pytest.fixture(scope="session")
def page(engine: Engine) -> Iterator[gr.Blocks]:
    """The stub's server on a free port of 127.0.0.1."""
    page = open_server(engine)
    yield page
    page.close()


@pytest.fixture
def one_at_a_time(page: gr.Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the server answer one question at a time, so that a second one waits in the queue."""
    for function in page.fns.values():
        page._queue.create_event_queue_for_fn(function)  # as gradio does with the first question
    monkeypatch.setattr(page._queue.event_queue_per_concurrency_id["model"], "concurrency_limit", 1)


@pytest.fixture
def slow_steps(engine: Engine) -> Iterator[list[float]]:
    """Makes each step of the model last 0.1 s, so that there is time to stop it; lists when the steps began."""
    engine.reader.memory.clear()  # so that a prompt is read
    torch.manual_seed(0)  # the stub samples, and may say nothing that can be seen
    steps: list[float] = []

    def note(*_: object) -> None:
        steps.append(time.monotonic())
        time.sleep(0.1)

    hook = engine.model.register_forward_pre_hook(note)
    yield steps
    hook.remove()


@pytest.fixture
def slow_layers(engine: Engine) -> Iterator[list[float]]:
    """Makes each layer of the model last 0.05 s, and a prompt be read in chunks of 16; lists when layers began."""
    engine.reader.memory.clear()
    began: list[float] = []

    def note(*_: object) -> None:
        began.append(time.monotonic())
        time.sleep(0.05)

    hooks = [layer.register_forward_pre_hook(note) for layer in engine.model.model.language_model.layers]
    chunk, engine.reader.chunk = engine.reader.chunk, 16
    yield began
    engine.reader.chunk = chunk
    for hook in hooks:
        hook.remove()


@pytest.fixture
def echo(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model that answers, slowly, with what it was asked last; lists the prompts it saw."""
    prompts: list[str] = []

    def generate(*, input_ids: torch.Tensor, streamer: Any, **_: Any) -> None:
        prompt = engine.processor.decode(input_ids[0])
        prompts.append(prompt)
        streamer.put(input_ids)
        question = prompt.split("<start_of_turn>user\n")[-1].split("<end_of_turn>")[0]
        for token in engine.processor.tokenizer.encode(question, add_special_tokens=False):
            time.sleep(0.01)
            streamer.put(torch.tensor([token]))

    monkeypatch.setattr(engine.model, "generate", generate)
    return prompts


@pytest.fixture
def slow_echo(engine: Engine, echo: list[str], monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An echo that waits before its answer until the event is set."""
    go = threading.Event()
    answer = engine.model.generate

    def generate(*, streamer: Any, **inputs: Any) -> None:
        echo.append("")
        go.wait(60)
        echo.pop()
        answer(streamer=streamer, **inputs)

    monkeypatch.setattr(engine.model, "generate", generate)
    return go
