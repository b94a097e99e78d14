"""Pictures: attached, pasted, dropped; small in the chat, large in the viewer."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, features
from playwright.sync_api import expect

from tests.chat.helpers.browser import ChatPage

HEIC = Path(__file__).parents[1] / "data" / "photo.heic"

SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30">
<script>parent.ran = 1; window.ran = 1</script><image href="http://192.0.2.1/x.png" width="9" height="9"/>
<rect width="40" height="30" fill="red"/></svg>"""


def test_a_picture_and_a_question_are_one_message(chat: ChatPage, echo: list[str], red: Path) -> None:
    chat.ask("look", red, red)
    chat.wait_for_answer(1)
    expect(chat.page.locator("#thread .question")).to_have_count(1)
    expect(chat.pictures).to_have_count(2)
    for box in (picture.bounding_box() for picture in chat.pictures.all()):
        assert box["height"] <= 120
    assert chat.drop(red, "image/png", "paste")  # anywhere on the page
    expect(chat.attached).to_have_count(1)
    assert chat.drop(red, "image/png")
    expect(chat.attached).to_have_count(2)
    chat.attached.first.get_by_label("Remove the picture").click()
    expect(chat.attached).to_have_count(1)
    chat.ask("and this?")
    chat.wait_for_answer(2)
    assert echo[-1].count("<start_of_image>") == 3
    expect(chat.context).to_contain_text("12 in pictures")  # 3 pictures of the stub's 4 tokens


def test_text_pasted_anywhere_gets_into_the_box(chat: ChatPage) -> None:
    chat.page.locator("#scroller").focus()
    chat.page.evaluate(
        """() => {
            const clipboardData = new DataTransfer();
            clipboardData.setData("text/plain", "pasted words");
            document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true, cancelable: true}));
        }"""
    )
    expect(chat.textbox).to_have_value("pasted words")


def test_the_viewer_shows_the_whole_picture_and_zooms(chat: ChatPage, echo: list[str], tmp_path: Path) -> None:
    Image.new("RGB", (2400, 1600), "teal").save(tmp_path / "large.png")
    chat.ask("what is this?", tmp_path / "large.png")
    chat.wait_for_answer(1)
    chat.page.locator("#thread .picture").click()
    dialog = chat.page.get_by_role("dialog")
    image = dialog.locator("img")
    expect(dialog).to_contain_text("2,400 × 1,600 pixels")
    assert image.evaluate("image => image.naturalWidth") == 2400
    box, width = image.bounding_box(), chat.page.viewport_size["width"]
    assert 0.7 * width < box["width"] <= width  # as large as fits
    dialog.get_by_role("button", name="100 %").click()
    assert image.bounding_box()["width"] == 2400
    dialog.get_by_label("Zoom in").click()
    assert image.bounding_box()["width"] > 3000
    chat.page.keyboard.press("0")
    assert abs(image.bounding_box()["width"] - box["width"]) < 1
    with chat.page.expect_download() as download:
        dialog.get_by_label("Save the picture").click()
    assert download.value.suggested_filename == "large.png"
    chat.page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)


@pytest.mark.parametrize("kind", ["TIFF", "AVIF", "BMP", "WEBP"])
def test_other_kinds_are_shown(chat: ChatPage, echo: list[str], tmp_path: Path, kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    path = tmp_path / f"picture.{kind.lower()}"
    Image.new("RGB", (60, 40), "purple").save(path, kind)
    chat.ask("what is this?", path)
    chat.wait_for_answer(1)
    expect(chat.pictures).to_have_attribute("src", re.compile("^blob:"))
    assert chat.pictures.evaluate("async image => { await image.decode(); return image.naturalWidth }") == 60
    assert "<start_of_image>" in echo[-1]


def test_a_phones_picture_is_shown(chat: ChatPage, echo: list[str]) -> None:
    pi_heif = pytest.importorskip("pi_heif")
    chat.ask("what is this?", HEIC)
    chat.wait_for_answer(1)
    width = chat.pictures.evaluate("async image => { await image.decode(); return image.naturalWidth }")
    assert width == pi_heif.open_heif(HEIC).size[0]
    assert "<start_of_image>" in echo[-1]


def test_a_drawing_is_drawn_and_cannot_act(chat: ChatPage, echo: list[str], tmp_path: Path) -> None:
    (tmp_path / "drawing.svg").write_text(SVG)
    chat.ask("what is this?", tmp_path / "drawing.svg")
    chat.wait_for_answer(1)
    assert "<start_of_image>" in echo[-1]
    assert chat.page.evaluate("window.ran") is None
    color = chat.pictures.evaluate(
        """async image => {
            await image.decode();
            const context = document.createElement("canvas").getContext("2d");
            context.drawImage(image, 0, 0);
            return [...context.getImageData(20, 20, 1, 1).data];
        }"""
    )
    assert color[0] > 240
    assert color[1] < 15


def test_what_is_no_picture_is_refused_by_name(
    open_tab: Callable[..., ChatPage], echo: list[str], tmp_path: Path
) -> None:
    chat = open_tab(allowed_complaint="415")
    (tmp_path / "broken.png").write_text("this is no picture")
    chat.page.locator("#file").set_input_files(tmp_path / "broken.png")
    expect(chat.toasts).to_contain_text(re.compile("broken.png: .*not a picture"))
    expect(chat.attached).to_have_count(0)
    chat.ask("and without?")
    chat.wait_for_answer(1)
    expect(chat.answers).to_have_text("and without?")


def test_a_chat_has_so_many_pictures_at_most(chat: ChatPage, red: Path) -> None:
    chat.page.locator("#file").set_input_files([red] * 9)
    expect(chat.toasts).to_contain_text("at most 8 pictures")
    expect(chat.attached).to_have_count(8)


def test_a_file_that_is_too_large_is_not_sent(chat: ChatPage, tmp_path: Path) -> None:
    (tmp_path / "large.png").write_bytes(b"\x89PNG" + bytes(21 * 2**20))
    chat.page.locator("#file").set_input_files(tmp_path / "large.png")
    expect(chat.toasts).to_contain_text("large.png has 22 MB")
    expect(chat.attached).to_have_count(0)


def test_pan_and_scan_reads_more_of_a_wide_picture(chat: ChatPage, echo: list[str], tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (1200, 300), "white").save(picture, "PNG")
    (tmp_path / "wide.png").write_bytes(picture.getvalue())
    chat.ask("what does it say?", tmp_path / "wide.png")
    chat.wait_for_answer(1)
    chat.set(pan_and_scan=True)
    chat.action("Retry")
    expect(chat.page.locator(".branches")).to_have_text("2/2")
    chat.wait_for_answer(1)
    assert echo[1].count("<start_of_image>") > echo[0].count("<start_of_image>") == 1
