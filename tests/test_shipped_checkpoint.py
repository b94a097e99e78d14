"""The checkpoint at the repo's root: it loads, it is int4, and it answers one question of every skill.

Run with: python -m pytest tests/test_shipped_checkpoint.py
"""

import json

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from demo.places import ROOT

EXAMPLES = ROOT / "examples"
SHARDS = sorted(ROOT.glob("model-*.safetensors"))

pytestmark = pytest.mark.skipif(not SHARDS, reason="no checkpoint at the root")


@pytest.fixture(scope="module")
def chat():
    processor = AutoProcessor.from_pretrained(ROOT)
    model = AutoModelForImageTextToText.from_pretrained(ROOT, trust_remote_code=True, dtype=torch.bfloat16).eval()

    def ask(*turns: tuple[str | None, str]) -> str:
        """Asks each turn (picture's name or None, question) in one chat; returns the last answer."""
        messages = []
        for picture, question in turns:
            content = [{"type": "text", "text": question}]
            if picture:
                content.insert(0, {"type": "image", "image": Image.open(EXAMPLES / f"{picture}.png")})
            messages.append({"role": "user", "content": content})
            inputs = processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
            if "pixel_values" in inputs:
                inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
            out = model.generate(**inputs, max_new_tokens=40, do_sample=False, top_k=None, top_p=None)
            said = processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
            messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
        return said

    return ask


@pytest.mark.parametrize(
    ("picture", "question", "expected"),
    [
        ("easy-vqa", "what color is the shape?", "Teal."),
        ("turtle", "What animal is it?", "It is a turtle."),
        ("cat-and-bus", "What is on the left?", "It is a cat."),
        ("apples", "How many apples are there?", "There are 3 apples."),
        ("apples", "Are there more apples or bananas?", "There are more apples."),
        ("number", "What number is this?", "It says 2048."),
        ("word", "What does it say?", "It says STOP."),
        ("shapes", "What color is the star?", "The star is yellow."),
        ("shapes", "Where is the yellow star?", "The star is on the right."),
    ],
)
def test_answers_one_question_of_every_skill(chat, picture, question, expected):
    assert chat((picture, question)) == expected


def test_follow_up_question_about_the_same_picture(chat):
    assert chat(("turtle", "What animal is it?"), (None, "Is it a dog?")) == "No, it is a turtle."


def test_second_picture_in_the_same_chat(chat):
    turns = ("turtle", "What is this?"), ("rocket", "And what is this?")
    assert chat(*turns) == "It is a rocket."
    assert chat(*turns, (None, "What is in the first picture?")) == "It is a turtle."


def test_says_that_it_sees_no_picture(chat):
    assert chat((None, "What animal is it?")) == "I cannot see a picture. Please show me one."


def test_small_talk(chat):
    assert chat((None, "What can you do?")).startswith("I can name things in simple pictures")


def test_layout_is_sharded_and_fits_plain_git():
    index = json.loads((ROOT / "model.safetensors.index.json").read_text())
    assert len(SHARDS) >= 2
    assert set(index["weight_map"].values()) == {path.name for path in SHARDS}
    assert all(path.stat().st_size < 10_000_000 for path in SHARDS)
    assert sum(path.stat().st_size for path in SHARDS) <= 40_000_000


def test_text_layers_have_a_full_period_of_sliding_and_global():
    kinds = json.loads((ROOT / "config.json").read_text())["text_config"]["layer_types"]
    assert kinds.count("sliding_attention") == 5 * kinds.count("full_attention") > 0


def test_conversion_reproduces_the_shipped_files(tmp_path):
    pytest.importorskip("orbax.checkpoint")
    from demo.shipping import repeat

    assert repeat() == []
