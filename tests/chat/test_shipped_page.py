"""The shipped checkpoint in the page, started as `make app` starts it: right answers about the example pictures.

Takes the README's screenshots on the way; SCREENSHOTS=docs/screenshots keeps them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from playwright.sync_api import Browser, expect

from chat.repo import ROOT
from tests.chat.helpers.browser import ChatPage, watched_browser, watched_context

EXAMPLES = ROOT / "examples"
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}

pytestmark = pytest.mark.skipif(not (ROOT / "config.json").is_file(), reason="no checkpoint at the root")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that `python app.py` prints."""
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("uploads")), "PYTHONUNBUFFERED": "1"}
    environment.pop("MODEL_ID", None)
    command = [sys.executable, "app.py"]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as server:
        printed = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in server.stdout)
        yield next(match[0] for match in printed if match) + "/"
        server.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with watched_browser() as browser:
        yield browser


def choose_greedy(chat: ChatPage) -> None:
    """Makes the answers repeatable."""
    chat.page.get_by_label("Greedy").check()
    expect(chat.status).to_contain_text("int4 weights in memory", timeout=60_000)


def take_screenshot(chat: ChatPage, name: str, tmp_path: Path) -> None:
    chat.page.mouse.move(0, 0)
    chat.page.wait_for_timeout(500)  # for the last transition to end
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    chat.page.screenshot(path=folder / f"{name}.png")


def test_examples_and_a_later_picture_on_a_desktop(browser: Browser, url: str, tmp_path: Path) -> None:
    with watched_context(browser, color_scheme="light", **DESKTOP) as context:
        chat = ChatPage(context.new_page(), url)
        choose_greedy(chat)
        chat.page.get_by_text("What animal is it?").click()
        chat.wait_for_answer(1)
        expect(chat.answers).to_contain_text("turtle")
        expect(chat.status).to_contain_text(re.compile(r"M parameters · [\d.]+ MB of int4 weights .* backend \S*cpu"))
        chat.ask("Is it a dog?")
        chat.wait_for_answer(2)
        expect(chat.answers.last).to_contain_text("No")
        chat.ask("How many shapes are there?", EXAMPLES / "shapes.png")
        chat.wait_for_answer(3)
        expect(chat.answers.last).to_contain_text("3 shapes")
        take_screenshot(chat, "desktop-light", tmp_path)


def test_reading_a_number_in_the_dark(browser: Browser, url: str, tmp_path: Path) -> None:
    with watched_context(browser, color_scheme="dark", **DESKTOP) as context:
        chat = ChatPage(context.new_page(), url)
        choose_greedy(chat)
        background = (
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(part => part < 60)"
        )
        assert chat.page.evaluate(background)
        chat.ask("What number is this?", EXAMPLES / "number.png")
        chat.wait_for_answer(1)
        expect(chat.answers).to_contain_text("2048")
        chat.ask("What is this?", EXAMPLES / "rocket.png")
        chat.wait_for_answer(2)
        expect(chat.answers.last).to_contain_text("rocket")
        take_screenshot(chat, "desktop-dark", tmp_path)


def test_reading_a_word_on_a_phone(browser: Browser, url: str, tmp_path: Path) -> None:
    with watched_context(browser, color_scheme="light", **PHONE) as context:
        chat = ChatPage(context.new_page(), url)
        chat.page.get_by_role("button", name="Toggle Sidebar").click()
        choose_greedy(chat)
        chat.page.get_by_role("button", name="Toggle Sidebar").click()
        chat.ask("What does it say?", EXAMPLES / "word.png")
        chat.wait_for_answer(1)
        expect(chat.answers).to_contain_text("STOP")
        take_screenshot(chat, "phone", tmp_path)


def test_the_readmes_client_example(url: str) -> None:
    client = Client(url, verbose=False)
    message = {"text": "What animal is it?", "files": [handle_file(EXAMPLES / "turtle.png")]}
    assert "turtle" in client.predict(message, greedy=True, api_name="/chat")
    job = client.submit({"text": "Is it a dog?", "files": []}, greedy=True, api_name="/chat")
    assert [update for update in job][-1].startswith("No")
