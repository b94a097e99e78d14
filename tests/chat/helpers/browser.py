"""Debian's Chromium for the browser tests, watched: what it complains about and where it calls fails the test.

find_chromium     its path; missing is an error in CI and a visible skip elsewhere
watched_browser   a browser whose pages may not log errors or call another host
ChatPage          the chat as its user handles it
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

PATIENCE = 60_000  # milliseconds, for a busy machine
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_chromium() -> str:
    """Finds the browser.

    Raises:
        pytest.skip.Exception: It is missing, outside CI.
        pytest.fail.Exception: It is missing, in CI.
    """
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        missing = "Chromium is missing: the page was not tested in a browser. Debian: apt-get install chromium"
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return path


class Watch:
    """Collects what a page must not do."""

    def __init__(self, allowed_complaint: str | None) -> None:
        self.complaints: list[str] = []
        self.allowed = allowed_complaint

    def on_console(self, message: ConsoleMessage) -> None:
        allowed = self.allowed is not None and re.search(self.allowed, message.text)
        if message.type in ("error", "warning") and not allowed:
            self.complaints.append(f"console {message.type}: {message.text}")

    def on_error(self, error: Exception) -> None:
        self.complaints.append(f"uncaught: {error}")

    def on_request(self, request: Request) -> None:
        url = urlparse(request.url)
        if url.scheme not in ("data", "blob") and url.hostname != "127.0.0.1":
            self.complaints.append(f"outside call: {request.url}")

    def on_blocked(self, request: Request) -> None:
        """A call that the page's own policy stopped was none."""
        if request.failure == "csp":
            self.complaints.remove(f"outside call: {request.url}")


@contextmanager
def watched_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@contextmanager
def watched_context(
    browser: Browser, *, allowed_complaint: str | None = None, **options: object
) -> Iterator[BrowserContext]:
    """A fresh profile of the browser; `allowed_complaint` is a pattern of the errors that its test is about.

    Raises:
        AssertionError: At the end, if a page logged an error or warning, or called another host.
    """
    watch = Watch(allowed_complaint)
    context = browser.new_context(**options)
    context.on("console", watch.on_console)
    context.on("weberror", lambda error: watch.on_error(error.error))
    context.on("request", watch.on_request)
    context.on("requestfailed", watch.on_blocked)
    context.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    yield context
    context.close()
    assert not watch.complaints, "\n".join(watch.complaints)


class ChatPage:
    """One tab with the chat in it."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.page.goto(url)
        self.textbox = page.locator("#message textarea")
        expect(self.textbox).to_be_enabled()

        self.answers = page.locator("#chat [data-testid=bot]")
        self.questions = page.locator("#chat [data-testid=user]")
        self.saved_chats = page.locator("#chat-list td, #chat-list button.gallery-item")
        self.status = page.locator("#status")
        self.stop = page.locator("#message").get_by_label("Stop")
        self.submit = page.locator("#message").get_by_label("Submit")

    def ask(self, text: str, *pictures: Path) -> None:
        """Asks by keyboard, after adding files as the file dialogue does."""
        if pictures:
            self.page.locator("#message input[type=file]").set_input_files(list(pictures))
            expect(self.page.locator("#message .thumbnail-item")).to_have_count(len(pictures))
        self.textbox.fill(text)
        self.textbox.press("Enter")

    def limit_tokens(self, count: int) -> None:
        """Sets the longest answer."""
        self.page.get_by_label("number input for Max new tokens").fill(str(count))

    def wait_for_answer(self, number: int) -> None:
        """Waits until there are so many answers and the last one is complete."""
        expect(self.answers).to_have_count(number, timeout=PATIENCE)
        expect(self.submit).to_be_visible(timeout=PATIENCE)
