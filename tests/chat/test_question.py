"""read_question: what the page sends, of the right form and within the limits, or a sentence that says what is not."""

from __future__ import annotations

import pytest

from chat.errors import ChatError
from chat.question import CHARACTERS_A_TOKEN, Sampling, read_question
from tests.chat.helpers.histories import GREEDY, HISTORY, asked, picture, said

CONTEXT = 2048
A, B = "a" * 64, "b" * 64


def roles_and_parts(messages: list[dict]) -> list[tuple]:
    return [(turn["role"], *(part.get("text", "picture") for part in turn["content"])) for turn in messages]


def test_a_question_is_read() -> None:
    messages = [said("user", picture(A), "what?"), said("assistant", "red"), said("user", "sure?")]
    question = read_question(asked(messages, system=" Be kind. ", pan_and_scan=True), CONTEXT)
    assert question.messages == messages
    assert (question.system, question.sampling, question.go_on, question.pan_and_scan) == (
        " Be kind. ",
        GREEDY,
        False,
        True,
    )
    assert read_question(asked(messages[:2], **{"continue": True}), CONTEXT).go_on is True


def test_what_belongs_together_is_joined_and_blank_parts_are_left_out() -> None:
    messages = [
        said("user", "one", " \n"),
        said("user", picture(A)),
        said("user", "two", "three"),
        said("assistant", " "),
    ]
    joined = read_question(asked(messages), CONTEXT).messages
    assert roles_and_parts(joined) == [("user", "one", "picture", "two\n\nthree")]
    assert roles_and_parts(messages)[0] == ("user", "one", " \n")


@pytest.mark.parametrize("messages", [[], [said("user", " \n ")], [*HISTORY, said("assistant", "hello")]])
def test_an_empty_question_is_refused(messages: list[dict]) -> None:
    with pytest.raises(ChatError, match="empty"):
        read_question(asked(messages), CONTEXT)


def test_only_an_answer_goes_on() -> None:
    with pytest.raises(ChatError, match="empty"):
        read_question(asked(**{"continue": True}), CONTEXT)


def test_too_many_pictures_are_refused() -> None:
    with pytest.raises(ChatError, match="send at most 8 pictures"):
        read_question(asked([said("user", *[picture(A)] * 9)]), CONTEXT)
    two_turns = [said("user", *[picture(A)] * 8), said("assistant", "many"), said("user", picture(B))]
    with pytest.raises(ChatError, match="9 pictures, and 8 is the most"):
        read_question(asked(two_turns), CONTEXT)


def test_a_long_text_is_refused_by_its_length() -> None:
    most = CONTEXT * CHARACTERS_A_TOKEN
    assert read_question(asked([said("user", "x" * most)]), CONTEXT)
    with pytest.raises(ChatError, match="The chat has 16,385 characters, and 16,384 is the most"):
        read_question(asked([said("user", "x" * most)], system="y"), CONTEXT)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {"messages": HISTORY},
        asked("hello"),
        asked([{"role": "system", "content": []}]),
        asked([{"role": "user", "content": "hello"}]),
        asked([said("user", {"type": "image", "image": "/etc/passwd"})]),
        asked([said("user", picture("../../etc/passwd"))]),
        asked([said("user", picture(None))]),
        asked(system=3),
        asked(pan_and_scan="yes"),
        asked(**{"continue": 1}),
    ],
)
def test_other_forms_are_refused_in_a_sentence(wrong: object) -> None:
    with pytest.raises(ChatError, match=r"^This is no question in the form that the server knows\."):
        read_question(wrong, CONTEXT)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", True),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 2),
        ("top_k", -5),
        ("top_k", "5"),
        ("greedy", 1),
        ("greedy", None),
    ],
)
def test_settings_out_of_range_are_named(setting: str, value: object) -> None:
    question = asked()
    question["sampling"] = {**question["sampling"], setting: value}
    with pytest.raises(ChatError, match=f"^The setting {setting} "):
        read_question(question, CONTEXT)


def test_settings_come_as_json_has_them() -> None:
    question = asked()
    question["sampling"] = {"max_new_tokens": 7.0, "temperature": 1, "top_p": 1, "top_k": 3, "greedy": False}
    assert read_question(question, CONTEXT).sampling == Sampling(7, 1, 1, 3, False)
