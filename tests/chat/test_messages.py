"""to_messages: from what the page shows to what the model reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from chat.errors import ChatError
from chat.messages import REMOVED, cleaned, to_messages
from tests.chat.helpers.histories import said, text, warned


@pytest.fixture
def upload(upload_folder: Path) -> Path:
    path = upload_folder / "upload.png"
    Image.new("RGB", (10, 10), "red").save(path)
    return path


def roles_and_parts(messages: list[dict]) -> list[tuple]:
    return [(turn["role"], *(part.get("text", "picture") for part in turn["content"])) for turn in messages]


def test_pictures_and_text_of_one_question_become_one_turn(upload: Path) -> None:
    history = [said("user", upload), said("user", "what?"), said("assistant", "red"), said("user", "sure?")]
    assert roles_and_parts(to_messages(history, " Be kind. ")) == [
        ("system", " Be kind. "),
        ("user", "picture", "what?"),
        ("assistant", "red"),
        ("user", "sure?"),
    ]


def test_unanswered_questions_are_joined() -> None:
    assert roles_and_parts(to_messages([said("user", "one"), said("user", "two")], "")) == [("user", "one\n\ntwo")]


def test_a_question_answered_by_a_notice_is_left_out(upload_folder: Path) -> None:
    broken = upload_folder / "broken.png"
    broken.write_text("no picture")
    history = [
        said("user", "hi"),
        said("assistant", "hello"),
        said("user", broken),
        said("user", "what?"),
        warned("not a picture"),
        said("user", "and now?"),
    ]
    assert roles_and_parts(to_messages(history, "")) == [
        ("user", "hi"),
        ("assistant", "hello"),
        ("user", "and now?"),
    ]


def test_a_removed_picture_leaves_a_placeholder(upload: Path) -> None:
    history = [said("user", upload), said("user", "what?")]
    upload.unlink()
    assert roles_and_parts(to_messages(history, "")) == [("user", f"{REMOVED}\n\nwhat?")]
    assert cleaned(history)[0]["content"] == [text(REMOVED)]


def test_files_outside_the_upload_folder_are_not_opened(stub_folder: Path) -> None:
    picture = stub_folder / "examples" / "red.png"
    assert roles_and_parts(to_messages([said("user", picture)], "")) == [("user", REMOVED)]


def test_too_many_pictures_are_refused(upload: Path) -> None:
    with pytest.raises(ChatError, match="send at most 8 pictures"):
        to_messages([said("user", *[upload] * 9)], "")
    two_turns = [said("user", *[upload] * 8), said("assistant", "many"), said("user", upload)]
    with pytest.raises(ChatError, match="9 pictures, and 8 is the most"):
        to_messages(two_turns, "")


@pytest.mark.parametrize("history", [[], [said("user", " \n ")], [said("user", "hi"), said("assistant", "hello")]])
def test_an_empty_question_is_refused(history: list[dict]) -> None:
    with pytest.raises(ChatError, match="empty"):
        to_messages(history, "")
