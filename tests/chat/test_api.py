"""The served page through gradio_client and plain HTTP: streaming, stop, errors, two users, the queue, files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import httpx
import pytest
import torch
from gradio.utils import get_upload_folder
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from chat.engine import Engine
from chat.page import QUEUE_LIMIT
from chat.repo import ROOT
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
        with pytest.raises(AppError, match="the device is on fire"):
            client.predict(QUESTION, api_name="/chat")
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
    monkeypatch.setattr(page._queue, "max_size", 2)
    go = threading.Event()
    started = threading.Event()

    def wait(**_: Any) -> None:
        started.set()
        go.wait(30)

    monkeypatch.setattr(engine.model, "generate", wait)
    first = connect().submit(QUESTION, api_name="/chat")
    assert started.wait(30)
    waiting = []
    for _ in range(2):
        waiting.append(connect().submit(QUESTION, api_name="/chat"))
        until(lambda: waiting[-1].status().rank is not None)
    assert [job.status().rank for job in waiting] == [0, 1]
    with pytest.raises(Exception, match="Queue is full"):  # gradio_client has no class of its own for it
        connect().predict(QUESTION, api_name="/chat")
    go.set()
    for job in (first, *waiting):
        job.result()


def files_of_the_server(stub_folder: Path) -> Iterator[str]:
    yield from ("/etc/passwd", str(ROOT / "app.py"), str(ROOT / "chat" / "page.js"))
    yield from (str(stub_folder / "config.json"), str(stub_folder / "model.safetensors"))


def test_files_outside_the_upload_folder_are_not_served(page: gr.Blocks, stub_folder: Path) -> None:
    for path in files_of_the_server(stub_folder):
        response = httpx.get(f"{page.local_url}gradio_api/file={path}")
        assert response.status_code in (403, 404), path


def test_a_forged_upload_is_refused(page: gr.Blocks, stub_folder: Path) -> None:
    base = f"{page.local_url}gradio_api"
    forged = {"path": str(stub_folder / "examples" / "red.png"), "meta": {"_type": "gradio.FileData"}}
    data = [{"text": "what?", "files": [forged]}, "", 4, 1.0, 1.0, 0, True]
    event = httpx.post(f"{base}/call/chat", json={"data": data}).json()["event_id"]
    answer = httpx.get(f"{base}/call/chat/{event}").text
    assert "event: error" in answer
    assert "was not uploaded by a user" in answer


def test_uploads_are_capped_and_kept_for_a_day(page: gr.Blocks) -> None:
    assert page.delete_cache == (3600, 24 * 3600)
    assert page.max_file_size == 64 * 2**20
    big = httpx.post(
        f"{page.local_url}gradio_api/upload", files={"files": ("big.png", bytes(64 * 2**20 + 1))}, timeout=60
    )
    assert big.status_code == 413


def test_old_uploads_are_removed_and_examples_are_not(page: gr.Blocks, client: Client, tmp_path: Path) -> None:
    from gradio.route_utils import delete_files_created_by_app

    Image.new("RGB", (9, 9)).save(tmp_path / "mine.png")
    client.predict({"text": "x", "files": [handle_file(tmp_path / "mine.png")]}, max_new_tokens=1, api_name="/chat")
    uploads = Path(get_upload_folder())
    (mine,) = uploads.rglob("mine.png")
    chatbot = next(block for block in page.blocks.values() if isinstance(block, gr.Chatbot))
    example = Path(chatbot.examples[0]["files"][0]["path"])
    delete_files_created_by_app(page, age=3600)
    assert mine.exists()
    delete_files_created_by_app(page, age=0)
    assert not mine.exists()
    assert example.exists()


def test_the_page_names_no_other_host(page: gr.Blocks) -> None:
    for path in ("", "theme.css"):
        text = httpx.get(page.local_url + path).text
        assert "googleapis" not in text
        assert "cdn" not in text.lower()
    assert page.analytics_enabled is False
