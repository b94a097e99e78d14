"""What the page and its endpoint do, called directly: errors, loading, status, chats."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chat.engine import Answer, Engine
from chat.handlers import Chat, status_html
from chat.messages import REMOVED, is_notice, open_chat
from chat.repo import find_repo
from tests.chat.helpers.asking import HISTORY, collect, respond
from tests.chat.helpers.histories import said


def test_an_exception_while_generating_reaches_the_user(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**kwargs: Any) -> None:
        kwargs["streamer"].put(torch.tensor([[1]]))
        kwargs["streamer"].put(torch.tensor([40]))
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(engine.model, "generate", fail)
    chat = Chat(engine, [])
    *_, (history, _) = respond(chat, HISTORY)
    assert "out of memory, say" in history[-1]["content"][0]["text"]
    assert is_notice(history[-1])
    monkeypatch.undo()
    *_, (history, _) = respond(chat, HISTORY)
    assert not is_notice(history[-1])


def test_bad_questions_get_a_notice(engine: Engine, upload_folder: Path) -> None:
    bad = upload_folder / "bad.png"
    bad.write_text("no picture")
    chat = Chat(engine, [])
    ((history, _),) = respond(chat, [said("user", bad), said("user", "what?")])
    assert is_notice(history[-1])
    assert "bad.png is not a picture" in history[-1]["content"][0]["text"]
    history, _ = chat.ask({"text": "  ", "files": []}, [])
    assert is_notice(history[-1])
    assert "empty" in history[-1]["content"][0]["text"]


def test_editing_drops_what_came_after_and_keeps_the_picture(engine: Engine) -> None:
    """The page has put the new text into the message before it calls."""
    history = [said("user", Path("a.png")), said("user", "new text"), said("assistant", "old"), said("user", "more")]
    edited, _ = Chat(engine, []).edit(history, SimpleNamespace(index=1))
    assert edited == history[:2]


def test_retry_takes_the_answer_away(engine: Engine) -> None:
    history = [said("user", "one"), said("assistant", "old")]
    assert Chat(engine, []).retry(history)[0] == history[:1]


def test_a_saved_chat_cannot_fetch_a_file_of_the_server(stub_folder: Path) -> None:
    forged = {"id": "a", "messages": json.dumps([said("user", stub_folder / "config.json")])}
    history, chat_id = open_chat(json.dumps(forged))
    assert chat_id == "a"
    assert history[0]["content"] == [{"type": "text", "text": REMOVED}]


def test_the_status_tells_the_truth(engine: Engine) -> None:
    status = status_html(engine)
    assert f"{engine.model.num_parameters() / 1e6:.1f} M parameters" in status
    assert "none of it int4" in status
    assert "device cpu" in status
    assert "backend transformers" in status
    assert "it speaks nonsense and knows nothing." in status
    assert "More." not in status
    answer = Answer("x", 30, 20, new_tokens=5, first_token_seconds=0.25, tokens_per_second=12.34)
    line = "30 prompt tokens, 20 of them remembered · first token after 0.25 s · 12.3 tokens/s · context 35 of 2,048"
    assert line in status_html(engine, answer)
    assert "30 prompt tokens · first" in status_html(engine, replace(answer, remembered_tokens=0))
    assert 'role="status"' in status
    assert "role=" not in status_html(engine, answer)  # it changes with each token


def test_the_status_says_what_is_remembered_and_what_is_read(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = engine.reader.memory
    memory.clear()
    monkeypatch.setattr(memory, "limit", 2_500_000_000)
    assert "remembers chats: 0.0 MB of at most 2.5 GB" in status_html(engine)
    *_, (_, status) = respond(Chat(engine, []), HISTORY)
    assert f"remembers chats: {memory.bytes / 1e6:.1f} MB of at most 2.5 GB" in status
    assert memory.bytes > 0
    *_, (_, status) = respond(Chat(engine, []), HISTORY)
    assert " of them remembered" in status
    monkeypatch.setattr(engine.reader, "chunk", 16)
    statuses = [status for _, status in respond(Chat(engine, []), [said("user", "x" * 40)])]
    assert re.search(r"<p>Reading \d+ of \d+ tokens …</p>", statuses[0])
    assert "Reading" not in statuses[-1]
    monkeypatch.setattr(memory, "limit", 0)
    assert "remembers no chats" in status_html(engine)


def test_a_follow_up_reads_what_is_new(engine: Engine) -> None:
    engine.reader.memory.clear()
    first = collect(engine, HISTORY)[-1]
    history = [*HISTORY, said("assistant", first.text), said("user", "and a circle?")]
    second = collect(engine, history)[-1]
    assert second.remembered_tokens >= first.prompt_tokens - 1
    engine.reader.memory.clear()
    again = collect(engine, history)[-1]
    assert (again.text, again.remembered_tokens) == (second.text, 0)


def test_the_page_is_there_while_the_model_loads(stub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(find_repo(str(stub_folder)))
    assert "<p>Loading …</p>" in status_html(engine)
    chat = Chat(engine, [])
    assert chat.load_status()[1].active is True

    async def ask_while_loading() -> list[list[dict]]:
        steps = []
        async for history, _ in chat.respond(HISTORY, "", 4, 1.0, 1.0, 0, True):
            steps.append(history)
            if len(steps) == 1:
                engine.start_loading()
        return steps

    steps = asyncio.run(ask_while_loading())
    assert "not ready yet: loading" in steps[0][-1]["content"][0]["text"]
    assert not is_notice(steps[-1][-1])
    assert chat.load_status()[1].active is False


def test_a_model_that_does_not_fit_is_said_in_one_line(
    stub_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError(f"{stub_folder}: 21.0 GB wanted,\n16.0 GB free")

    monkeypatch.setattr("chat.engine.load", fail)
    engine = Engine(find_repo(str(stub_folder)))
    engine.start_loading()
    assert engine.loaded.wait(60)
    assert "Could not be loaded: 21.0 GB wanted, 16.0 GB free</p>" in status_html(engine)
    (record,) = caplog.records
    assert record.getMessage() == f"{stub_folder} could not be loaded: 21.0 GB wanted, 16.0 GB free"
    assert record.exc_info is None


def test_a_model_that_cannot_be_loaded_says_so(stub_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((stub_folder / "config.json").read_text())
    engine = Engine(find_repo(str(tmp_path)))
    engine.start_loading()
    assert engine.loaded.wait(60)
    assert "Could not be loaded" in status_html(engine)
    *_, (history, _) = respond(Chat(engine, []), HISTORY)
    assert "could not be loaded" in history[-1]["content"][0]["text"]
