"""The page around an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.events import Dependency

from chat.engine import AT_ONCE, Engine
from chat.handlers import IDLE, Chat, status_html
from chat.messages import notice, open_chat

UPLOADS_KEPT = 24 * 3600  # seconds
QUEUE_LIMIT = 16  # questions waiting
ASIDE: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
IN_TURN: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": AT_ONCE}


def build_page(engine: Engine) -> gr.Blocks:
    """Builds the page and the endpoint `/chat` around an engine; page.js has the functions that `js` names."""
    with gr.Blocks(
        title=engine.repo.name, fill_height=True, analytics_enabled=False, delete_cache=(3600, UPLOADS_KEPT)
    ) as page:
        parts = _lay_out(engine)
        chat = Chat(engine, parts.chatbot.examples)
        answers = _wire_questions(page, chat, parts)
        _wire_chats(page, chat, parts, answers)
        _wire_endpoint(chat, parts)
    return page.queue(max_size=QUEUE_LIMIT)


@dataclass(frozen=True)
class Parts:
    """What is on the page. The chat's id and the chat to open are in the page, not in the session: when an answer ends,
    the chat and its id come from the same moment."""

    chat_id: gr.Textbox
    opened: gr.Textbox
    sidebar: gr.Sidebar
    new_chat: gr.Button
    chat_list: gr.Dataset
    settings: list[gr.components.Component]
    status: gr.HTML
    chatbot: gr.Chatbot
    message: gr.MultimodalTextbox


def _lay_out(engine: Engine) -> Parts:
    chat_id, opened = gr.Textbox(visible=False), gr.Textbox("", visible=False)
    with gr.Sidebar(open=False, width=340) as sidebar:
        new_chat = gr.Button("New chat", variant="primary", elem_id="new-chat")
        chat_list = gr.Dataset(
            components=[gr.Textbox(visible=False)],
            samples=[],
            type="index",
            layout="table",
            label="Earlier chats, kept in this browser",
            elem_id="chat-list",
        )
        with gr.Accordion("Settings", open=True):
            settings = lay_out_settings(engine)
    return Parts(
        chat_id,
        opened,
        sidebar,
        new_chat,
        chat_list,
        settings,
        gr.HTML(status_html(engine), padding=False),
        _lay_out_chatbot(engine),
        _lay_out_message(engine),
    )


def lay_out_settings(engine: Engine) -> list[gr.components.Component]:
    """The system prompt, then the fields of Sampling in their order, with the model's own defaults."""
    ours, most = engine.defaults, min(8192, engine.context)
    sliders = [
        ("Max new tokens", 1, most, min(512, most), 1, "An answer is cut off at this length."),
        ("Temperature", 0.05, 2, ours.temperature or 1.0, 0.05, "Lower is steadier, higher is freer."),
        ("Top-p", 0.05, 1, ours.top_p or 1.0, 0.01, "Picks among the likeliest tokens of this total."),
        ("Top-k", 0, 200, ours.top_k or 0, 1, "Picks among this many likeliest tokens; 0 is all."),
    ]
    return [
        gr.Textbox("", label="System prompt", lines=2, info="What the model reads before your first message."),
        *(
            gr.Slider(low, high, value, step=step, label=label, info=info)
            for label, low, high, value, step, info in sliders
        ),
        gr.Checkbox(not ours.do_sample, label="Greedy", info="Always the likeliest token: same question, same answer."),
    ]


def _lay_out_chatbot(engine: Engine) -> gr.Chatbot:
    chatbot = gr.Chatbot(
        show_label=False,
        label="Chat",
        scale=1,
        buttons=["copy", "copy_all"],
        editable="user",
        group_consecutive_messages=False,  # a bubble with a picture and a text could not be edited
        examples=engine.repo.examples() if engine.sees else [],
        placeholder="### Try one of these, or drop a picture of your own" if engine.sees else "### Ask something",
        elem_id="chat",
    )
    # The examples' files are copies in the upload folder by now, which cleaning shall spare.
    chatbot.keep_in_cache.update(file["path"] for example in chatbot.examples for file in example["files"])
    return chatbot


