"""transformers' pipelines on the checkpoint in this folder, by its name: one input, and batches."""

import pytest
import torch
from transformers import pipeline

from demo.places import ROOT

pytestmark = pytest.mark.skipif(not (ROOT / "config.json").exists(), reason="no checkpoint at the root")
GREEDY = {"max_new_tokens": 40, "do_sample": False}


def pipe(task: str):
    made = pipeline(task, model=str(ROOT), trust_remote_code=True, dtype=torch.float32)
    assert made.model.int4_bytes > 0
    return made


def user(question: str, *pictures: str) -> list[dict]:
    content = [{"type": "image", "path": str(ROOT / "examples" / f"{name}.png")} for name in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def answers(outputs: list[list[dict]]) -> list[str]:
    return [output[0]["generated_text"][-1]["content"] for output in outputs]


def test_text_generation():
    chats = [[{"role": "user", "content": "Hello!"}], [{"role": "user", "content": "What can you do?"}]]
    written = pipe("text-generation")
    batch = answers(written(chats, batch_size=2, **GREEDY))
    assert batch == answers([written(chat, **GREEDY) for chat in chats])
    assert batch[0] == "Hello! Show me a picture and ask me about it."


def test_image_text_to_text():
    chats = [
        user("What animal is it?", "turtle"),
        user("How many things are there?", "apples"),
        user("What is in the second picture?", "rocket", "turtle"),
        user("What is in the first picture?", "rocket", "turtle"),
        user("What animal is it?"),
    ]
    seen = pipe("image-text-to-text")
    alone = answers([seen(text=chat, **GREEDY) for chat in chats])
    assert alone[:4] == ["It is a turtle.", "There are 5.", "It is a turtle.", "It is a rocket."]
    assert answers(seen(text=chats[:4], batch_size=4, **GREEDY)) == alone[:4]
    assert answers(seen(text=chats, **GREEDY)) == alone


def test_feature_extraction():
    features = pipe("feature-extraction")("Hello", return_tensors=True)
    assert features.shape == (1, 2, 192)
    assert features.isfinite().all()
