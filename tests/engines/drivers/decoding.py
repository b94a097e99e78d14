"""Teacher-forced decoding with transformers' `generate`: for our own model, and for gptqmodel's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor, PreTrainedModel

if TYPE_CHECKING:  # a driver finds `jobs` beside itself, our tests find it elsewhere
    from jobs import Prompt


class Follow(LogitsProcessor):
    """Makes `generate` take the tokens [prompts, steps] one step after the other."""

    def __init__(self, tokens: torch.Tensor):
        self.steps = iter(tokens.T)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf).scatter(1, next(self.steps)[:, None], 0.0)


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: list[Prompt],
    steps: int,
    follow: torch.Tensor | None = None,
    causal_pictures: bool = False,
) -> torch.Tensor:
    """Decodes all prompts as one batch, padded on the left, past any end token.

    Args:
        model: a Gemma 3, with pictures or text only.
        prompts: prompts.
        steps: tokens to decode.
        follow: [prompts, steps] tokens to feed; None means the model's own greedy choice.
        causal_pictures: let soft tokens see only what is before them, as some engines do.

    Returns:
        float32 [prompts, steps, vocabulary], the logits before each token.
    """
    length = max(len(prompt.ids) for prompt in prompts)
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt.ids) :] = torch.from_numpy(prompt.ids)
        mask[row, length - len(prompt.ids) :] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    pictures = [torch.from_numpy(picture) for prompt in prompts for picture in prompt.pictures]
    if hasattr(model.config, "vision_config"):
        soft = ids == model.config.image_token_index
        inputs["token_type_ids"] = torch.zeros_like(ids) if causal_pictures else soft.long()
    if pictures:
        inputs["pixel_values"] = (torch.stack(pictures).permute(0, 3, 1, 2) / 127.5 - 1).to(model.dtype)
    model.generation_config.eos_token_id = None
    out = model.generate(
        **inputs,
        max_new_tokens=steps,
        do_sample=False,
        top_k=None,
        top_p=None,
        pad_token_id=0,
        logits_processor=None if follow is None else [Follow(follow)],
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack([logits.float() for logits in out.logits], dim=1)
