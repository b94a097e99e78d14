"""Debian's Chromium for the browser tests, watched: what it complains about and where it calls fails the test.

find_chromium     its path; missing is an error in CI and a visible skip elsewhere
watched_browser   a browser whose pages may not log errors or call another host
ChatPage          the chat as its user handles it
"""

from __future__ import annotations

import base64
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
        self.textbox = page.locator("#message")
        expect(page.locator("#title")).not_to_be_empty()

        self.answers = page.locator("#thread .reply .answer")
        self.replies = page.locator("#thread .reply")
        self.questions = page.locator("#thread .question-text")
        self.pictures = page.locator("#thread .question .picture img")
        self.attached = page.locator("#attachments .chip")
        self.saved_chats = page.locator("#chat-list .item-title")
        self.status = page.locator("#status")
        self.context = page.locator("#context-text")
        self.stop = page.locator("#stop")
        self.send = page.locator("#send")
        self.toasts = page.locator("#toasts")

    def attach(self, *pictures: Path) -> None:
        """Adds files as the file dialogue does, and waits until they are uploaded."""
        before = self.attached.count()
        self.page.locator("#file").set_input_files(list(pictures))
        expect(self.attached).to_have_count(before + len(pictures))
        expect(self.page.locator(".chip.uploading")).to_have_count(0)

    def ask(self, text: str, *pictures: Path) -> None:
        """Asks by keyboard, after adding files."""
        if pictures:
            self.attach(*pictures)
        self.textbox.fill(text)
        self.textbox.press("Control+Enter")

    def set(self, **settings: str | int | bool) -> None:
        """Changes settings, by the ids of their fields."""
        self.page.get_by_label("Settings", exact=True).last.click()
        for name, value in settings.items():
            field = self.page.locator(f"dialog #{name.replace('_', '-') if isinstance(value, bool) else name}")
            if isinstance(value, bool):
                field.set_checked(value)
            else:
                field.fill(str(value))
        self.page.locator("dialog").get_by_label("Close").click()
        expect(self.page.locator("dialog")).to_have_count(0)

    def wait_for_answer(self, number: int) -> None:
        """Waits until there are so many answers and the last one is over."""
        expect(self.replies).to_have_count(number)
        expect(self.replies.last).to_have_attribute("aria-busy", "false")
        expect(self.send).to_be_visible()

    def action(self, name: str, place: int = -1) -> None:
        """Clicks a tool of an answer."""
        self.replies.nth(place).get_by_label(name).click()

    def edit(self, text: str, place: int = -1) -> None:
        """Edits a question and sends it."""
        self.page.locator("#thread .question").nth(place).get_by_label("Edit").click()
        self.page.locator(".editor textarea").fill(text)
        self.page.locator(".editor").get_by_role("button", name="Send").click()

    def chat_menu(self, title: str, item: str) -> None:
        """Chooses from the menu of a chat in the list."""
        self.page.get_by_label(f"More about {title}", exact=True).click()
        self.page.get_by_role("menuitem", name=item).click()

    def scrolled(self) -> float:
        return self.page.locator("#scroller").evaluate("scroller => scroller.scrollTop")

    def drop(self, path: Path, kind: str, event: str = "drop") -> bool:
        """Drops a file on the page, or pastes it; returns whether the page took it."""
        return self.page.evaluate(
            """([encoded, name, type, event]) => {
                const bytes = Uint8Array.from(atob(encoded), letter => letter.charCodeAt(0));
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], name, {type}));
                const options = {bubbles: true, cancelable: true};
                const given = event === "drop"
                    ? new DragEvent("drop", {dataTransfer: transfer, ...options})
                    : new ClipboardEvent("paste", {clipboardData: transfer, ...options});
                document.body.dispatchEvent(given);
                return given.defaultPrevented;
            }""",
            [base64.b64encode(path.read_bytes()).decode(), path.name, kind, event],
        )
