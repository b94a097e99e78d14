"""The engine and the handlers of the page, called directly: streaming, stop, limits, errors, loading, status, chats."""

from __future__ import annotations

import asyncio
import json
import pickle
import queue
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

import app
from tests.app.stub import CONTEXT
from tests.app.test_prompt import said
from tests.app.waiting import steps_until_still

GREEDY = app.Sampling(max_new_tokens=12, temperature=1.0, top_p=1.0, top_k=0, greedy=True)
HISTORY = [said("user", "what is this?")]


def collect(engine: app.Engine, history: list[dict], sampling: app.Sampling = GREEDY) -> list[app.Answer]:
    async def run() -> list[app.Answer]:
        return [answer async for answer in engine.stream(history, "", sampling)]

    return asyncio.run(run())


def respond(chat: app.Chat, history: list[dict]) -> list[tuple]:
    async def run() -> list[tuple]:
        return [step async for step in chat.respond(history, "", 12, 1.0, 1.0, 0, True)]

    return asyncio.run(run())


def test_the_answer_is_what_generate_gives(engine: app.Engine) -> None:
    inputs = app.encode_chat(engine.processor, app.to_messages(HISTORY, ""))
    ids = engine.model.generate(**inputs, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=12)
    expected = ids[0, inputs["input_ids"].shape[1] :]
    answer = collect(engine, HISTORY)[-1]
    assert answer.text == engine.processor.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
    assert answer.new_tokens == 12
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.first_token_seconds > 0
    assert answer.tokens_per_second > 0


