"""Messages -> model inputs; text never becomes a control token."""

from __future__ import annotations

import re
from typing import Any

import torch
from PIL import Image

from chat.errors import ChatError


def encode_chat(processor: Any, messages: list[dict]) -> dict[str, torch.Tensor]:
    """Encodes a chat as `processor.apply_chat_template` does, except that text stays text.

    The template is rendered with a mark in the place of each text, and only what the template itself wrote is looked up
    among the special tokens. The texts are then put back and encoded as plain text: `<end_of_turn>` typed by a user is
    13 characters and ends nothing.

    Args:
        processor: A Gemma3Processor, or the tokenizer of a text-only model.
        messages: As from `to_messages`.

    Returns:
        input_ids and attention_mask int64 [1, tokens]; of a Gemma3Processor also token_type_ids int64 [1, tokens], 1
        where a row of image features goes; with pictures also pixel_values float32 [pictures, 3, side, side].

    Raises:
        ChatError: A picture for a model that has no eyes.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    texts: list[str] = []
    pictures: list[Image.Image] = []

    def mask(part: dict) -> dict:
        if part["type"] == "image":
            pictures.append(part["image"])
            return {"type": "image"}
        texts.append(part["text"].strip())
        return {"type": "text", "text": f"\ue000{len(texts) - 1}\ue001"}

    masked = [{"role": turn["role"], "content": [mask(part) for part in turn["content"]]} for turn in messages]
    rendered = processor.apply_chat_template(masked, tokenize=False, add_generation_prompt=True)
    inputs: dict[str, torch.Tensor] = {}
    if pictures:
        if processor is tokenizer:
            raise ChatError("This model reads text only. Please ask without a picture.")
        rendered = rendered.replace(tokenizer.boi_token, processor.full_image_sequence)
        inputs["pixel_values"] = processor.image_processor([pictures], return_tensors="pt")["pixel_values"]

    special = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids: list[int] = []
    for piece in re.split("(" + "|".join(map(re.escape, special)) + ")", rendered):
        if piece in special:
            ids.append(special[piece])
        elif piece:
            text = re.sub("\ue000(\\d+)\ue001", lambda match: texts[int(match[1])], piece)
            ids += tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    inputs["input_ids"] = torch.tensor([ids])
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if processor is not tokenizer:
        inputs["token_type_ids"] = (inputs["input_ids"] == tokenizer.image_token_id).long()
    return inputs
