"""Serves the page on a local address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from chat.engine import Engine
from chat.page import build_page

HERE = Path(__file__).resolve().parent
MAX_UPLOAD = "64mb"  # the server refuses more; what is between this and a picture's limit gets a message in the chat

# What the browser may fetch, and from where: an answer with a picture's address in it shall not call that address.
POLICY = "; ".join(f"{kind}-src 'self' data: blob:" for kind in ("img", "media", "font", "connect", "frame"))


def open_page(engine: Engine, *, host: str = "127.0.0.1", port: int | None = None) -> gr.Blocks:
    """Serves the page around an engine from threads of its own; without a port on the first free one from 7860 up.

    Raises:
        OSError: The address cannot be listened on.
    """
    page = build_page(engine)
    page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        show_error=True,
        max_file_size=MAX_UPLOAD,
        run_history=False,
        footer_links=["api", "settings"],
        theme=theme(),
        css_paths=HERE / "page.css",
        head=f"<script>{(HERE / 'page.js').read_text(encoding='utf-8')}</script>",
        app_kwargs={"middleware": [Middleware(StayHome)]},
    )
    return page


class StayHome:
    """ASGI middleware that sends POLICY with every response."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        async def send_with_policy(message: dict) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"content-security-policy", POLICY.encode())]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def theme() -> gr.themes.Base:
    """Fonts of the system: the page fetches nothing from elsewhere."""
    return gr.themes.Default(
        primary_hue="blue",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
    ).set(  # to 4.5:1 and better
        body_text_color_subdued="*neutral_600",
        block_info_text_color="*neutral_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
    )
