"""What a request may send: sizes, shapes and times; and that nothing but it waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import random
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr
import httpx
import pytest
from PIL import Image
from starlette.responses import StreamingResponse

from chat import bodies, connections, uploads
from chat.bodies import MAX_VALUES, check_json
from chat.engine import Engine
from chat.pictures import MAX_PICTURE_BYTES
from chat.refusals import Refusal
from tests.chat.helpers.histories import asked, png, said
from tests.chat.helpers.stub import CONTEXT
from tests.chat.helpers.waiting import until


@pytest.mark.parametrize("path", ["gradio_api/queue/join", "gradio_api/call/chat", "gradio_api/cancel", "login"])
def test_a_body_over_the_limit_is_refused_before_it_is_parsed(
    page: gr.Blocks, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "check_json", lambda body: pytest.fail("it was parsed"))
    body = b'{"data": [' + b"1," * (30 * 2**20) + b"1]}"
    response = httpx.post(page.local_url + path, content=body, headers={"content-type": "application/json"}, timeout=60)
    assert response.status_code == 413
    assert response.json()["error"].startswith("This request has 60.0 MB, and ")


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_who_announces_too_much_and_waits_is_answered(page: gr.Blocks, expect: str) -> None:
    with connect(page) as connection:
        connection.settimeout(bodies.JSON_SECONDS / 2)
        head = f"POST /pictures HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 30}\r\n{expect}\r\n"
        connection.sendall(head.encode())
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413 ")


def test_a_body_without_a_length_is_counted(page: gr.Blocks) -> None:
    def endless() -> object:
        for _ in range(40):
            yield b"x" * 2**20

    response = httpx.post(f"{page.local_url}pictures", content=endless(), timeout=60)
    assert response.status_code == 413


def test_a_picture_over_the_limit_is_refused(page: gr.Blocks) -> None:
    response = httpx.post(f"{page.local_url}pictures", content=bytes(MAX_PICTURE_BYTES + 1), timeout=60)
    assert response.status_code == 413
    assert "at most 20 MB" in response.json()["error"]


def test_a_long_text_within_the_limit_is_refused_by_its_length(page: gr.Blocks, engine: Engine) -> None:
    text = "é" * (8 * CONTEXT)
    join = {"data": [asked([said("user", text)])], "fn_index": 0, "session_hash": "long"}
    assert len(json.dumps(join, ensure_ascii=False).encode()) > 2 * 8 * CONTEXT
    body = json.dumps(join, ensure_ascii=False).encode()
    headers = {"content-type": "application/json"}
    assert httpx.post(f"{page.local_url}gradio_api/queue/join", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"no json", 400),
        (b"[" * 100_000, 400),
        (b'{"a": ' * 50_000 + b"1" + b"}" * 50_000, 400),
        (b"[" * 102 + b"]" * 102, 400),
        (b"[" + b"[]," * MAX_VALUES + b"[]]", 413),
        (b'[{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]', 422),
        (b'{"data": [{"files": [{"path": "https://example.com/a.png"}]}]}', 422),
        (b'{"data": [{"files": [{"path": "../' + b"a" * 64 + b'/x.png"}]}]}', 422),
        (b'{"path": {"path": 1}}', 422),
    ],
)
def test_other_shapes_are_refused(body: bytes, status: int) -> None:
    with pytest.raises(Refusal) as raised:
        check_json(body)
    assert raised.value.status == status


def test_a_hundred_levels_are_taken() -> None:
    body = b"[" * 100 + b"]" * 100
    assert check_json(body) == body


def test_files_are_taken_out_of_gradios_hands() -> None:
    file = {"path": f"{'a' * 64}/x.png", "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}
    checked = json.loads(check_json(json.dumps({"data": [{"text": "é", "files": [file]}]}).encode()))
    assert checked == {"data": [{"text": "é", "files": [{"picture": "a" * 64}]}]}
    plain = json.dumps({"data": [{"text": "a path"}]}).encode()
    assert check_json(plain) is plain


def test_what_all_uploads_take_together_is_bounded(page: gr.Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "ALL_BODIES", 1000)
    response = httpx.post(f"{page.local_url}pictures", content=bytes(2000))
    assert response.status_code == 503
    assert "busy" in response.json()["error"]


def connect(page: gr.Blocks) -> socket.socket:
    return socket.create_connection(("127.0.0.1", page.server_port), timeout=30)


def test_a_body_that_does_not_arrive_is_given_up(page: gr.Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "PICTURE_SECONDS", 0.5)
    with connect(page) as slow:
        slow.sendall(b"POST /pictures HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\nabc")
        answer = slow.recv(4096)
        assert b" 408 " in answer.splitlines()[0]
        while slow.recv(4096):
            pass  # until the server has closed it


@pytest.mark.parametrize("head", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "])
def test_a_connection_without_a_request_is_closed(
    page: gr.Blocks, monkeypatch: pytest.MonkeyPatch, head: bytes
) -> None:
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.3)
    with connect(page) as slow:
        slow.sendall(head)
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(4096) == b""


def test_an_answer_that_nobody_takes_is_given_up(page: gr.Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    number = httpx.post(f"{page.local_url}pictures", content=noise()).json()["id"]
    monkeypatch.setattr(connections, "LOOK_SECONDS", 0.3)
    open_ones = page.server.server_state.connections
    with connect(page) as deaf:
        deaf.sendall(f"GET /pictures/{number} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert deaf.recv(12) == b"HTTP/1.1 200"  # and no more of its 7 MB
        ours = next(each for each in open_ones if each.client == deaf.getsockname())
        until(lambda: ours.transport.get_write_buffer_size() > 0)
        until(lambda: ours not in open_ones)


def test_a_stream_that_nobody_takes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "SEND_SECONDS", 0.05)
    sent = []

    async def stream(scope: dict, receive: object, send: Any) -> None:
        for number in range(3):
            sent.append(number)
            await send({"number": number})

    async def send(message: dict) -> None:
        if message["number"] == 1:
            await asyncio.Event().wait()

    asyncio.run(connections.Deadline(stream)({}, None, send))
    assert sent == [0, 1]


def noise() -> bytes:
    file = io.BytesIO()
    Image.frombytes("RGB", (1500, 1500), random.Random(0).randbytes(3 * 1500**2)).save(file, "PNG")
    return file.getvalue()


def test_an_aborted_upload_leaves_nothing(page: gr.Blocks, engine: Engine) -> None:
    before = {path.name for path in engine.uploads.folder.iterdir()}
    for path in ("pictures", "gradio_api/upload"):
        with connect(page) as aborted:
            head = f"POST /{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5000\r\n"
            aborted.sendall(
                head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n" + png()[:40]
            )
            time.sleep(0.2)
    time.sleep(0.5)
    assert {path.name for path in engine.uploads.folder.iterdir()} == before


def test_pictures_are_decoded_one_at_a_time(page: gr.Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most = [], []
    reads = uploads.read_picture

    def note(*arguments: object) -> object:
        at_once.append(1)
        most.append(len(at_once))
        time.sleep(0.05)
        try:
            return reads(*arguments)
        finally:
            at_once.pop()

    monkeypatch.setattr(uploads, "read_picture", note)

    def upload(shade: int) -> None:
        assert httpx.post(f"{page.local_url}pictures", content=png((shade, 0, 0)), timeout=60).status_code == 200

    threads = [threading.Thread(target=upload, args=(shade,)) for shade in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


@pytest.mark.parametrize(("content", "status"), [(b"no picture", 415), (png()[:60], 422), (b"", 415)])
def test_what_is_no_picture_is_refused_in_a_sentence(page: gr.Blocks, content: bytes, status: int) -> None:
    answer = httpx.post(f"{page.local_url}pictures", content=content)
    assert answer.status_code == status
    assert answer.json()["error"].startswith("This file is ")


@pytest.mark.parametrize("version", ["2.3", "2.4"])  # Starlette makes an error of its own of it in one of them
def test_a_response_of_starlettes_is_given_up_too(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(connections, "SEND_SECONDS", 0.05)

    async def parts() -> AsyncIterator[bytes]:
        while True:
            yield b"part"

    async def never(message: dict | None = None) -> None:
        await asyncio.Event().wait()

    scope = {"type": "http", "asgi": {"spec_version": version}}
    asyncio.run(connections.Deadline(StreamingResponse(parts()))(scope, never, never))


def test_other_errors_are_not_kept_quiet() -> None:
    async def app(scope: dict, receive: object, send: object) -> None:
        raise TimeoutError("of the app's own")

    with pytest.raises(TimeoutError, match="of the app's own"):
        asyncio.run(connections.Deadline(app)({}, None, None))
