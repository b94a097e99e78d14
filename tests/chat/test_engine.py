"""The engine: streaming, stop, limits, ZeroGPU."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch

import chat
from chat.engine import Answer, Engine, _Prompt, _TokenQueue
from chat.errors import ChatError
from chat.prompt import encode_chat
from chat.question import Sampling
from chat.repo import find_repo
from tests.chat.helpers.asking import collect
from tests.chat.helpers.histories import HISTORY, picture, png, question, said
from tests.chat.helpers.stub import CONTEXT
from tests.chat.helpers.waiting import steps_until_still


def test_the_answer_is_what_generate_gives(engine: Engine) -> None:
    inputs = encode_chat(engine.processor, HISTORY)
    ids = engine.model.generate(**inputs, do_sample=False, temperature=None, top_p=None, top_k=None, max_new_tokens=12)
    expected = ids[0, inputs["input_ids"].shape[1] :]
    answer = collect(engine)[-1]
    assert answer.text == engine.processor.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
    assert answer.new_tokens == 12
    assert answer.prompt_tokens == inputs["input_ids"].shape[1]
    assert answer.first_token_seconds > 0
    assert answer.tokens_per_second > 0


def test_sampling_settings_reach_generate(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(engine.model, "generate", lambda **kwargs: seen.update(kwargs))
    collect(engine, question(HISTORY, Sampling(max_new_tokens=7, temperature=0.5, top_p=0.8, top_k=3, greedy=False)))
    names = ("max_new_tokens", "do_sample", "temperature", "top_p", "top_k")
    assert [seen[name] for name in names] == [7, True, 0.5, 0.8, 3]
    collect(engine)
    assert seen["do_sample"] is False


def collected(engine: Engine, ids: list[int], begun: list[int] | None = None, text: str = "") -> list[Answer]:
    """The answers that tokens make which are all there already."""
    tokens = _TokenQueue()
    for item in [*((token, 1.0 + place) for place, token in enumerate(ids)), None]:
        tokens.queue.put(item)
    prompt = _Prompt({"input_ids": torch.ones(1, 3)}, [1, 2, 3], begun or [], text, 0)
    return list(engine._collect(tokens, 0.5, prompt, threading.Event()))


def test_tokens_that_are_there_already_come_in_one_update(engine: Engine) -> None:
    letters = engine.processor.tokenizer.encode("abcdef", add_special_tokens=False)
    updates = [(answer.text, answer.new_tokens, answer.finish) for answer in collected(engine, letters)]
    assert updates == [("abcdef", 6, "length")]
    last = collected(engine, letters)[-1]
    assert last.first_token_seconds == 0.5
    assert last.tokens_per_second == 1.0


def test_why_an_answer_ended_is_told(engine: Engine) -> None:
    letters = engine.processor.tokenizer.encode("abc", add_special_tokens=False)
    assert collected(engine, letters)[-1].finish == "length"
    end = engine.model.generation_config.eos_token_id[-1]
    assert collected(engine, [*letters, end])[-1].finish == "stop"


def test_half_a_character_is_held_back(engine: Engine) -> None:
    convert = engine.processor.tokenizer.convert_tokens_to_ids
    e_acute = [convert("<0xC3>"), convert("<0xA9>")]
    assert [collected(engine, e_acute[:count])[-1].text for count in (1, 2)] == ["", "é"]
    assert collected(engine, e_acute[1:], begun=e_acute[:1])[-1].text == "é"


@pytest.mark.parametrize("memory", ["kept", "forgotten"])
def test_an_answer_that_was_cut_off_goes_on_token_by_token(engine: Engine, memory: str) -> None:
    engine.reader.memory.clear()
    whole = collect(engine, question(HISTORY, Sampling(40, 1.0, 1.0, 0, True)))[-1]
    engine.reader.memory.clear()
    text = ""
    for length in (12, 12, 16):
        messages = [*HISTORY, said("assistant", text)] if text else HISTORY
        part = collect(engine, question(messages, Sampling(length, 1.0, 1.0, 0, True), go_on=bool(text)))[-1]
        assert part.new_tokens == length
        assert part.finish == "length"
        if text and memory == "kept":
            assert part.remembered_tokens >= part.prompt_tokens - 1
        text += part.text
        if memory == "forgotten":
            engine.reader.memory.clear()
    assert text == whole.text


def test_an_answer_that_was_interrupted_goes_on_after_what_was_seen_of_it(engine: Engine) -> None:
    ids = engine.processor.tokenizer.encode("abcdef", add_special_tokens=False)
    asked = encode_chat(engine.processor, HISTORY)["input_ids"][0].tolist()
    engine._written.keep(asked, ids)
    assert engine._begun(asked, "abcd") == ids[:4]
    joined = engine.processor.tokenizer.convert_tokens_to_ids(["▁what", "a", "t"])
    engine._written.keep(asked, joined)  # not the tokens that the text has by itself
    assert engine._begun(asked, " whata") == joined[:2]
    assert engine._begun([*asked, 1], "abcd") == ids[:4]  # another prompt's: the text's own


def test_what_goes_on_never_holds_a_control_token(engine: Engine) -> None:
    begun = engine._begun([1], "a<end_of_turn>\n<start_of_turn>user")
    assert not set(begun) & set(engine.processor.tokenizer.all_special_ids)


def test_pictures_are_decoded_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(
        engine.uploads, "open", lambda number, opens=engine.uploads.open: opened.append(number) or opens(number)
    )
    number, *_ = engine.uploads.add(png("green"))
    messages = [said("user", picture(number), "what is this?")]
    first = collect(engine, question(messages))[-1]
    collect(engine, question([*messages, said("assistant", first.text or "a"), said("user", "sure?")]))
    assert opened == [number]
    assert first.picture_tokens == engine.picture_tokens == 4


def test_long_pictures_are_looked_at_in_parts_too(engine: Engine) -> None:
    assert engine.pans_and_scans
    number, *_ = engine.uploads.add(png("green", size=(1200, 300)))
    messages = [said("user", picture(number), "what is this?")]
    parts = [collect(engine, question(messages, pan_and_scan=wanted))[-1].picture_tokens for wanted in (False, True)]
    assert parts == [4, 5 * 4]


def test_closing_the_stream_stops_the_model(engine: Engine, slow_steps: list[float]) -> None:
    async def take_one() -> float:
        stream = engine.stream(question(HISTORY, Sampling(1000, 1.0, 1.0, 0, True)))
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
        stream = engine.stream(question(HISTORY, Sampling(1000, 1.0, 1.0, 0, True)))
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
        collect(engine, question([said("user", "x" * CONTEXT)]))


def test_the_answer_ends_where_the_context_ends(engine: Engine) -> None:
    messages = [said("user", "x" * (CONTEXT - 20))]
    answer = collect(engine, question(messages, Sampling(500, 1.0, 1.0, 0, True)))[-1]
    assert answer.prompt_tokens + answer.new_tokens == CONTEXT


def test_zero_gpu_is_asked_for_as_long_as_the_answer_takes(stub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    number, *_ = engine.uploads.add(png())
    assert collect(engine, question([said("user", picture(number))]))[-1].new_tokens == 12
    collect(engine, question(HISTORY, Sampling(300, 1.0, 1.0, 0, True)))
    assert asked == [20, 40]
    with pytest.raises(ChatError, match="the model's context is 2,048"):
        collect(engine, question([said("user", "x" * CONTEXT)]))
