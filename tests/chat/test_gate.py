"""Who is let in: hosts, other sites, paths, passwords; asked over HTTP as browsers and programs ask."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import gradio as gr
import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AuthenticationError

from chat.engine import Engine
from chat.gate import Access, believed
from chat.repo import ROOT
from chat.server import open_server
from tests.chat.helpers.histories import png


@pytest.fixture
def opened(engine: Engine) -> Iterator[Callable[..., str]]:
    """Opens a server of its own; gives its address."""
    servers: list[gr.Blocks] = []

    def open_(**access: object) -> str:
        servers.append(open_server(engine, access=Access(**access)))
        return servers[-1].local_url

    yield open_
    for server in servers:
        server.close(verbose=False)


def port(url: str) -> str:
    return re.search(r":(\d+)/", url)[1]


@pytest.mark.parametrize("path", ["", "info", "config", "page/nothing.js", "monitoring", "pictures/" + "0" * 64])
def test_every_response_says_what_browsers_may_do(page: gr.Blocks, path: str) -> None:
    headers = httpx.get(page.local_url + path).headers
    policy = dict(each.strip().split(" ", 1) for each in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["object-src"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_a_space_may_be_framed_by_hugging_face_alone(opened: Callable[..., str]) -> None:
    policy = httpx.get(opened(in_a_space=True)).headers["content-security-policy"]
    assert policy.endswith("frame-ancestors 'self' https://huggingface.co")


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "10.0.0.1", "", "127.0.0.1.", "[::1"])
def test_a_name_that_is_turned_to_this_machine_is_refused(page: gr.Blocks, host: str) -> None:
    for path in ("", "info", "gradio_api/info"):
        response = httpx.get(page.local_url + path, headers={"host": host})
        assert response.status_code == (200 if host == "127.0.0.1." else 421) or response.status_code == 400


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST", "[::1]"])
def test_this_machines_own_names_are_answered(page: gr.Blocks, host: str) -> None:
    assert httpx.get(f"{page.local_url}info", headers={"host": f"{host}:{port(page.local_url)}"}).status_code == 200


def test_names_and_addresses_can_be_allowed(opened: Callable[..., str]) -> None:
    url = opened(hosts=frozenset({"chat.example", ".hf.space", "127.0.0.1"}), any_address=True)

    def status(host: str) -> int:
        return httpx.get(f"{url}info", headers={"host": host}).status_code

    assert [status(host) for host in ("chat.example", "me-chat.hf.space", "10.1.2.3:80", "[fe80::1]:80")] == [200] * 4
    assert [status(host) for host in ("other.example", "hf.space.evil.example", "evilhf.space")] == [421] * 3


FOREIGN = [
    {"origin": "http://evil.example"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "null"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_another_sites_page_changes_nothing(page: gr.Blocks, engine: Engine, headers: dict) -> None:
    for path in ("pictures", "gradio_api/upload", "gradio_api/queue/join", "gradio_api/cancel", "login"):
        response = httpx.post(page.local_url + path, content=png((7, 7, 7)), headers=headers)
        assert response.status_code == 403, path
        assert "access-control-allow-origin" not in response.headers
    assert not any(picture.getpixel((0, 0)) == (7, 7, 7) for picture in map(engine.uploads.open, kept(engine)))


def kept(engine: Engine) -> list[str]:
    return [path.stem for path in engine.uploads.folder.glob("*.png")]


@pytest.mark.parametrize("name", ["127.0.0.1", "chat.example"])
def test_another_sites_page_reads_nothing(opened: Callable[..., str], name: str) -> None:
    """Gradio lets every site read where its own name is none of this machine's."""
    url = opened(hosts=frozenset({"127.0.0.1", "chat.example"}))
    host = f"{name}:{port(url)}"
    for path in ("", "info", "config"):
        response = httpx.get(url + path, headers={"host": host, "origin": "http://evil.example"})
        assert not [header for header in response.headers if header.startswith("access-control")]
    preflight = {"host": host, "origin": "http://evil.example", "access-control-request-method": "POST"}
    response = httpx.options(f"{url}gradio_api/queue/join", headers=preflight)
    assert response.status_code == 403
    assert not [header for header in response.headers if header.startswith("access-control")]
    fetched = {"host": host, "sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert httpx.get(f"{url}info", headers=fetched).status_code == 403


def test_a_link_on_another_site_leads_to_the_page(page: gr.Blocks) -> None:
    visit = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert httpx.get(page.local_url, headers=visit).status_code == 200
    assert httpx.get(f"{page.local_url}info", headers=visit).status_code == 403


def test_the_pages_own_requests_are_answered(page: gr.Blocks) -> None:
    own = {"origin": page.local_url.rstrip("/"), "sec-fetch-site": "same-origin"}
    assert httpx.post(f"{page.local_url}pictures", content=png(), headers=own).status_code == 200


UNUSED = [
    "monitoring",
    "monitoring/summary",
    "openapi.json",
    "docs",
    "redoc",
    "theme.css",
    "manifest.json",
    "robots.txt",
    "static/img/logo.svg",
    "assets/index.js",
    "svelte/x",
    "login_check",
    "gradio_api/app_id",
    "gradio_api/openapi.json",
    "gradio_api/proxy=https://example.com/",
    "gradio_api/file=/etc/passwd",
    "gradio_api/file=https://example.com/a.png",
    "gradio_api/file/etc/passwd",
    f"gradio_api/file={ROOT / 'app.py'}",
    "gradio_api/runs",
    "gradio_api/token",
    "gradio_api/user",
    "gradio_api/deep_link",
    "gradio_api/upload_progress?upload_id=a",
    "gradio_api/queue/status",
    "gradio_api/stream/a/b/c/playlist.m3u8",
    "gradio_api/vibe-code/",
    "page/../command.py",
    "page/%2e%2e/command.py",
    "pictures/..%2f..%2fetc%2fpasswd",
    "examples/99",
]


@pytest.mark.parametrize("path", UNUSED)
def test_what_the_page_does_not_use_is_not_served(page: gr.Blocks, path: str) -> None:
    assert httpx.get(page.local_url + path).status_code == 404


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/process_recording",
        "gradio_api/component_server",
        "gradio_api/run/page_answer",
        "gradio_api/api/chat",
        "gradio_api/call/page_answer",
        "gradio_api/call/v2/chat",
        "gradio_api/stream/a",
        "gradio_api/vibe-edit/",
        "gradio_api/proxy=https://example.com/",
        "info",
    ],
)
def test_nor_is_it_called(page: gr.Blocks, path: str) -> None:
    response = httpx.post(page.local_url + path, json={"data": []})
    assert response.status_code in (404, 405)
    assert httpx.request("DELETE", page.local_url + path).status_code == 404


