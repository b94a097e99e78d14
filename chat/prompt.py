"""Messages -> model inputs; text never becomes a control token."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from chat.errors import ChatError

# How long pictures are cut for pan and scan: transformers leaves it to each preprocessor_config.json, where it is null.
CROPS = {
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}


def pixels_of(processor: Any, picture: Image.Image, pan_and_scan: bool = False) -> torch.Tensor:
    """A picture as the model looks at it, and with pan and scan then its parts: float32 [1 + parts, 3, side, side]."""
    options = {"do_pan_and_scan": True, **CROPS} if pan_and_scan else {}
    return processor.image_processor([[picture]], return_tensors="pt", **options)["pixel_values"]


def can_pan_and_scan(processor: Any) -> bool:
    """Whether a processor knows how to cut long pictures."""
    return hasattr(getattr(processor, "image_processor", None), "pan_and_scan")


def encode_chat(
    processor: Any, messages: list[dict], look: Callable[[Any], torch.Tensor] | None = None
) -> dict[str, torch.Tensor]:
    """Encodes a chat as `processor.apply_chat_template` does, except that text stays text.

    The template is rendered with a mark in the place of each text, and only what the template itself wrote is looked up
    among the special tokens. The texts are then put back and encoded as plain text: `<end_of_turn>` typed by a user is
    13 characters and ends nothing.

    Args:
        processor: A Gemma3Processor, or the tokenizer of a text-only model.
        messages: As chat templates take them, with pictures as {"type": "image", "image": PIL's RGB image}.
        look: What gives a picture's pixels, as `pixels_of` does; then "image" may be whatever it takes.

    Returns:
        input_ids and attention_mask int64 [1, tokens]; of a Gemma3Processor also token_type_ids int64 [1, tokens], 1
        where a row of image features goes; with pictures also pixel_values float32 [pictures and parts, 3, side, side].

    Raises:
        ChatError: A picture for a model that has no eyes.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    texts: list[str] = []
    pictures: list[Any] = []

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
        pixels = [look(picture) if look else pixels_of(processor, picture) for picture in pictures]
        shown = (_shown(processor, len(each) - 1) for each in pixels)
        rendered = re.sub(re.escape(tokenizer.boi_token), lambda _: next(shown), rendered)
        inputs["pixel_values"] = torch.cat(pixels)

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


def _shown(processor: Any, parts: int) -> str:
    """What stands in the prompt for a picture that is looked at in so many parts too; as Gemma3Processor has it."""
    whole = processor.full_image_sequence
    if not parts:
        return whole
    return (
        f"Here is the original image {whole} and here are some crops to help you see better {' '.join([whole] * parts)}"
    )
