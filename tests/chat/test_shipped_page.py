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
from PIL import Image
from playwright.sync_api import Browser, expect

from chat.repo import ROOT
from tests.chat.helpers.browser import ChatPage, watched_browser, watched_context

EXAMPLES = ROOT / "examples"
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
WIDE = {"viewport": {"width": 1920, "height": 1080}}
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}

# What the small checkpoint cannot write: for the screenshot alone, put into the page as an imported chat is.
SHOWN = r'''The roots of $ax^2 + bx + c = 0$ are where the parabola meets the axis:

$$
x = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}
$$

1. Compute the **discriminant** $\Delta = b^2 - 4ac$.
2. Below zero, there are no *real* roots.

```python
import math

def roots(a: float, b: float, c: float) -> tuple[float, float]:
    """The two real roots, the smaller one first."""
    d = math.sqrt(b * b - 4 * a * c)  # fails below zero
    return (-b - d) / (2 * a), (-b + d) / (2 * a)
```

| a | b | c | roots |
|--:|--:|--:|---|
| 1 | -3 | 2 | 1 and 2 |
| 1 | 0 | -4 | -2 and 2 |
'''
ADD_CHAT = """async ([question, answer]) => {
    const {addMessage, ROOT} = await import("/page/script/chats.js");
    const id = "00112233445566778899aabb";
    const asked = await addMessage(id, {parent: ROOT, role: "user", text: question}, null);
    await addMessage(id, {parent: asked.id, role: "assistant", text: answer}, null);
    location.hash = `#/chat/${id}`;
}"""

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
    chat.set(greedy=True)
    expect(chat.page.locator("#start")).not_to_contain_text("…")


def take_screenshot(chat: ChatPage, name: str, tmp_path: Path) -> None:
    """Keeps what is on the screen, in 256 colors where that is smaller."""
    chat.page.mouse.move(0, 0)
    chat.page.wait_for_timeout(500)  # for the last transition to end
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    chat.page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


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
        chat.page.set_viewport_size(WIDE["viewport"])
        take_screenshot(chat, "wide", tmp_path)


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
        chat.page.locator("#thread .picture").last.click()
        expect(chat.page.get_by_role("dialog").locator("img")).to_be_visible()
        take_screenshot(chat, "viewer", tmp_path)


def test_maths_and_code(browser: Browser, url: str, tmp_path: Path) -> None:
    with watched_context(browser, color_scheme="light", viewport={"width": 1280, "height": 1000}) as context:
        chat = ChatPage(context.new_page(), url)
        chat.page.evaluate(ADD_CHAT, ["How do I solve a quadratic equation?", SHOWN])
        expect(chat.answers.locator("math")).to_have_count(3)
        expect(chat.answers.locator(".hljs-keyword").first).to_be_visible()
        take_screenshot(chat, "maths-and-code", tmp_path)


def test_reading_a_word_on_a_phone(browser: Browser, url: str, tmp_path: Path) -> None:
    with watched_context(browser, color_scheme="light", **PHONE) as context:
        chat = ChatPage(context.new_page(), url)
        choose_greedy(chat)
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
