"""The prompt: as transformers builds it, whatever the user types."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from chat.errors import ChatError
from chat.prompt import CROPS, can_pan_and_scan, encode_chat, pixels_of
from tests.chat.helpers.histories import text
from tests.chat.helpers.stub import IMAGE_SPECIALS, SPECIALS, save_stub

CONTROL = [*SPECIALS, *IMAGE_SPECIALS.values(), "\ue0000\ue001", "\ue000", "<0x41>"]
NASTY_TEXT = st.lists(st.sampled_from([*CONTROL, "hello", " ", "\n", "\n\n", "é", "😀", "user", "model"]), max_size=12)


@pytest.fixture(scope="module")
def processor(stub_folder: Path) -> object:
    return AutoProcessor.from_pretrained(stub_folder)


@pytest.fixture(scope="module")
def text_processor(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("text-only")
    save_stub(folder, vision=False)
    return AutoProcessor.from_pretrained(folder)


def image(color: str = "red") -> dict:
    return {"type": "image", "image": Image.new("RGB", (40, 30), color)}


CHATS = {
    "one question": [{"role": "user", "content": [text("what is this?")]}],
    "a picture": [{"role": "user", "content": [image(), text("what  is\n\n\nthis?")]}],
    "pictures in two turns": [
        {"role": "system", "content": [text("Be kind.")]},
        {"role": "user", "content": [image(), image("blue"), text("what is this?")]},
        {"role": "assistant", "content": [text("a red circle\nand a blue one")]},
        {"role": "user", "content": [text("and"), image("green"), text("this?")]},
    ],
}


@pytest.mark.parametrize("sizes", [[(1200, 300)], [(300, 1000), (400, 390), (2000, 500)], [(500, 100)]])
def test_pan_and_scan_equals_the_processor(processor: object, sizes: list[tuple[int, int]]) -> None:
    """Long pictures with their parts, one that is nearly square, and one that is too small to be cut."""
    pictures = [Image.effect_noise(size, 50).convert("RGB") for size in sizes]
    content = [*({"type": "image", "image": picture} for picture in pictures), text("what is this?")]
    chat = [{"role": "user", "content": content}]
    expected = processor(
        text=processor.apply_chat_template(chat, add_generation_prompt=True),
        images=[pictures],
        add_special_tokens=False,
        return_tensors="pt",
        do_pan_and_scan=True,
        **CROPS,
    )
    inputs = encode_chat(processor, chat, partial(pixels_of, processor, pan_and_scan=True))
    for name in ("input_ids", "token_type_ids", "pixel_values"):
        torch.testing.assert_close(inputs[name], expected[name], rtol=0, atol=0)
    assert can_pan_and_scan(processor)


@pytest.mark.parametrize("chat", CHATS)
def test_equals_apply_chat_template(processor: object, chat: str) -> None:
    expected = processor.apply_chat_template(
        CHATS[chat], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    inputs = encode_chat(processor, CHATS[chat])
    assert set(inputs) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(inputs[name], tensor, rtol=0, atol=0)


def test_equals_apply_chat_template_text_only(text_processor: object) -> None:
    chat = CHATS["one question"]
    expected = text_processor.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    inputs = encode_chat(text_processor, chat)
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert torch.equal(inputs["input_ids"], expected["input_ids"])


def test_a_picture_for_a_text_only_model_is_refused(text_processor: object) -> None:
    with pytest.raises(ChatError, match="text only"):
        encode_chat(text_processor, CHATS["a picture"])


@given(NASTY_TEXT.map("".join), NASTY_TEXT.map("".join))
def test_text_stays_text(processor: object, question: str, system: str) -> None:
    chat = [
        {"role": "system", "content": [text(system)]},
        {"role": "user", "content": [image(), text(question)]},
        {"role": "assistant", "content": [text(question)]},
        {"role": "user", "content": [text(question)]},
    ]
    ids = encode_chat(processor, chat)["input_ids"][0]
    tokenizer = processor.tokenizer
    features = "<image_soft_token>" * 4
    assert tokenizer.decode(ids) == (
        f"<bos><start_of_turn>user\n{system.strip()}\n\n\n\n<start_of_image>{features}<end_of_image>\n\n{question.strip()}"
        f"<end_of_turn>\n<start_of_turn>model\n{question.strip()}<end_of_turn>\n<start_of_turn>user\n{question.strip()}"
        "<end_of_turn>\n<start_of_turn>model\n"
    )
    counts = {"<bos>": 1, "<start_of_turn>": 4, "<end_of_turn>": 3, "<start_of_image>": 1, "<end_of_image>": 1}
    counts["<image_soft_token>"] = 4
    for token in [*SPECIALS, *IMAGE_SPECIALS.values()]:
        found = int((ids == tokenizer.convert_tokens_to_ids(token)).sum())
        assert found == counts.get(token, 0), token
