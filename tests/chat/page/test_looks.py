"""How the page looks and who can use it: phones, zoom, paper, targets, motion, accessibility, first paint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.chat.helpers.browser import ChatPage

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
RICH = """## Head

Some *text*, `code`, [a link](https://example.org/x) and $x^2$.

```python
x = 1
```

| a | b |
|---|---|
| 1 | 2 |

- [x] done
"""
# Links within a sentence have the height of its line.
SMALL_TARGETS = """() => [...document.querySelectorAll("button, a, input, select, textarea")]
    .filter((part) => part.checkVisibility({visibilityProperty: true}) && !part.closest("[inert], .answer p, .skip"))
    .map((part) => [part.getBoundingClientRect(), part.getAttribute("aria-label") || part.textContent || part.id])
    .filter(([{width, height}]) => width > 0 && (width < 24 || height < 24))
    .map(([{width, height}, name]) => `${name}: ${width} x ${height}`)"""


def ask_rich(chat: ChatPage, red: Path) -> None:
    chat.attach(red)
    chat.textbox.fill(RICH)
    chat.send.click()
    chat.wait_for_answer(1)
    expect(chat.answers.locator("math")).to_be_visible()


def states(chat: ChatPage, red: Path) -> Iterator[str]:
    """Brings the page into each of its states, in turn."""
    dialog = chat.page.get_by_role("dialog")
    expect(chat.page.locator(".example").first).to_be_visible()
    yield "start"
    ask_rich(chat, red)
    yield "chat"
    if chat.page.viewport_size["width"] <= 800:
        chat.page.locator("#toggle-sidebar").click()
        expect(chat.page.locator("#new-chat")).to_be_in_viewport()
        yield "list"
        chat.page.get_by_label("Close the list of chats").click()
    chat.page.locator(".question").get_by_label("Edit").click()
    yield "edit"
    chat.page.keyboard.press("Escape")
    chat.page.get_by_label("Settings", exact=True).last.click()
    expect(dialog).to_be_visible()
    yield "settings"
    chat.page.keyboard.press("Escape")
    chat.page.locator("#thread .picture").click()
    expect(dialog).to_be_visible()
    yield "viewer"
    chat.page.keyboard.press("Escape")
    chat.page.get_by_label("More about this chat").click()
    yield "menu"
    chat.page.keyboard.press("Escape")
    chat.page.keyboard.press("Control+/")
    expect(dialog).to_be_visible()
    yield "shortcuts"


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_axe_finds_nothing_and_targets_are_large_enough(
    open_tab: Callable[..., ChatPage], red: Path, scheme: str, device: str
) -> None:
    chat = open_tab(color_scheme=scheme, reduced_motion="reduce", **(PHONE if device == "phone" else {}))
    for state in states(chat, red):
        found = Axe().run(chat.page).response["violations"]
        assert not [(rule["id"], [node["html"][:150] for node in rule["nodes"]]) for rule in found], state
        assert chat.page.evaluate(SMALL_TARGETS) == [], state


@pytest.mark.usefixtures("echo")
@pytest.mark.parametrize(("width", "height"), [(320, 568), (360, 640), (390, 844)])
def test_a_phone_has_everything_on_the_screen(
    open_tab: Callable[..., ChatPage], red: Path, width: int, height: int
) -> None:
    chat = open_tab(**{**PHONE, "viewport": {"width": width, "height": height}})
    expect(chat.context).to_contain_text("2,048")
    for part in (chat.page.get_by_role("heading", name="stub"), chat.send):
        box = part.bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= height
    assert chat.scrolled() == 0
    ask_rich(chat, red)
    assert chat.page.evaluate("document.documentElement.scrollWidth") <= width
    assert chat.page.locator("#scroller").evaluate("part => part.scrollWidth <= part.clientWidth")
    for part in (chat.textbox, chat.send):
        box = part.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["y"] + box["height"] <= height
    assert chat.page.locator("#scroller").bounding_box()["height"] > 0.72 * height  # the chat has the room


@pytest.mark.usefixtures("echo")
def test_enter_makes_a_line_on_a_phone(open_tab: Callable[..., ChatPage]) -> None:
    chat = open_tab(**PHONE)
    chat.textbox.tap()
    chat.page.keyboard.type("one")
    chat.page.keyboard.press("Enter")
    chat.page.keyboard.type("two")
    expect(chat.textbox).to_have_value("one\ntwo")
    chat.send.tap()
    chat.wait_for_answer(1)
    expect(chat.questions).to_have_text("one\ntwo", use_inner_text=True)


@pytest.mark.usefixtures("echo")
def test_the_list_of_chats_on_a_phone(open_tab: Callable[..., ChatPage]) -> None:
    chat = open_tab(**PHONE)
    chat.textbox.fill("seen from a phone")
    chat.send.tap()
    chat.wait_for_answer(1)
    new_chat = chat.page.locator("#new-chat")
    for button in (new_chat, chat.saved_chats):  # each closes the list, which hides its controls from the Tab key
        expect(new_chat).to_be_hidden()
        chat.page.locator("#toggle-sidebar").tap()
        expect(new_chat).to_be_in_viewport()
        button.tap()
    expect(new_chat).to_be_hidden()
    expect(chat.questions).to_have_text("seen from a phone")


@pytest.mark.usefixtures("echo")
def test_twice_as_large_letters(open_tab: Callable[..., ChatPage], red: Path) -> None:
    chat = open_tab(viewport={"width": 640, "height": 430}, device_scale_factor=2)  # 1280 x 860 at 200 %
    ask_rich(chat, red)
    assert chat.page.evaluate("document.documentElement.scrollWidth") <= 640
    assert chat.page.locator("#scroller").bounding_box()["height"] > 200
    for part in (chat.textbox, chat.send):
        box = part.bounding_box()
        assert box["y"] + box["height"] <= 430
    chat.page.locator(".question").get_by_label("Edit").click()
    expect(chat.page.locator(".editor").get_by_role("button", name="Send")).to_be_in_viewport()


@pytest.mark.usefixtures("echo")
def test_a_wide_screen_has_one_quiet_ground(open_tab: Callable[..., ChatPage], red: Path) -> None:
    chat = open_tab(viewport={"width": 1920, "height": 1080})
    ask_rich(chat, red)
    assert chat.answers.bounding_box()["width"] <= 760  # lines of a length that can be read
    grounds = chat.page.evaluate(
        """() => [300, 600, 1700, 1900].flatMap(x => [70, 500, 900].map(y => {
            let part = document.elementFromPoint(x, y);
            while (/, 0\\)$/.test(getComputedStyle(part).backgroundColor)) part = part.parentElement;
            return getComputedStyle(part).backgroundColor;
        }))"""
    )
    assert len(set(grounds)) == 1
    assert chat.page.locator("#header").bounding_box()["height"] <= 56


@pytest.mark.usefixtures("echo")
def test_paper_has_the_chat_and_nothing_else(chat: ChatPage, red: Path) -> None:
    ask_rich(chat, red)
    chat.ask("\n\n".join(f"line {number}" for number in range(120)))
    chat.wait_for_answer(2)
    chat.page.emulate_media(media="print")
    for part in ("#sidebar", "#dock", ".tools", "#header button"):
        for each in chat.page.locator(part).all():
            expect(each).to_be_hidden()
    expect(chat.page.locator("#title")).to_be_visible()
    assert chat.page.locator("#scroller").evaluate("part => getComputedStyle(part).overflowY") == "visible"
    assert len(re.findall(rb"/Type\s*/Page\b", chat.page.pdf())) >= 4


@pytest.mark.usefixtures("echo")
def test_nothing_moves_for_who_wants_no_motion(open_tab: Callable[..., ChatPage]) -> None:
    chat = open_tab(reduced_motion="reduce")
    chat.ask("a word " * 40)
    expect(chat.page.locator("#chat-list .writing")).to_be_visible()
    assert chat.page.locator("#chat-list .writing").evaluate("part => getComputedStyle(part).animationName") == "none"
    chat.stop.click()


def test_dark_and_light_can_be_chosen(open_tab: Callable[..., ChatPage]) -> None:
    chat = open_tab(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)"
    assert min(chat.page.evaluate(ground)) > 200
    chat.page.keyboard.press("Control+,")
    chat.page.locator("#theme").select_option("dark")
    assert max(chat.page.evaluate(ground)) < 60
    chat.page.reload()
    expect(chat.page.locator("#title")).not_to_be_empty()
    assert max(chat.page.evaluate(ground)) < 60


def test_the_start_needs_few_bytes(open_tab: Callable[..., ChatPage]) -> None:
    """What is loaded before the first question is asked takes a line of 1 MB/s under half a second; the time that the
    first paint takes on such a line is printed."""
    chat = open_tab()
    expect(chat.page.locator(".example").first).to_be_visible()
    loaded = chat.page.evaluate(
        """() => [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
            .reduce((sum, entry) => sum + entry.encodedBodySize, 0)"""
    )
    assert loaded < 500_000
    session = chat.page.context.new_cdp_session(chat.page)
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    rate = {"offline": False, "latency": 40, "downloadThroughput": 10**6, "uploadThroughput": 10**6}
    session.send("Network.emulateNetworkConditions", rate)
    chat.page.reload()
    expect(chat.page.locator(".example").first).to_be_visible()
    painted = chat.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"first paint at 1 MB/s: {painted:.0f} ms, {loaded:,} bytes")
