# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""A long prompt read in chunks, so that what a layer computes in has one size, however long the prompt is.

What this file offers:
    Gemma3TextModel    transformers' own, except for that, and for the masks of rings (int4_cache.py)
    FUSED              which of transformers' classes it replaces

Each chunk goes through all layers, and finds in the cache what came before. The result is that of reading everything at
once: a chunk never ends within a picture, the tokens of which see each other; and keys, values and masks are the same.
Where everything is asked of every token (hidden states, attention weights, gradients), nothing is cut.
"""

import functools
from collections.abc import Iterator

import torch
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_masks_for_generate
from transformers.models.gemma3 import modeling_gemma3 as stock
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from .int4_attention import IMPLEMENTATION
from .int4_cache import RingLayer, growing
from .int4_masks import Rule
from .int4_memory import check_prompt
from .int4_versions import CACHE, cache_among

# Tokens to a chunk, of all sequences together: enough for products of matrices to run at their full rate.
CPU_TOKENS, GPU_TOKENS = 2048, 8192
FEWEST_TOKENS = 256

# Those that `forward` takes by position.
ARGUMENTS = ("input_ids", "attention_mask", "position_ids", CACHE, "inputs_embeds", "use_cache")


class Gemma3TextModel(stock.Gemma3TextModel):
    """Reads a long prompt in chunks, and a single token before rings. Named as the one it replaces."""

    @functools.wraps(stock.Gemma3TextModel.forward)
    def forward(self, *args, **kwargs):
        kwargs = dict(zip(ARGUMENTS[: len(args)], args, strict=True)) | kwargs
        new = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs.get("input_ids")
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or new is None or not self._may_cut(kwargs):
            return self._read(new, kwargs)
        cache, chunk = cache_among(kwargs), _tokens(new)
        edges = _edges(kwargs.get("attention_mask"), new, chunk)
        if len(edges) < 2:
            return self._read(new, kwargs)
        check_prompt(self.config, *new.shape[:2], chunk, self.norm.weight.dtype, new.device)
        if cache is None:
            cache = DynamicCache(config=self.config)
        outputs, states = None, None
        with growing(cache, new.shape[1]):
            for begin, end in zip([0, *edges], edges, strict=False):
                part = dict(_part(kwargs, cache, slice(begin, end), new.shape[1]))
                outputs = self._read(new[:, begin:end], part)
                read = outputs.last_hidden_state
                if states is None:
                    states = read.new_empty(read.shape[0], new.shape[1], read.shape[2])
                states[:, begin:end] = read
        outputs.last_hidden_state = states
        if cache_among(kwargs) is None and not _uses_cache(self, kwargs):
            setattr(outputs, CACHE, None)
        return outputs

    def _read(self, new: torch.Tensor | None, kwargs: dict):
        """What transformers' own does with the new tokens [B, Q] or embeddings [B, Q, D], in one go."""
        cache = cache_among(kwargs)
        ring = RingLayer.of(cache)
        if ring is not None and new is not None and new.shape[1] == 1:
            masks = kwargs.get("attention_mask")
            if not isinstance(masks, dict):
                sizes = torch.empty(new.shape[0], 1, 0, dtype=self.norm.weight.dtype, device=new.device)
                masks = create_masks_for_generate(
                    config=self.config, inputs_embeds=sizes, attention_mask=masks, **{CACHE: cache}
                )
            window = masks["sliding_attention"]
            window = ring.by_slot(window.dense() if isinstance(window, Rule) else window)
            kwargs = kwargs | {"attention_mask": masks | {"sliding_attention": window}}
        return super().forward(**kwargs)

    def _may_cut(self, kwargs: dict) -> bool:
        """Whether these are arguments of which each is known to have, or not to have, a part for every token."""
        cache, mask = cache_among(kwargs), kwargs.get("attention_mask")
        wants_all = any(
            kwargs.get(name, getattr(self.config, name, False))
            for name in ("output_hidden_states", "output_attentions")
        )
        if self.config._attn_implementation != IMPLEMENTATION or self.config.use_bidirectional_attention or wants_all:
            return False
        if kwargs.get("return_dict") is False or not isinstance(cache, Cache | None):
            return False
        if cache is None and kwargs.get("position_ids") is not None:  # they may say that sequences are packed into one
            return False
        if type(cache) is DynamicCache and (
            cache.offloading or any(getattr(x, "record_past", 0) for x in cache.layers)
        ):
            return False
        if isinstance(mask, dict):
            return all(isinstance(rule, Rule) and rule.asks is None for rule in mask.values())
        return mask is None or mask.dim() == 2


def _uses_cache(model: Gemma3TextModel, kwargs: dict) -> bool:
    given = kwargs.get("use_cache")
    return model.config.use_cache if given is None else given


def _tokens(new: torch.Tensor) -> int:
    """Tokens of each sequence to a chunk."""
    return max((CPU_TOKENS if new.device.type == "cpu" else GPU_TOKENS) // max(new.shape[0], 1), FEWEST_TOKENS)


def _edges(mask: dict[str, Rule] | torch.Tensor | None, new: torch.Tensor, tokens: int) -> list[int]:
    """Where chunks of about so many tokens end: before an edge, no token sees one behind it."""
    length = new.shape[1]
    if length <= tokens:
        return [length]
    if not isinstance(mask, dict):
        return [*range(tokens, length, tokens), length]
    free = torch.ones(length, dtype=torch.bool, device=new.device)
    for rule in mask.values():
        farthest = (rule.end + rule.offset - rule.start).cummax(1).values.amax(0)
        free &= farthest <= torch.arange(1, length + 1, device=new.device)
    free = (free.nonzero()[:, 0] + 1).tolist()
    edges, last = [], 0
    for edge, following in zip(free, [*free[1:], length], strict=True):
        if following - last > tokens and edge < length:
            edges.append(edge)
            last = edge
    return [*edges, length]


def _part(kwargs: dict, cache: Cache, rows: slice, length: int) -> Iterator[tuple[str, object]]:
    """The arguments for some of the tokens."""
    for name, value in kwargs.items():
        if name in ("input_ids", "inputs_embeds") and value is not None:
            yield name, value[:, rows]
        elif name == "position_ids" and value is not None:
            yield name, value[..., rows]
        elif name == "attention_mask" and isinstance(value, dict):
            yield name, {kind: _rule(rule, cache, kind, rows) for kind, rule in value.items()}
        elif name == "attention_mask" and value is not None:
            yield name, value[:, : value.shape[1] - length + rows.stop]
        elif name not in ("cache", "past_key_values"):
            yield name, value
    yield CACHE, cache


def _rule(rule: Rule, cache: Cache, kind: str, rows: slice) -> Rule:
    """A rule for a chunk, before the keys that the cache will show to it."""
    sliding = kind == "sliding_attention"
    layer = cache.is_sliding.index(sliding) if sliding in cache.is_sliding else 0
    count, offset = cache.get_mask_sizes(rows.stop - rows.start, layer)
    return rule.part(rows, int(offset), int(count))


# By its class transformers knows which outputs of a model can be recorded, and learns that where one is constructed.
_CAN_RECORD_REGISTRY.update({str(Gemma3TextModel): Gemma3TextModel._can_record_outputs})

FUSED = {stock.Gemma3TextModel: Gemma3TextModel}
