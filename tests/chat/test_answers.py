"""What the page is sent for a question: events, errors, and what is said while the model loads."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gradio.context import LocalContext

from chat.answers import Answers
from chat.engine import Engine
from chat.repo import find_repo
from tests.chat.helpers.asking import collect, events
from tests.chat.helpers.histories import asked, picture, png, question, said


def test_an_answer_comes_in_events(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.reader.memory.clear()
    monkeypatch.setattr(engine.reader, "chunk", 16)
    number, *_ = engine.uploads.add(png())
    sent = events(engine, asked([said("user", picture(number), "x" * 40)]))
    assert list(dict.fromkeys(event["type"] for event in sent)) == ["reading", "answer", "done"]
    read = [event for event in sent if re.fullmatch(r"reading \d+ of \d+ tokens", event["text"])]
    assert [event["done"] for event in read] == sorted({event["done"] for event in read})
    assert all(event["done"] < event["total"] for event in read)
    assert any(event["text"] == "looking at picture 1 of 1" for event in sent)
    done = sent[-1]
    assert done["finish"] == "length"
    assert done["new_tokens"] == 12
    assert done["picture_tokens"] == 4
    assert done["memory_bytes"] == engine.reader.memory.bytes > 0
    assert {"text", "prompt_tokens", "remembered_tokens", "first_token_seconds", "tokens_per_second"} < set(done)


def test_an_exception_while_generating_is_said_without_what_is_inside(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**kwargs: Any) -> None:
        kwargs["streamer"].put(torch.tensor([[1]]))
        kwargs["streamer"].put(torch.tensor([40]))
        raise RuntimeError("the password of /home/me is swordfish")

    monkeypatch.setattr(engine.model, "generate", fail)
    error = {
        "type": "error",
        "message": "The model failed at this question (RuntimeError). The server's log says more.",
    }
    assert events(engine, asked())[-1] == error
    monkeypatch.undo()
    assert events(engine, asked())[-1]["type"] == "done"


def test_what_would_fit_is_said_where_memory_is_short(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise MemoryError("21.0 GB wanted, 16.0 GB free.\nWhat would fit: 1,024 tokens.")

    monkeypatch.setattr(engine.model, "generate", fail)
    sentence = "21.0 GB wanted, 16.0 GB free. What would fit: 1,024 tokens."
    assert events(engine, asked())[-1] == {"type": "error", "message": sentence}


def test_a_bad_question_is_an_event_too(engine: Engine) -> None:
    (event,) = events(engine, asked([]))
    assert event == {"type": "error", "message": "The message is empty. Please type a question."}


def test_pictures_that_are_gone_are_named(engine: Engine) -> None:
    number, *_ = engine.uploads.add(png("blue"))
    messages = [said("user", picture(number), picture("f" * 64), picture("e" * 64), "what?")]
    assert events(engine, asked(messages)) == [{"type": "missing", "pictures": ["f" * 64, "e" * 64]}]


def test_a_follow_up_reads_what_is_new(engine: Engine) -> None:
    engine.reader.memory.clear()
    first = collect(engine)[-1]
    messages = [said("user", "what is this?"), said("assistant", first.text), said("user", "and a circle?")]
    second = collect(engine, question(messages))[-1]
    assert second.remembered_tokens >= first.prompt_tokens - 1
    engine.reader.memory.clear()
    again = collect(engine, question(messages))[-1]
    assert (again.text, again.remembered_tokens) == (second.text, 0)


def test_a_question_waits_for_the_model(stub_folder: Path) -> None:
    engine = Engine(find_repo(str(stub_folder)))

    async def ask_while_loading() -> list[dict]:
        LocalContext.blocks.set(SimpleNamespace(state_holder=SimpleNamespace(session_data={})))
        sent = []
        async for event in Answers(engine).page_answer(asked(), SimpleNamespace(session_hash="a")):
            sent.append(event)
            if len(sent) == 1:
                engine.start_loading()
        return sent

    sent = asyncio.run(ask_while_loading())
    assert sent[0] == {"type": "reading", "text": "not ready yet: loading", "done": 0, "total": 0}
    assert sent[-1]["type"] == "done"


def test_a_model_that_cannot_be_loaded_says_so(stub_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((stub_folder / "config.json").read_text())
    engine = Engine(find_repo(str(tmp_path)))
    engine.start_loading()
    assert engine.loaded.wait(60)
    message = events(engine, asked())[-1]["message"]
    assert message.startswith("The model could not be loaded. ")
    assert str(tmp_path) not in message


def test_a_model_that_does_not_fit_is_said_in_one_line(
    stub_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError(f"{stub_folder}: 21.0 GB wanted,\n16.0 GB free")

    monkeypatch.setattr("chat.engine.load", fail)
    engine = Engine(find_repo(str(stub_folder)))
    engine.start_loading()
    assert engine.loaded.wait(60)
    assert engine.failure == "21.0 GB wanted, 16.0 GB free"
    (record,) = caplog.records
    assert record.getMessage() == f"{stub_folder} could not be loaded: 21.0 GB wanted, 16.0 GB free"
    assert record.exc_info is None