def test_sampling_settings_reach_generate(engine: app.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(engine.model, "generate", lambda **kwargs: seen.update(kwargs))
    collect(engine, HISTORY, app.Sampling(max_new_tokens=7, temperature=0.5, top_p=0.8, top_k=3, greedy=False))
    names = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k")
    assert [seen[name] for name in names] == [7, True, 0.5, 0.8, 3]
    collect(engine, HISTORY, GREEDY)
    assert seen["do_sample"] is False


def test_defaults_come_from_generation_config(engine: app.Engine) -> None:
    page = app.build_page(engine)
    values = {block.label: block.value for block in page.blocks.values() if isinstance(block, app.gr.Slider)}
    assert values == {"Max new tokens": 512, "Temperature": 0.9, "Top-p": 0.95, "Top-k": 64}
    (greedy,) = (block for block in page.blocks.values() if getattr(block, "label", None) == "Greedy")
    assert greedy.value is False


def test_every_setting_has_a_line_of_help(engine: app.Engine) -> None:
    with app.gr.Blocks():
        settings = app._settings(engine)
    assert len(settings) == 6
    assert all(setting.info for setting in settings)


def test_tokens_that_are_there_already_come_in_one_update(engine: app.Engine) -> None:
    tokens: queue.SimpleQueue = queue.SimpleQueue()
    letters = engine.processor.tokenizer.encode("abcdef", add_special_tokens=False)
    for item in [*((token, 1.0 + place) for place, token in enumerate(letters)), None]:
        tokens.put(item)
    answers = list(engine._collect(tokens, 0.5, 3))
    assert [(answer.text, answer.new_tokens) for answer in answers] == [("abcdef", 6)]
    assert answers[0].first_token_seconds == 0.5
    assert answers[0].tokens_per_second == 1.0


def test_half_a_character_is_held_back(engine: app.Engine) -> None:
    convert = engine.processor.tokenizer.convert_tokens_to_ids
    bytes_of_e_acute = [convert("<0xC3>"), convert("<0xA9>")]
    answers = [engine._answer_so_far(bytes_of_e_acute[:count], 0, 0, 1, 1).text for count in (1, 2)]
    assert answers == ["", "é"]


def test_closing_the_stream_stops_the_model(engine: app.Engine, slow_steps: list[float]) -> None:
    async def take_one() -> float:
        stream = engine.stream(HISTORY, "", app.Sampling(1000, 1.0, 1.0, 0, True))
        await anext(stream)
        closed = time.monotonic()
        await stream.aclose()
        return closed

    closed = asyncio.run(take_one())
    assert steps_until_still(slow_steps) < 1000
    # The step under way may be followed by one that began while the event was being set.
    assert sum(step > closed for step in slow_steps) <= 1


def test_cancelling_while_waiting_for_a_token_stops_the_model(engine: app.Engine, slow_steps: list[float]) -> None:
    async def cancel() -> None:
        stream = engine.stream(HISTORY, "", app.Sampling(1000, 1.0, 1.0, 0, True))
        await anext(stream)
        waiting = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(cancel())
    assert steps_until_still(slow_steps) < 1000


def test_a_prompt_over_the_context_is_refused(engine: app.Engine) -> None:
    with pytest.raises(app.ChatError, match=r"has 2,\d+ tokens, and the model's context is 2,048"):
        collect(engine, [said("user", "x" * CONTEXT)])


def test_the_answer_ends_where_the_context_ends(engine: app.Engine) -> None:
    history = [said("user", "x" * (CONTEXT - 20))]
    answer = collect(engine, history, app.Sampling(500, 1.0, 1.0, 0, True))[-1]
    assert answer.prompt_tokens + answer.new_tokens == CONTEXT


def test_an_exception_while_generating_reaches_the_user(engine: app.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**kwargs: Any) -> None:
        kwargs["streamer"].put(torch.tensor([[1]]))
        kwargs["streamer"].put(torch.tensor([40]))
        raise RuntimeError("out of memory, say")

    monkeypatch.setattr(engine.model, "generate", fail)
    chat = app.Chat(engine, [])
    *_, (history, _) = respond(chat, HISTORY)
    assert "out of memory, say" in history[-1]["content"][0]["text"]
    assert app.is_notice(history[-1])
    monkeypatch.undo()
    *_, (history, _) = respond(chat, HISTORY)
    assert not app.is_notice(history[-1])


def test_bad_questions_get_a_notice(engine: app.Engine, upload_folder: Path) -> None:
    bad = upload_folder / "bad.png"
    bad.write_text("no picture")
    chat = app.Chat(engine, [])
    ((history, _),) = respond(chat, [said("user", bad), said("user", "what?")])
    assert app.is_notice(history[-1])
    assert "bad.png is not a picture" in history[-1]["content"][0]["text"]
    history, _ = chat.ask({"text": "  ", "files": []}, [])
    assert app.is_notice(history[-1])
    assert "empty" in history[-1]["content"][0]["text"]


def test_editing_drops_what_came_after_and_keeps_the_picture(engine: app.Engine) -> None:
    """The page has put the new text into the message before it calls."""
    history = [said("user", Path("a.png")), said("user", "new text"), said("assistant", "old"), said("user", "more")]
    edited, _ = app.Chat(engine, []).edit(history, SimpleNamespace(index=1))
    assert edited == history[:2]


def test_retry_takes_the_answer_away(engine: app.Engine) -> None:
    history = [said("user", "one"), said("assistant", "old")]
    assert app.Chat(engine, []).retry(history)[0] == history[:1]


def test_a_saved_chat_cannot_fetch_a_file_of_the_server(stub_folder: Path) -> None:
    forged = {"id": "a", "messages": json.dumps([said("user", stub_folder / "config.json")])}
    history, chat_id = app.open_chat(json.dumps(forged))
    assert chat_id == "a"
    assert history[0]["content"] == [{"type": "text", "text": app.REMOVED}]


def test_the_status_tells_the_truth(engine: app.Engine) -> None:
    status = app.status_html(engine)
    assert f"{engine.model.num_parameters() / 1e6:.1f} M parameters" in status
    assert "none of it int4" in status
    assert "device cpu" in status
    assert "backend transformers" in status
    assert "it speaks nonsense and knows nothing." in status
    assert "More." not in status
    answer = app.Answer("x", prompt_tokens=30, new_tokens=5, first_token_seconds=0.25, tokens_per_second=12.34)
    line = "30 prompt tokens · first token after 0.25 s · 12.3 tokens/s · context 35 of 2,048"
    assert line in app.status_html(engine, answer)
    assert "role='status'" in status
    assert "role=" not in app.status_html(engine, answer)  # it changes with each token


def test_the_status_names_the_int4_backend_and_bytes() -> None:
    model = SimpleNamespace(int4_bytes=15_200_000_000, int4_backend="aten-cpu", device="cpu")
    assert app._model_facts(model, 27_400_000_000) == (
        "27.4 G parameters · 15.2 GB of int4 weights in memory · device cpu · backend aten-cpu"
    )


def test_the_page_is_there_while_the_model_loads(stub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = app.Engine(str(stub_folder))
    assert "<p>Loading …</p>" in app.status_html(engine)
    chat = app.Chat(engine, [])
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
    assert not app.is_notice(steps[-1][-1])
    assert chat.load_status()[1].active is False


def test_loading_reports_progress(stub_folder: Path) -> None:
    engine = app.Engine(str(stub_folder))
    seen = []
    report = app._progress_reporter(engine)
    for _ in report(range(4), desc="Loading weights", mininterval=0, miniters=1):
        seen.append(engine.progress)
    assert seen == ["loading weights 0%", "loading weights 25%", "loading weights 50%", "loading weights 75%"]


def test_a_model_that_cannot_be_loaded_says_so(stub_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((stub_folder / "config.json").read_text())
    engine = app.Engine(str(tmp_path))
    engine.start_loading()
    assert engine.loaded.wait(60)
    assert "Could not be loaded" in app.status_html(engine)
    *_, (history, _) = respond(app.Chat(engine, []), HISTORY)
    assert "could not be loaded" in history[-1]["content"][0]["text"]


def test_zero_gpu_is_asked_for_as_long_as_the_answer_takes(
    stub_folder: Path, upload_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def gpu(duration: Any) -> Any:
        def wrap(function: Any) -> Any:
            def run(*args: Any) -> Any:
                asked.append(duration(*args))
                try:  # a ZeroGPU worker is another process, and of an error only the name comes back
                    for answer in function(*pickle.loads(pickle.dumps(args))):
                        yield pickle.loads(pickle.dumps(answer))
                except app.ChatError as error:
                    raise app.gr.Error(type(error).__name__) from None

            return run

        return wrap

    monkeypatch.setattr(app, "spaces", SimpleNamespace(GPU=gpu))
    monkeypatch.setattr(app, "ON_ZERO_GPU", True)
    engine = app.Engine(str(stub_folder))
    engine.start_loading()
    assert engine.loaded.is_set()
    Image.new("RGB", (8, 8)).save(upload_folder / "zero.png")
    assert collect(engine, [said("user", upload_folder / "zero.png")])[-1].new_tokens == 12
    collect(engine, HISTORY, app.Sampling(300, 1.0, 1.0, 0, True))
    assert asked == [20, 40]
    with pytest.raises(app.ChatError, match="the model's context is 2,048"):
        collect(engine, [said("user", "x" * CONTEXT)])


def test_without_a_model_the_command_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MODEL_ID", raising=False)
    monkeypatch.setattr(app, "HERE", tmp_path)
    with pytest.raises(SystemExit, match="--model"):
        app.default_model()
    (tmp_path / "README.md").write_text("---\nmodels:\n- someone/some-model\n---\n# A Space\n")
    assert app.default_model() == "someone/some-model"
    (tmp_path / "config.json").write_text("{}")
    assert app.default_model() == str(tmp_path)
    monkeypatch.setenv("MODEL_ID", "other/model")
    assert app.default_model() == "other/model"
