"""Reading while it writes, going on, other answers, other questions."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import expect

from chat.engine import Engine
from tests.chat.helpers.browser import ChatPage
from tests.chat.helpers.waiting import until


def start_long_answer(chat: ChatPage, lines: int = 60, seen: int = 26) -> None:
    """Asks for so many lines, and waits until some of them are there; the stub's context holds about 80."""
    chat.ask("\n\n".join(f"line {number} of a long answer" for number in range(lines)))
    expect(chat.answers.locator("p").nth(seen)).to_be_visible()


def test_a_small_scroll_up_stays_and_a_button_leads_to_the_end(chat: ChatPage, echo: list[str]) -> None:
    start_long_answer(chat)
    before = chat.scrolled()
    chat.page.wait_for_timeout(700)
    assert chat.scrolled() > before  # it follows
    chat.page.mouse.move(640, 400)
    chat.page.mouse.wheel(0, -30)
    chat.page.wait_for_timeout(300)
    place, height = chat.scrolled(), chat.page.locator("#thread").bounding_box()["height"]
    chat.page.wait_for_timeout(1500)
    assert chat.page.locator("#thread").bounding_box()["height"] > height + 20  # it has grown
    assert chat.scrolled() == place
    chat.page.get_by_label("To the end").click()
    expect(chat.page.get_by_label("To the end")).to_be_hidden()
    place = chat.scrolled()
    chat.page.wait_for_timeout(700)
    assert chat.scrolled() > place  # and follows again
    chat.stop.click()


def test_keys_and_the_scrollbar_hold_too(chat: ChatPage, echo: list[str]) -> None:
    start_long_answer(chat)
    chat.page.locator("#scroller").focus()
    chat.page.keyboard.press("PageUp")
    chat.page.wait_for_timeout(400)
    place = chat.scrolled()
    chat.page.wait_for_timeout(800)
    assert chat.scrolled() == place
    chat.page.locator("#scroller").evaluate("scroller => { scroller.scrollTop -= 5 }")
    chat.page.wait_for_timeout(600)
    assert chat.scrolled() == place - 5
    chat.stop.click()


def test_typing_and_attaching_during_an_answer(chat: ChatPage, echo: list[str], red: Path) -> None:
    start_long_answer(chat, 20, 2)
    chat.attach(red)
    chat.textbox.press_sequentially("what is this?")
    chat.textbox.press("Enter")
    expect(chat.page.locator("#hint")).to_have_text("Sent once the answer is complete")
    expect(chat.textbox).to_have_value("what is this?")
    chat.wait_for_answer(2)
    expect(chat.answers.last).to_have_text("what is this?")
    expect(chat.questions).to_have_count(2)
    assert echo[-1].count("<start_of_image>") == 1
    expect(chat.textbox).to_have_value("")


def test_an_answer_at_its_limit_goes_on(chat: ChatPage, engine: Engine) -> None:
    chat.set(max_new_tokens=12, greedy=True)
    chat.ask("what is this?")
    chat.wait_for_answer(1)
    part = chat.answers.text_content()
    expect(chat.replies).to_contain_text("Cut off at the longest answer")
    chat.page.get_by_role("button", name="Continue").click()
    expect(chat.page.locator(".facts")).to_contain_text("24 tokens")
    whole = chat.answers.text_content()
    assert whole.startswith(part.rstrip())
    assert len(whole) > len(part)
    chat.page.locator("#new-chat").click()
    chat.set(max_new_tokens=24)
    chat.ask("what is this?")
    chat.wait_for_answer(1)
    expect(chat.answers).to_have_text(whole)  # what it would have been in one go


def test_a_stopped_answer_goes_on(chat: ChatPage, echo: list[str]) -> None:
    start_long_answer(chat, 30, 8)
    chat.stop.click()
    expect(chat.replies).to_contain_text("Stopped.")
    part = chat.answers.text_content()
    chat.page.get_by_role("button", name="Continue").click()
    chat.wait_for_answer(1)
    assert chat.answers.text_content().startswith(part[:-40])
    assert len(chat.answers.text_content()) > len(part)


def test_retry_keeps_the_old_answer(chat: ChatPage, slow_steps: list[float]) -> None:
    chat.set(max_new_tokens=6)
    chat.ask("what is this?")
    chat.wait_for_answer(1)
    first = chat.answers.text_content()
    expect(chat.page.locator(".branches")).to_have_count(0)
    chat.action("Retry")
    expect(chat.page.locator(".branches")).to_have_text("2/2")
    chat.wait_for_answer(1)
    second = chat.answers.text_content()
    chat.action("Previous answer")
    expect(chat.page.locator(".branches")).to_have_text("1/2")
    expect(chat.answers).to_have_text(first)
    chat.page.reload()
    expect(chat.page.locator(".branches")).to_have_text("1/2")  # which one is shown is kept
    chat.action("Next answer")
    expect(chat.answers).to_have_text(second)
    expect(chat.replies.get_by_label("Next answer")).to_be_disabled()


