"""The chat template against strings written by hand, and against Google's own template.

Run: pytest tests/conversion/small_files/test_chat_template.py
"""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from transformers import AutoTokenizer, GemmaTokenizer

from conversion.small_files.tokenizer import CHAT_TEMPLATE
from demo.places import ROOT
from real270m.fetch import Unavailable, published_tokenizer

OURS = CHAT_TEMPLATE.read_text(encoding="utf-8")
IMAGE = {"type": "image"}


def render(messages: list[dict], *, template: str = OURS, generation: bool = False) -> str:
    tokenizer = GemmaTokenizer(chat_template=template)
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)


def said(role: str, content) -> dict:
    return {"role": role, "content": content}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def test_one_question_and_the_generation_prompt():
    question = [said("user", "  What is this?\n")]
    assert render(question) == "<bos><start_of_turn>user\nWhat is this?<end_of_turn>\n"
    assert render(question, generation=True) == (
        "<bos><start_of_turn>user\nWhat is this?<end_of_turn>\n<start_of_turn>model\n"
    )


def test_assistant_speaks_as_model():
    turns = [said("user", "Hi"), said("assistant", " Hello! \n"), said("user", "Bye")]
    assert render(turns) == (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n"
        "<start_of_turn>model\nHello!<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n"
    )


@pytest.mark.parametrize("system", ["Be brief.", [text("Be brief.")]])
def test_system_turn_is_folded_into_the_first_user_turn_only(system):
    turns = [said("system", system), said("user", "One"), said("assistant", "1"), said("user", "Two")]
    assert render(turns) == (
        "<bos><start_of_turn>user\nBe brief.\n\nOne<end_of_turn>\n"
        "<start_of_turn>model\n1<end_of_turn>\n"
        "<start_of_turn>user\nTwo<end_of_turn>\n"
    )


def test_images_stand_where_they_were_put():
    parts = [text("Compare"), IMAGE, text(" with "), IMAGE, text("please.")]
    assert render([said("user", parts)], generation=True) == (
        "<bos><start_of_turn>user\nCompare<start_of_image>with<start_of_image>please.<end_of_turn>\n<start_of_turn>model\n"
    )


@pytest.mark.parametrize(
    "roles",
    [
        ["assistant"],
        ["user", "user"],
        ["user", "assistant", "assistant"],
        ["system", "assistant"],
        ["system", "user", "user"],
        ["system", "system", "user"],
        ["user", "assistant", "system"],
    ],
)
def test_roles_that_do_not_alternate_are_refused(roles):
    with pytest.raises(TemplateError, match="must alternate user/assistant"):
        render([said(role, "words") for role in roles])


def test_content_that_is_neither_text_nor_parts_is_refused():
    with pytest.raises(TemplateError, match="must be a string or a list"):
        render([said("user", 7)])


def test_what_the_model_said_is_marked_for_training():
    tokenizer = AutoTokenizer.from_pretrained(ROOT)
    turns = [said("user", "Hello"), said("assistant", "Hi."), said("user", "Is it red?"), said("assistant", "No.")]
    inputs = tokenizer.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, chat_template=OURS
    )
    learned = [id_ for id_, mine in zip(inputs["input_ids"], inputs["assistant_masks"], strict=True) if mine]
    assert tokenizer.decode(learned) == "Hi.<end_of_turn>\nNo.<end_of_turn>\n"


@pytest.fixture(scope="module")
def google() -> str:
    try:
        folder = published_tokenizer()
    except Unavailable as reason:
        pytest.skip(str(reason))
    return json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"]


WORDS = st.text(alphabet=" \n\tabc<>{}%é\u2581", max_size=12)
CONTENT = WORDS | st.lists(st.just(IMAGE) | st.builds(text, WORDS), max_size=4)
TURNS = st.lists(CONTENT, min_size=1, max_size=5)
SYSTEM = st.none() | WORDS | st.builds(lambda words: [text(words)], WORDS)


@settings(max_examples=200, deadline=None)
@given(system=SYSTEM, contents=TURNS, generation=st.booleans())
def test_renders_what_googles_template_renders(google, system, contents, generation):
    turns = [said("assistant" if i % 2 else "user", content) for i, content in enumerate(contents)]
    if system is not None:
        turns.insert(0, said("system", system))
    assert render(turns, generation=generation) == render(turns, template=google, generation=generation)


@settings(max_examples=100, deadline=None)
@given(roles=st.lists(st.sampled_from(["user", "assistant", "system", "model"]), min_size=1, max_size=4))
def test_refuses_what_googles_template_refuses(google, roles):
    turns = [said(role, "words") for role in roles]
    try:
        expected = render(turns, template=google)
    except TemplateError:
        with pytest.raises(TemplateError):
            render(turns)
    else:
        assert render(turns) == expected