def _lay_out_message(engine: Engine) -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        show_label=False,
        label="Your message",
        placeholder="Ask, with or without a picture" if engine.sees else "Type a question",
        sources=["upload"] if engine.sees else [],
        file_types=["image"],
        file_count="multiple",
        max_plain_text_length=1_000_000,  # a long text shall stay a text, not become a file
        elem_id="message",
    )


def _wire_questions(page: gr.Blocks, chat: Chat, parts: Parts) -> list[Dependency]:
    """What happens with a question, however it is asked; returns the answering events, for others to cancel."""

    def refuse(history: list[dict]) -> Any:
        """Says in the chat that the queue was full, if that was it; a stop needs no words."""
        waiting = len(page._queue)
        busy = notice(f"The queue is full, with {waiting} waiting. Please try again in a moment.")
        return [*history, busy] if waiting >= page._queue.max_size else gr.skip()

    chatbot, message = parts.chatbot, parts.message
    current = [chatbot, parts.chat_id]
    save: dict[str, Any] = {"fn": None, "inputs": current, "outputs": parts.chat_list, "js": "saveChat", **ASIDE}
    answers = []
    for asked in (
        message.submit(chat.ask, [message, chatbot], [chatbot, message], **ASIDE),
        chatbot.example_select(chat.ask_example, chatbot, [chatbot, message], **ASIDE),
        chatbot.retry(chat.retry, chatbot, [chatbot, message], **ASIDE),
        chatbot.edit(chat.edit, chatbot, [chatbot, message], **ASIDE),
    ):
        answer = asked.success(
            chat.respond,
            [chatbot, *parts.settings],
            [chatbot, parts.status],
            show_progress="minimal",
            show_progress_on=chatbot,
            api_visibility="private",
            **IN_TURN,
        )
        asked.success(**save)
        # A stop counts as both: this may come twice. A full queue counts as a failure only.
        for over in (answer.then, answer.failure(refuse, chatbot, chatbot, **ASIDE).then):
            over(**save)
            over(lambda: gr.MultimodalTextbox(**IDLE), None, message, **ASIDE).then(js="focusMessage", **ASIDE)
        answers.append(answer)
    message.stop(None, cancels=answers, api_visibility="private")
    return answers


def _wire_chats(page: gr.Blocks, chat: Chat, parts: Parts, answers: list[Dependency]) -> None:
    """New, earlier and forgotten chats, and what a page begins with."""
    timer = gr.Timer(0.5)
    is_wide = gr.Checkbox(visible=False)
    current = [parts.chatbot, parts.chat_id]
    load_status: dict[str, Any] = {"fn": chat.load_status, "inputs": None, "outputs": [parts.status, timer], **ASIDE}
    open_in_page: dict[str, Any] = {"fn": open_chat, "inputs": parts.opened, "outputs": current, **ASIDE}
    # First stop, then leave: else the answer's last update could bring the old chat back.
    for leave, inputs, js in (
        (parts.new_chat.click, current, "newChat"),
        (parts.chat_list.click, [*current, parts.chat_list], "openChat"),
        (parts.chatbot.clear, current, "forgetChat"),
    ):
        left = leave(None, inputs, [parts.opened, parts.chat_list], js=js, cancels=answers, api_visibility="private")
        left.then(**open_in_page).then(js="focusMessage", **ASIDE)
        left.then(**load_status)
    page.load(**open_in_page).then(js="focusMessage", **ASIDE)
    page.load(None, None, parts.chat_list, js="listChats", **ASIDE)
    gr.on([page.load, timer.tick], **load_status)
    fit: dict[str, Any] = {"fn": lambda wide: gr.Sidebar(open=wide), "inputs": is_wide, "outputs": parts.sidebar}
    gr.on([page.load, parts.new_chat.click, parts.chat_list.click], **fit, js="isWide", **ASIDE)


def _wire_endpoint(chat: Chat, parts: Parts) -> None:
    history, answer = gr.State([]), gr.Textbox(visible=False, label="answer")
    gr.Button(visible=False).click(
        chat.endpoint,
        [parts.message, history, *parts.settings],
        [answer, history],
        api_name="chat",
        api_description=Chat.endpoint.__doc__,
        **IN_TURN,
    )