def test_an_answer_without_a_word_can_be_asked_for_again(
    chat: ChatPage, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end_at_once(*, input_ids: torch.Tensor, streamer: Any, **_: Any) -> None:
        streamer.put(input_ids)
        streamer.put(torch.tensor(engine.model.generation_config.eos_token_id[:1]))

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "generate", end_at_once)
        chat.ask("say nothing")
        chat.wait_for_answer(1)
        expect(chat.answers).to_have_text("")
    chat.action("Retry")
    expect(chat.page.locator(".branches")).to_have_text("2/2")


def test_an_edit_is_a_branch_with_its_pictures(chat: ChatPage, echo: list[str]) -> None:
    chat.page.get_by_text("Is this red?").click()
    chat.wait_for_answer(1)
    expect(chat.answers).to_have_text("Is this red?")
    expect(chat.pictures).to_have_count(1)
    chat.ask("and then?")
    chat.wait_for_answer(2)

    chat.edit("Is this blue?", 0)
    expect(chat.answers).to_have_text(["Is this blue?"])
    chat.wait_for_answer(1)
    expect(chat.questions).to_have_text(["Is this blue?"])
    expect(chat.pictures).to_have_count(1)
    expect(chat.page.locator(".branches")).to_have_text("2/2")

    chat.action("Retry")
    until(lambda: len(echo) == 4)
    chat.wait_for_answer(1)
    assert [prompt.count("<image_soft_token>") > 0 for prompt in echo] == [True] * 4
    assert echo[2] == echo[3]

    chat.page.get_by_label("Previous question").click()
    expect(chat.questions).to_have_text(["Is this red?", "and then?"])
    expect(chat.answers).to_have_count(2)


def test_an_edit_keeps_indentation_and_can_be_left(chat: ChatPage, echo: list[str]) -> None:
    code = "def f():\n    if x:\n        return"
    chat.ask(code)
    chat.wait_for_answer(1)
    expect(chat.questions).to_have_text(code, use_inner_text=True)
    chat.page.get_by_label("Edit").click()
    expect(chat.page.locator(".editor textarea")).to_have_value(code)
    chat.page.locator(".editor textarea").fill("half made")
    chat.page.keyboard.press("Escape")
    expect(chat.questions).to_have_text(code, use_inner_text=True)
    chat.textbox.focus()
    chat.page.keyboard.press("ArrowUp")  # in an empty box
    expect(chat.page.locator(".editor textarea")).to_be_focused()


def test_a_half_made_edit_stays_in_its_chat(chat: ChatPage, echo: list[str]) -> None:
    chat.ask("old chat")
    chat.wait_for_answer(1)
    chat.page.get_by_label("Edit").click()
    chat.page.locator(".editor textarea").fill("half made")
    chat.page.locator("#new-chat").click()
    expect(chat.questions).to_have_count(0)
    chat.ask("new chat")
    chat.wait_for_answer(1)
    expect(chat.questions).to_have_text("new chat")
    expect(chat.page.locator(".editor")).to_have_count(0)


@pytest.mark.usefixtures("echo")
def test_a_screen_reader_hears_an_answer_once(chat: ChatPage) -> None:
    chat.page.evaluate(
        """() => {
            window.heard = [];
            new MutationObserver(() => {
                const text = document.querySelector("#announcer").textContent;
                if (text) window.heard.push(text);
            }).observe(document.querySelector("#announcer"), {childList: true, characterData: true, subtree: true});
        }"""
    )
    chat.ask("a word and another and one more")
    chat.wait_for_answer(1)
    chat.page.wait_for_timeout(300)
    heard = chat.page.evaluate("window.heard")
    (text,) = [text for text in heard if "another" in text]
    assert text.endswith("a word and another and one more")
    assert chat.page.locator("[aria-live], [role=log], [role=alert], [role=status]").evaluate_all(
        "all => all.every(region => !region.closest('#thread') && !region.querySelector('#thread'))"
    )


def test_the_answers_text_is_copied_as_it_was_written(chat: ChatPage, echo: list[str]) -> None:
    chat.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.ask("**bold** and `code`")
    chat.wait_for_answer(1)
    expect(chat.answers.locator("strong")).to_have_text("bold")
    chat.action("Copy")
    until(lambda: chat.page.evaluate("navigator.clipboard.readText()") == "**bold** and `code`")
    assert re.search(r"\d tokens", chat.page.locator(".facts").inner_text())
