"""Serves the page and the API on an address: Gradio's queue and endpoints, and a page of our own in front of them.

Gradio brings what a model in a browser needs and a page does not show: the queue with its places, streams, cancelling,
the API that gradio_client speaks, and ZeroGPU. Its own page is not served.
"""

from __future__ import annotations

import os
from typing import Any

import gradio as gr
from gradio.components.api_component import Api

from chat import DAY
from chat.answers import Answers
from chat.bodies import Bodies
from chat.connections import MOST, Deadline, hurry
from chat.engine import AT_ONCE, Engine
from chat.gate import Access, Gate
from chat.question import MAX_NEW_TOKENS, RANGES
from chat.routes import Routes
from chat.waiting import QUEUE_LIMIT, Waiting

SESSIONS = 256  # of API clients, each with the texts of a chat; who was not heard of for the longest time goes first
IN_TURN: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": AT_ONCE}


class ChatServer(gr.Server):
    """Gradio's server behind our gate, with our routes before its own."""

    def __init__(self, engine: Engine, blocks: gr.Blocks, access: Access) -> None:
        super().__init__(title="chat", docs_url=None, redoc_url=None, openapi_url=None)
        self._engine = engine
        self._access = access
        (answer_fn,) = (number for number, function in blocks.fns.items() if function.api_name == "page_answer")
        self._blocks = blocks
        self.router.routes[:0] = Routes(engine, access, answer_fn).all()

    def build_middleware_stack(self) -> Any:
        """Ours around Gradio's, of which one lets other sites in that it takes for its own."""
        app = Waiting(super().build_middleware_stack(), self._blocks)
        return Deadline(Gate(Bodies(app, self._engine.context), self._access))


def open_server(
    engine: Engine, *, host: str = "127.0.0.1", port: int | None = None, access: Access | None = None
) -> gr.Blocks:
    """Serves an engine from threads of its own; without a port on the first free one from 7860 up.

    Raises:
        OSError: The address cannot be listened on.
    """
    access = access or Access()
    os.environ["FORWARDED_ALLOW_IPS"] = ""  # else uvicorn believes whoever asks from this machine
    blocks = build_api(engine)
    blocks.launch(
        _app=ChatServer(engine, blocks, access),
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        ssr_mode=False,
        show_error=False,
        run_history=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        state_session_capacity=SESSIONS,
        _frontend=False,
    )
    config = blocks.server.config
    config.http_protocol_class = hurry(config.http_protocol_class)
    config.limit_concurrency = MOST
    return blocks


def build_api(engine: Engine) -> gr.Blocks:
    """The two endpoints, `/chat` for programs and `page_answer` for the page."""
    answers = Answers(engine)
    with gr.Blocks(title=engine.repo.name, analytics_enabled=False) as blocks:
        button = gr.Button(visible=False)
        button.click(
            answers.page_answer,
            Api(None, {"type": "object"}, "question"),
            Api(None, {"type": "object"}, "event"),
            api_name="page_answer",
            api_visibility="private",
            **IN_TURN,
        )
        history = gr.State([], time_to_live=DAY)
        button.click(
            answers.chat,
            [_message(), history, *_settings(engine)],
            [gr.Textbox(visible=False, label="answer"), history],
            api_name="chat",
            api_description=Answers.chat.__doc__,
            **IN_TURN,
        )
    return blocks.queue(max_size=QUEUE_LIMIT)


def _message() -> Api:
    """The message of a chat, for clients the same as Gradio's own text box for texts and files."""
    box = gr.MultimodalTextbox(render=False)
    return Api(None, box.api_info(), "Your message")


def _settings(engine: Engine) -> list[gr.components.Component]:
    """The system prompt, then the fields of Sampling in their order, with the model's own defaults."""
    ours, most = engine.defaults, min(MAX_NEW_TOKENS, engine.context)
    sliders = [
        ("Max new tokens", (1, most), min(512, most), 1),
        ("Temperature", RANGES["temperature"], ours.temperature or 1.0, 0.05),
        ("Top-p", RANGES["top_p"], ours.top_p or 1.0, 0.01),
        ("Top-k", RANGES["top_k"], ours.top_k or 0, 1),
    ]
    return [
        gr.Textbox("", label="System prompt"),
        *(gr.Slider(*ends, value, step=step, label=label) for label, ends, value, step in sliders),
        gr.Checkbox(not ours.do_sample, label="Greedy"),
    ]
