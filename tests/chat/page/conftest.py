"""Tabs of Chromium with the stub's chat in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import Browser

from tests.chat.helpers.browser import ChatPage, watched_browser, watched_context

DESKTOP = {"width": 1280, "height": 860}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with watched_browser() as browser:
        yield browser


@pytest.fixture
def open_tab(browser: Browser, page: gr.Blocks) -> Iterator[Callable[..., ChatPage]]:
    """Opens the chat in a browser profile of its own."""
    with ExitStack() as contexts:

        def open_tab(**options: object) -> ChatPage:
            context = contexts.enter_context(watched_context(browser, **{"viewport": DESKTOP, **options}))
            return ChatPage(context.new_page(), page.local_url)

        yield open_tab


@pytest.fixture
def chat(open_tab: Callable[..., ChatPage]) -> ChatPage:
    return open_tab()


@pytest.fixture
def red(stub_folder: Path) -> Path:
    return stub_folder / "examples" / "red.png"
