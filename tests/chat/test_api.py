"""The server through gradio_client and plain HTTP: streaming, stop, errors, two users, the queue, files."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from chat import waiting
from chat.answers import REMOVED
from chat.engine import Engine
from chat.repo import find_repo
from chat.server import open_server
from chat.waiting import CLIENT_LIMIT, QUEUE_LIMIT
from tests.chat.helpers.histories import asked
from tests.chat.helpers.waiting import steps_until_still, until

QUESTION = {"text": "what is this?", "files": []}


@pytest.fixture
def connect(page: gr.Blocks) -> Callable[[], Client]:
    return lambda: Client(page.local_url, verbose=False)


@pytest.fixture
def client(connect: Callable[[], Client]) -> Client:
    return connect()


def test_only_this_machine_is_listened_to(page: gr.Blocks) -> None:
    assert page.local_url.startswith("http://127.0.0.1:")
    assert page.share_url is None


def test_the_endpoint_has_a_schema(client: Client) -> None:
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/chat"]
    parameters = {each["parameter_name"]: each for each in endpoints["/chat"]["parameters"]}
    settings = ["system_prompt", "max_new_tokens", "temperature", "top_p", "top_k", "greedy"]
    assert list(parameters) == ["message", *settings]
    assert all(parameters[name]["parameter_has_default"] for name in settings)
    assert "text" in parameters["message"]["type"]["properties"]


def test_an_answer_streams(client: Client, slow_steps: list[float]) -> None:
    job = client.submit(QUESTION, max_new_tokens=12, greedy=True, api_name="/chat")
    answer = job.result()
    updates = job.outputs()
    assert len(updates) >= 3
    assert [len(update) for update in updates] == sorted(len(update) for update in updates)
    assert updates[-1] == answer
    assert len(slow_steps) == 1 + 12  # the prompt but for its last token, then token by token


def test_pictures_reach_the_model(client: Client, engine: Engine, tmp_path: Path) -> None:
    pixels: list[torch.Tensor] = []
    tower = engine.model.model.vision_tower
    hook = tower.register_forward_pre_hook(
        lambda _, args, kwargs: pixels.append(kwargs["pixel_values"]), with_kwargs=True
    )
    files = []
    for color in ("red", "blue"):
        Image.new("RGB", (50, 50), color).save(tmp_path / f"{color}.png")
        files.append(handle_file(tmp_path / f"{color}.png"))
    client.predict({"text": "what is this?", "files": files}, max_new_tokens=1, api_name="/chat")
    hook.remove()
    assert [picture.shape for picture in pixels] == 2 * [(1, 3, 56, 56)]
    assert [picture[0, :, 0, 0].tolist() for picture in pixels] == [[1, -1, -1], [-1, -1, 1]]


def test_the_calls_of_one_client_are_one_chat(client: Client, echo: list[str]) -> None:
    client.predict({"text": "one", "files": []}, system_prompt="Be kind.", api_name="/chat")
    client.predict({"text": "two", "files": []}, system_prompt="Be kind.", api_name="/chat")
    assert echo[1] == (
        "<bos><start_of_turn>user\nBe kind.\n\none<end_of_turn>\n<start_of_turn>model\none<end_of_turn>\n"
        "<start_of_turn>user\ntwo<end_of_turn>\n<start_of_turn>model\n"
    ).replace("model\none", "model\nBe kind.\n\none")


def test_two_users_do_not_mix(connect: Callable[[], Client], echo: list[str]) -> None:
    names = ("alice", "bob")
    clients = {name: connect() for name in names}
    jobs = {}
    for turn in range(2):
        for name in names:
            message = {"text": f"{name} asks question {turn}", "files": []}
            jobs[name, turn] = clients[name].submit(message, api_name="/chat")
        for name in names:
            assert jobs[name, turn].result() == f"{name} asks question {turn}"
            assert all(f"{name} asks question {turn}".startswith(update) for update in jobs[name, turn].outputs())
    assert not any("alice" in prompt and "bob" in prompt for prompt in echo)


def test_cancel_stops_the_model(client: Client, slow_steps: list[float]) -> None:
    job = client.submit(QUESTION, max_new_tokens=1000, api_name="/chat")
    until(lambda: len(job.outputs()) >= 2)
    job.cancel()
    assert steps_until_still(slow_steps) < 1000
    assert client.predict(QUESTION, max_new_tokens=20, api_name="/chat")


def test_cancel_stops_the_reading_of_a_prompt(client: Client, slow_layers: list[float]) -> None:
    job = client.submit({"text": "x" * 1500, "files": []}, max_new_tokens=1, api_name="/chat")
    until(lambda: len(slow_layers) >= 6)
    begun = len(slow_layers)
    job.cancel()
    assert steps_until_still(slow_layers) - begun < 20  # of 180, each of which takes 0.05 s
    assert job.outputs() == []


def test_a_question_is_answered_while_a_long_prompt_is_read(
    connect: Callable[[], Client], slow_layers: list[float]
) -> None:
    long = connect().submit({"text": "y" * 1500, "files": []}, max_new_tokens=1, api_name="/chat")
    until(lambda: len(slow_layers) >= 6)
    assert connect().predict(QUESTION, max_new_tokens=12, greedy=True, api_name="/chat")
    assert not long.done()
    long.cancel()
    steps_until_still(slow_layers)


def test_a_client_that_goes_away_stops_the_model(page: gr.Blocks, slow_steps: list[float]) -> None:
    base = f"{page.local_url}gradio_api"
    settings = ["", 1000, 1.0, 1.0, 0, False]
    with httpx.Client(timeout=30) as http:
        event = http.post(f"{base}/call/chat", json={"data": [QUESTION, *settings]}).json()["event_id"]
        with http.stream("GET", f"{base}/call/chat/{event}") as stream:
            lines = stream.iter_lines()
            assert next(line for line in lines if line.startswith("event")) == "event: generating"
    assert steps_until_still(slow_steps) < 1000


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no picture", "is not a picture"), (b"\x89PNG\r\n\x1a\n" + bytes(40), "is not a picture|damaged")],
)
def test_a_bad_picture_is_an_error_with_a_reason(client: Client, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(AppError, match=message):
        client.predict({"text": "what?", "files": [handle_file(tmp_path / "bad.png")]}, api_name="/chat")
    assert client.predict(QUESTION, max_new_tokens=20, api_name="/chat")


def test_an_error_while_generating_reaches_the_client_and_frees_the_queue(
    client: Client, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("the device is on fire")

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "generate", fail)
        with pytest.raises(AppError, match=r"The model failed at this question \(RuntimeError\)") as raised:
            client.predict(QUESTION, api_name="/chat")
    assert "fire" not in str(raised.value)
    assert client.predict(QUESTION, max_new_tokens=20, api_name="/chat")


@pytest.mark.parametrize("settings", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 2}, {"top_k": -5}])
def test_settings_out_of_range_are_errors(client: Client, settings: dict) -> None:
    with pytest.raises(AppError):
        client.predict(QUESTION, **settings, api_name="/chat")


@pytest.mark.usefixtures("one_at_a_time")
def test_the_queue_has_a_limit_and_tells_the_position(
    page: gr.Blocks, connect: Callable[[], Client], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page._queue.max_size == QUEUE_LIMIT
    monkeypatch.setattr(waiting, "QUEUE_LIMIT", 2)
    go = threading.Event()
    started = threading.Event()

    def wait(**_: Any) -> None:
        started.set()
        go.wait(30)

    monkeypatch.setattr(engine.model, "generate", wait)
    first = connect().submit(QUESTION, api_name="/chat")
    assert started.wait(30)
    others = []
    for _ in range(2):
        others.append(connect().submit(QUESTION, api_name="/chat"))
        until(lambda: others[-1].status().rank is not None)
    assert [job.status().rank for job in others] == [0, 1]
    with pytest.raises(Exception, match="Queue is full"):  # gradio_client has no class of its own for it
        connect().predict(QUESTION, api_name="/chat")
    go.set()
    for job in (first, *others):
        job.result()


@pytest.mark.usefixtures("one_at_a_time")
def test_one_client_holds_no_more_than_its_share(
    page: gr.Blocks, connect: Callable[[], Client], echo: list[str], slow_echo: threading.Event
) -> None:
    jobs = [connect().submit(QUESTION, api_name="/chat") for _ in range(CLIENT_LIMIT)]
    until(lambda: echo and len(page._queue) == CLIENT_LIMIT - 1)
    join = {"data": [asked()], "fn_index": 0, "session_hash": "one more"}
    refused = httpx.post(f"{page.local_url}gradio_api/queue/join", json=join)
    assert refused.status_code == 429
    assert refused.json()["detail"].startswith("8 questions of yours are waiting already.")
    slow_echo.set()
    for job in jobs:
        job.result()
    assert connect().predict(QUESTION, api_name="/chat")


@pytest.mark.usefixtures("one_at_a_time")
def test_a_question_that_nobody_listens_to_leaves(
    page: gr.Blocks, client: Client, echo: list[str], slow_echo: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LISTEN_SECONDS", 1)
    first = client.submit(QUESTION, api_name="/chat")
    until(lambda: len(echo) == 1)
    for session in ("a", "b"):
        join = {"data": [asked()], "fn_index": 0, "session_hash": session}
        assert httpx.post(f"{page.local_url}gradio_api/queue/join", json=join).status_code == 200
    assert len(page._queue) == 2
    until(lambda: len(page._queue) == 0)
    slow_echo.set()
    first.result()
    assert len(echo) == 1


def test_a_question_whose_listener_goes_leaves(
    page: gr.Blocks, slow_steps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "LISTEN_SECONDS", 1)
    question = asked()
    question["sampling"] = {**question["sampling"], "max_new_tokens": 1000}
    join = {"data": [question], "fn_index": 0, "session_hash": "goes"}
    httpx.post(f"{page.local_url}gradio_api/queue/join", json=join)  # and never asks for what comes of it
    until(lambda: len(slow_steps) > 1)
    assert steps_until_still(slow_steps) < 1000


def test_a_chat_of_the_page_is_not_kept(page: gr.Blocks, echo: list[str]) -> None:
    join = {"data": [asked()], "fn_index": 0, "session_hash": "page"}
    httpx.post(f"{page.local_url}gradio_api/queue/join", json=join)
    with httpx.stream("GET", f"{page.local_url}gradio_api/queue/data", params={"session_hash": "page"}) as stream:
        assert "process_completed" in stream.read().decode()
    assert echo
    until(lambda: "page" not in page.app.state_holder.session_data)


def test_a_forged_upload_is_refused(page: gr.Blocks, stub_folder: Path) -> None:
    for path in (str(stub_folder / "examples" / "red.png"), "https://example.com/a.png"):
        forged = {"path": path, "meta": {"_type": "gradio.FileData"}}
        data = [{"text": "what?", "files": [forged]}, "", 4, 1.0, 1.0, 0, True]
        answer = httpx.post(f"{page.local_url}gradio_api/call/chat", json={"data": data})
        assert answer.status_code == 422
        assert "was not uploaded by a user" in answer.text


def test_a_picture_of_an_earlier_call_that_is_gone_leaves_a_note(
    client: Client, engine: Engine, echo: list[str], tmp_path: Path
) -> None:
    Image.new("RGB", (9, 9), "purple").save(tmp_path / "mine.png")
    before = set(engine.uploads.folder.iterdir())
    client.predict({"text": "one", "files": [handle_file(tmp_path / "mine.png")]}, api_name="/chat")
    (kept,) = set(engine.uploads.folder.iterdir()) - before
    kept.unlink()
    client.predict({"text": "two", "files": []}, api_name="/chat")
    assert REMOVED in echo[1]


def test_an_upload_tells_no_path(page: gr.Blocks, engine: Engine, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a b.png")
    with (tmp_path / "a b.png").open("rb") as file:
        answer = httpx.post(f"{page.local_url}gradio_api/upload", files={"files": ("../../a b.png", file)})
    ((number, name),) = (path.split("/") for path in answer.json())
    assert name == "a%20b.png"
    assert engine.uploads.has(number)


def test_an_uploaded_picture_is_shown_again(page: gr.Blocks, tmp_path: Path) -> None:
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a.tiff")
    kept = httpx.post(f"{page.local_url}pictures", content=(tmp_path / "a.tiff").read_bytes()).json()
    assert (kept["width"], kept["height"]) == (300, 200)
    shown = httpx.get(f"{page.local_url}pictures/{kept['id']}")
    assert shown.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(shown.content)) as picture:
        assert picture.size == (300, 200)
    assert httpx.get(f"{page.local_url}pictures/{'0' * 64}").status_code == 404


def test_the_page_is_told_of_the_model(page: gr.Blocks, engine: Engine, stub_folder: Path) -> None:
    info = httpx.get(f"{page.local_url}info").json()
    assert info["ready"] is True
    assert (info["failure"], info["progress"], info["sees"], info["context"]) == (None, None, True, 2048)
    assert "it speaks nonsense and knows nothing." in info["about"]
    assert "More." not in info["about"]
    for fact in (f"{engine.model.num_parameters() / 1e6:.1f} M parameters", "none of it int4", "device cpu"):
        assert fact in info["facts"]
    defaults = {"max_new_tokens": 512, "temperature": 0.9, "top_p": 0.95, "top_k": 64, "greedy": False}
    assert info["defaults"] == defaults
    assert info["memory"] == {"bytes": engine.reader.memory.bytes, "limit": engine.reader.memory.limit}
    assert info["picture_tokens"] == 4
    assert info["pan_and_scan"] is True
    assert [example["text"] for example in info["examples"]] == ["Is this red?", "Is this blue?"]
    for example in info["examples"]:
        (picture,) = example["pictures"]
        assert Image.open(io.BytesIO(httpx.get(page.local_url + picture["url"]).content)).size == (96, 96)
    assert str(stub_folder) not in str(info)
    assert page.fns[info["answer_fn"]].api_name == "page_answer"


def test_a_model_that_cannot_be_loaded_is_told_without_its_folder(stub_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((stub_folder / "config.json").read_text())
    engine = Engine(find_repo(str(tmp_path)))
    engine.start_loading()
    assert engine.loaded.wait(60)
    server = open_server(engine)
    info = httpx.get(f"{server.local_url}info").json()
    server.close(verbose=False)
    assert info["ready"] is False
    assert info["failure"]
    assert str(tmp_path) not in info["failure"]


def test_the_page_names_no_other_host(page: gr.Blocks) -> None:
    text = httpx.get(page.local_url).text
    assert not re.search(r"(src|href)=.?(https?:)?//", text)
    assert page.analytics_enabled is False