def test_what_is_said_to_be_forwarded_is_believed_of_a_proxy_alone(opened: Callable[..., str]) -> None:
    forwarded = {"x-forwarded-host": "evil.example", "x-forwarded-proto": "https"}
    url = opened()
    for path in ("config", "gradio_api/info"):
        text = httpx.get(url + path, headers=forwarded).text
        assert "evil.example" not in text
    behind = opened(behind_proxy=True, hosts=frozenset({"chat.example", "127.0.0.1"}))
    asked = {"x-forwarded-host": "chat.example", "x-forwarded-proto": "https"}
    assert httpx.get(f"{behind}info", headers=asked).status_code == 200
    assert httpx.get(f"{behind}info", headers=forwarded).status_code == 421
    mine = {**asked, "origin": "https://chat.example"}
    assert httpx.post(f"{behind}pictures", content=png(), headers=mine).status_code == 200


def test_who_asks_is_the_last_public_address_that_a_proxy_noted() -> None:
    def client(noted: str, trusted: bool = True) -> str:
        headers = [(b"host", b"a"), (b"x-forwarded-for", noted.encode())]
        return believed({"headers": headers, "client": ("10.0.0.9", 1)}, trusted)["client"][0]

    assert client("1.2.3.4") == "1.2.3.4"
    assert client("6.6.6.6, 1.2.3.4, 10.0.0.1") == "1.2.3.4"
    assert client("10.0.0.5, 10.0.0.1") == "10.0.0.5"
    assert client("1.2.3.4", trusted=False) == "10.0.0.9"


PASSWORD = ("ann", "sésame")


def test_a_password_is_asked_for_everywhere(opened: Callable[..., str]) -> None:
    url = opened(password=PASSWORD)
    for path in ("", "info", "config", "page/index.html", "gradio_api/info", "pictures/" + "0" * 64):
        response = httpx.get(url + path)
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == 'Basic realm="chat"'
        assert httpx.get(url + path, auth=PASSWORD).status_code != 401
    assert httpx.post(f"{url}pictures", content=png()).status_code == 401
    for wrong in (("ann", "sesame"), ("bob", PASSWORD[1]), ("", "")):
        assert httpx.get(url, auth=wrong).status_code == 401


def test_a_program_gives_the_password_as_gradio_has_it(opened: Callable[..., str]) -> None:
    url = opened(password=PASSWORD)
    client = Client(url, auth=PASSWORD, verbose=False)
    assert client.predict({"text": "what is this?", "files": []}, max_new_tokens=20, api_name="/chat")
    for wrong in (("ann", "wrong"), None):
        with pytest.raises(AuthenticationError):
            Client(url, auth=wrong, verbose=False)
