"""The engine: streaming, stop, limits, ZeroGPU."""

from __future__ import annotations

import asyncio
import pickle
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from PIL import Image

import chat
from chat.engine import Engine, Sampling, _TokenQueue
from chat.errors import ChatError
from chat.messages import to_messages
from chat.prompt import encode_chat
from chat.repo import find_repo
from tests.chat.helpers.asking import GREEDY, HISTORY, collect
from tests.chat.helpers.histories import said
from tests.chat.helpers.stub import CONTEXT
from tests.chat.helpers.waiting import steps_until_still


def test_the_answer_is_what_generate_gives(engine: Engine) -> None:
    inputs = encode_chat(engine.processor, to_messages(HISTORY, ""))
    ids = engine.model.generate(**inputs, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=12)
    expected = ids[0, inputs["input_ids"].shape[1] :]
    answer = collect(engine, HISTORY)[-1]
    assert answer.text == engine.processor.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
    assert answer.new_tokens == 12
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.first_token_seconds > 0
    assert answer.tokens_per_second > 0


def test_sampling_settings_reach_generate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(engine.model, "generate", lambda **kwargs: seen.update(kwargs))
    collect(engine, HISTORY, Sampling(max_new_tokens=7, temperature=0.5, top_p=0.8, top_k=3, greedy=False))
    names = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k")
    assert [seen[name] for name in names] == [7, True, 0.5, 0.8, 3]
    collect(engine, HISTORY, GREEDY)
    assert seen["do_sample"] is False


def test_tokens_that_are_there_already_come_in_one_update(engine: Engine) -> None:
    tokens = _TokenQueue()
    letters = engine.processor.tokenizer.encode("abcdef", add_special_tokens=False)
    for item in [*((token, 1.0 + place) for place, token in enumerate(letters)), None]:
        tokens.queue.put(item)
    answers = list(engine._collect(tokens, 0.5, 3))
    assert [(answer.text, answer.new_tokens) for answer in answers] == [("abcdef", 6)]
    assert answers[0].first_token_seconds == 0.5
    assert answers[0].tokens_per_second == 1.0


def test_half_a_character_is_held_back(engine: Engine) -> None:
    convert = engine.processor.tokenizer.convert_tokens_to_ids
    bytes_of_e_acute = [convert("<0xC3>"), convert("<0xA9>")]
    answers = [engine._answer_so_far(bytes_of_e_acute[:count], 0, 0, 1, 1, 0).text for count in (1, 2)]
    assert answers == ["", "é"]


def test_closing_the_stream_stops_the_model(engine: Engine, slow_steps: list[float]) -> None:
    async def take_one() -> float:
        stream = engine.stream(HISTORY, "", Sampling(1000, 1.0, 1.0, 0, True))
        await anext(stream)
        closed = time.monotonic()
        await stream.aclose()
        return closed

    closed = asyncio.run(take_one())
    assert steps_until_still(slow_steps) < 1000
    # The step under way may be followed by one that began while the event was being set.
    assert sum(step > closed for step in slow_steps) <= 1


def test_cancelling_while_waiting_for_a_token_stops_the_model(engine: Engine, slow_steps: list[float]) -> None:
    async def cancel() -> None:
        stream = engine.stream(HISTORY, "", Sampling(1000, 1.0, 1.0, 0, True))
        await anext(stream)
        waiting = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(cancel())
    assert steps_until_still(slow_steps) < 1000


def test_a_prompt_over_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(ChatError, match=r"has 2,\d+ tokens, and the model's context is 2,048"):
        collect(engine, [said("user", "x" * CONTEXT)])


def test_the_answer_ends_where_the_context_ends(engine: Engine) -> None:
    history = [said("user", "x" * (CONTEXT - 20))]
    answer = collect(engine, history, Sampling(500, 1.0, 1.0, 0, True))[-1]
    assert answer.prompt_tokens + answer.new_tokens == CONTEXT


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
                except ChatError as error:
                    raise gr.Error(type(error).__name__) from None

            return run

        return wrap

    monkeypatch.setattr(chat, "spaces", SimpleNamespace(GPU=gpu))
    monkeypatch.setattr(chat, "ON_ZERO_GPU", True)
    engine = Engine(find_repo(str(stub_folder)))
    engine.start_loading()
    assert engine.loaded.is_set()
    Image.new("RGB", (8, 8)).save(upload_folder / "zero.png")
    assert collect(engine, [said("user", upload_folder / "zero.png")])[-1].new_tokens == 12
    collect(engine, HISTORY, Sampling(300, 1.0, 1.0, 0, True))
    assert asked == [20, 40]
    with pytest.raises(ChatError, match="the model's context is 2,048"):
        collect(engine, [said("user", "x" * CONTEXT)])
