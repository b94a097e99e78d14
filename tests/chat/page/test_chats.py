"""Chats that stay: addresses, reloads, restarts, tabs, deletion, export."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import Browser, expect

from chat.engine import Engine
from chat.server import open_server
from tests.chat.helpers.browser import ChatPage, watched_context
from tests.chat.helpers.waiting import steps_until_still, until

SOME = re.compile(r"\S{5}")
LONG = "a long answer " * 30

RECORDS = """async () => {
    const opened = indexedDB.open("gemma3-int4-chat");
    const database = await new Promise((resolve) => { opened.onsuccess = () => resolve(opened.result) });
    const records = {};
    for (const name of ["chats", "messages", "pictures", "drafts"]) {
        const all = database.transaction(name).objectStore(name).getAll();
        records[name] = await new Promise((resolve) => { all.onsuccess = () => resolve(all.result) });
    }
    database.close();
    return records;
}"""
NOTHING = {"chats": [], "messages": [], "pictures": [], "drafts": []}


def test_a_chat_has_an_address_and_survives_a_reload(chat: ChatPage, echo: list[str], red: Path) -> None:
    chat.ask("what is this?", red)
    chat.wait_for_answer(1)
    assert re.search(r"#/chat/[0-9a-f]{24}$", chat.page.url)
    assert chat.page.title().startswith("what is this?")
    chat.page.reload()
    expect(chat.questions).to_have_text("what is this?")
    expect(chat.answers).to_have_text("what is this?")
    expect(chat.pictures).to_have_js_property("complete", True)
    assert chat.pictures.evaluate("image => image.naturalWidth") > 0
    chat.page.locator("#new-chat").click()
    expect(chat.questions).to_have_count(0)
    chat.page.go_back()
    expect(chat.questions).to_have_text("what is this?")
    chat.page.goto(f"{chat.page.url.split('#')[0]}#/chat/{'0' * 24}")
    expect(chat.toasts).to_contain_text("not in this browser")


def test_a_picture_that_the_server_has_dropped_is_sent_again(
    chat: ChatPage, echo: list[str], red: Path, upload_folder: Path
) -> None:
    chat.ask("what is this?", red)
    chat.wait_for_answer(1)
    dropped = [path for path in upload_folder.rglob("*") if path.is_file()]
    assert dropped
    for path in dropped:
        path.unlink()
    chat.page.reload()
    expect(chat.questions).to_have_text("what is this?")
    chat.ask("and now?")
    chat.wait_for_answer(2)
    expect(chat.answers.last).to_have_text("and now?")
    assert echo[-1].count("<start_of_image>") == 1


def test_a_reload_in_mid_answer_loses_nothing_and_goes_on(
    open_tab: Callable[..., ChatPage], echo: list[str], red: Path
) -> None:
    chat = open_tab(allowed_complaint="AbortError|network|ERR_")
    chat.ask(LONG, red)
    expect(chat.answers).to_contain_text("a long answer a long answer a long")
    part = chat.answers.inner_text()
    chat.page.reload()
    expect(chat.questions).to_have_text(LONG.strip())
    expect(chat.answers).to_contain_text(part[: len(part) // 2])
    chat.wait_for_answer(1)
    assert len(chat.answers.inner_text()) > len(part)
    expect(chat.pictures).to_have_count(1)
    expect(chat.page.get_by_text("Interrupted")).to_have_count(0)


def test_a_draft_with_its_pictures_survives(chat: ChatPage, echo: list[str], red: Path) -> None:
    chat.attach(red)
    chat.textbox.fill("half a thought")
    until(lambda: [draft["text"] for draft in chat.page.evaluate(RECORDS)["drafts"]] == ["half a thought"])
    chat.page.reload()
    expect(chat.textbox).to_have_value("half a thought")
    expect(chat.attached).to_have_count(1)
    chat.textbox.press("Enter")
    chat.wait_for_answer(1)
    chat.textbox.fill("another")
    chat.page.locator("#new-chat").click()
    expect(chat.textbox).to_have_value("")
    chat.saved_chats.click()
    expect(chat.textbox).to_have_value("another")


def test_two_tabs_share_their_chats_and_their_answers(chat: ChatPage, page: gr.Blocks, echo: list[str]) -> None:
    other = ChatPage(chat.page.context.new_page(), page.local_url)
    other.ask("in the other tab")
    other.wait_for_answer(1)
    expect(chat.saved_chats).to_have_text(["in the other tab"])
    chat.ask("in this tab")
    chat.wait_for_answer(1)
    expect(other.saved_chats).to_have_text(["in this tab", "in the other tab"])
    other.page.goto(chat.page.url)
    other.page.reload()
    expect(other.answers).to_have_text("in this tab")
    other.ask(LONG)
    expect(chat.answers).to_have_count(2)
    expect(chat.answers.last).to_contain_text("a long answer")
    expect(chat.stop).to_be_visible()
    chat.stop.click()  # what the other tab is writing
    expect(other.replies.last).to_contain_text("Stopped.")
    expect(chat.replies.last).to_contain_text("Stopped.")
    assert len(echo) == 3


def test_two_tabs_that_ask_at_once_make_branches(chat: ChatPage, page: gr.Blocks, echo: list[str]) -> None:
    chat.ask("the beginning")
    chat.wait_for_answer(1)
    other = ChatPage(chat.page.context.new_page(), chat.page.url)
    expect(other.answers).to_have_count(1)
    chat.ask("from here")
    chat.wait_for_answer(2)
    other.edit("another beginning", 0)
    other.wait_for_answer(1)
    chat.page.get_by_label("Previous question").click()
    expect(chat.questions).to_have_text(["the beginning", "from here"])


def test_a_server_that_ends_and_comes_back(browser: Browser, engine: Engine, echo: list[str]) -> None:
    server = open_server(engine)
    port = int(server.local_url.rstrip("/").rsplit(":", 1)[1])
    with watched_context(browser, allowed_complaint="ERR_|Failed to load") as context:
        chat = ChatPage(context.new_page(), server.local_url)
        chat.ask(LONG)
        expect(chat.answers).to_contain_text("a long answer a long")
        server.close()
        expect(chat.page.locator("#banner")).to_contain_text("cannot be reached")
        part = chat.answers.inner_text()
        chat.textbox.fill("typed meanwhile")
        again = open_server(engine, port=port)
        chat.wait_for_answer(1)
        expect(chat.page.locator("#banner")).to_be_hidden()
        assert chat.answers.inner_text().startswith(part[: len(part) // 2])
        assert len(chat.answers.inner_text()) > len(part)
        expect(chat.textbox).to_have_value("typed meanwhile")
        again.close()


def test_a_question_asked_offline_waits(open_tab: Callable[..., ChatPage], echo: list[str], red: Path) -> None:
    chat = open_tab(allowed_complaint="ERR_|Failed to load")
    chat.page.context.set_offline(True)
    expect(chat.page.locator("#banner")).to_contain_text("cannot be reached")
    chat.page.locator("#file").set_input_files(red)
    expect(chat.attached).to_have_count(1)
    chat.ask("what is this?")
    expect(chat.replies).to_contain_text("trying again")
    chat.page.context.set_offline(False)
    chat.wait_for_answer(1)
    expect(chat.answers).to_have_text("what is this?")
    assert echo[-1].count("<start_of_image>") == 1


def test_an_answer_goes_on_in_another_chat(chat: ChatPage, echo: list[str]) -> None:
    chat.ask(LONG)
    expect(chat.answers).to_contain_text("a long")
    chat.page.locator("#new-chat").click()
    expect(chat.questions).to_have_count(0)
    expect(chat.page.locator("#chat-list .writing")).to_be_visible()
    chat.ask("short")
    chat.wait_for_answer(1)
    expect(chat.answers).to_have_text("short")
    expect(chat.page.locator("#chat-list .writing")).to_have_count(0)
    chat.saved_chats.last.click()
    expect(chat.answers).to_have_text(LONG.strip())


def test_titles_differ_and_can_be_changed(chat: ChatPage, echo: list[str], red: Path) -> None:
    for _ in range(2):
        chat.ask("what is this?", red)
        chat.wait_for_answer(1)
        chat.page.locator("#new-chat").click()
    expect(chat.saved_chats).to_have_count(2)
    titles = chat.saved_chats.all_inner_texts()
    assert len(set(titles)) == 2
    assert all(title.startswith("what is this?") for title in titles)
    expect(chat.page.locator("#chat-list li img")).to_have_count(2)
    expect(chat.page.locator("#chat-list li time").first).to_have_text(re.compile(r"\d"))
    chat.chat_menu("what is this?", "Rename")
    chat.page.keyboard.type("My red picture")
    chat.page.keyboard.press("Enter")
    expect(chat.saved_chats.last).to_have_text("My red picture")
    chat.page.reload()
    expect(chat.saved_chats.last).to_have_text("My red picture")


def test_search_finds_titles_and_answers(chat: ChatPage, echo: list[str]) -> None:
    for text in ("about apples", "about pears"):
        chat.ask(text)
        chat.wait_for_answer(1)
        chat.page.locator("#new-chat").click()
        expect(chat.questions).to_have_count(0)
    chat.page.locator("#search").fill("PEARS")
    expect(chat.saved_chats).to_have_text(["about pears"])
    chat.page.locator("#search").fill("plums")
    expect(chat.page.get_by_text("No chat has this in it.")).to_be_visible()
    chat.page.locator("#search").fill("")
    expect(chat.saved_chats).to_have_count(2)


def test_deleted_is_deleted_and_can_be_undone(chat: ChatPage, echo: list[str], red: Path) -> None:
    chat.ask("what is this?", red)
    chat.wait_for_answer(1)
    chat.chat_menu("what is this?", "Delete")
    expect(chat.saved_chats).to_have_count(0)
    expect(chat.questions).to_have_count(0)
    assert chat.page.evaluate(RECORDS) == NOTHING
    chat.page.get_by_role("button", name="Undo").click()
    expect(chat.questions).to_have_text("what is this?")
    assert chat.pictures.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 0
    chat.chat_menu("what is this?", "Delete")
    expect(chat.saved_chats).to_have_count(0)  # it is deleted; a reload in mid click would keep it
    chat.page.reload()
    expect(chat.page.get_by_text("Chats are kept here")).to_be_visible()
    assert chat.page.evaluate(RECORDS) == NOTHING


def test_a_chat_deleted_in_mid_answer_stops_and_stays_away(chat: ChatPage, slow_steps: list[float]) -> None:
    chat.ask("go on and on")
    expect(chat.answers).to_have_text(SOME)
    chat.chat_menu("go on and on", "Delete")
    assert steps_until_still(slow_steps) < 500
    chat.page.wait_for_timeout(1000)
    expect(chat.saved_chats).to_have_count(0)
    assert chat.page.evaluate(RECORDS) == NOTHING


def test_deleted_in_another_tab_in_mid_answer(chat: ChatPage, page: gr.Blocks, slow_steps: list[float]) -> None:
    chat.ask("go on and on")
    expect(chat.answers).to_have_text(SOME)
    other = ChatPage(chat.page.context.new_page(), page.local_url)
    other.chat_menu("go on and on", "Delete")
    expect(chat.questions).to_have_count(0)
    assert steps_until_still(slow_steps) < 500
    chat.page.wait_for_timeout(600)
    assert chat.page.evaluate(RECORDS) == NOTHING


def test_export_and_import(
    chat: ChatPage, open_tab: Callable[..., ChatPage], echo: list[str], red: Path, tmp_path: Path
) -> None:
    chat.ask("what is this?", red)
    chat.wait_for_answer(1)
    chat.edit("what is that?")
    expect(chat.answers).to_have_text("what is that?")
    chat.wait_for_answer(1)
    with chat.page.expect_download() as download:
        chat.page.get_by_label("Export all chats").click()
    path = tmp_path / "chats.json"
    download.value.save_as(path)
    assert json.loads(path.read_text())["format"] == "gemma3-int4-chats"

    other = open_tab()
    other.page.locator("#import-file").set_input_files(path)
    expect(other.toasts).to_contain_text("One chat is imported.")
    other.saved_chats.click()
    expect(other.answers).to_have_text("what is that?")
    expect(other.page.locator(".branches")).to_have_text("2/2")
    other.page.get_by_label("Previous question").click()
    expect(other.answers).to_have_text("what is this?")
    assert other.pictures.evaluate("async image => { await image.decode(); return image.naturalWidth }") > 0
    other.ask("go on")
    other.wait_for_answer(2)
    assert echo[-1].count("<start_of_image>") == 1

    chat.page.locator("#import-file").set_input_files(path)  # where the chat is already: a second one
    expect(chat.saved_chats).to_have_count(2)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not JSON"),
        ("[]", "not a file of exported chats"),
        ('{"format": "gemma3-int4-chats", "version": 9, "chats": []}', "version 9"),
    ],
)
def test_a_file_of_something_else_is_refused(chat: ChatPage, tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "file.json").write_text(content)
    chat.page.locator("#import-file").set_input_files(tmp_path / "file.json")
    expect(chat.toasts).to_contain_text(told)
    assert chat.page.evaluate(RECORDS) == NOTHING


def test_an_imported_file_cannot_act(chat: ChatPage, tmp_path: Path) -> None:
    message = {"id": "<img>", "parent": "root", "role": "assistant", "text": "<b onclick=x>hi</b>", "state": "writing"}
    pictures = [{"id": "p", "name": "x", "blob": "data:text/html;base64,PHNjcmlwdD4="}]
    question = {"id": "q", "parent": "<img>", "role": "user", "text": "<i>", "pictures": ["p", 5, None]}
    evil = {"id": "../x", "title": "<img src=x>", "chosen": {"root": "<img>"}, "messages": [message, question]}
    data = {"format": "gemma3-int4-chats", "version": 1, "chats": [{**evil, "pictures": pictures, "settings": 7}]}
    (tmp_path / "evil.json").write_text(json.dumps(data))
    chat.page.locator("#import-file").set_input_files(tmp_path / "evil.json")
    expect(chat.saved_chats).to_have_text("<img src=x>")
    chat.saved_chats.click()
    expect(chat.answers).to_have_text("<b onclick=x>hi</b>")
    expect(chat.questions).to_have_text("<i>")
    expect(chat.page.locator("#thread img[src]")).to_have_count(0)
    until(lambda: "/chat/.." not in chat.page.url)
