# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Attention for long prompts and pictures: what a query does not see is not computed, and no mask is a square.

What this file offers:
    IMPLEMENTATION    the name of this attention, `attn_implementation` of a model unless another is asked for
    in_blocks         what it computes by PyTorch, where our kernel does not serve

Five of six layers of Gemma 3 see a window, and the others the past alone; stock attention computes all queries times
all keys. Here a `Rule` (int4_masks.py) takes the place of a mask, and queries are computed some rows at a time, each
with the keys that one of them sees: by our own kernel where there is one (int4_cpu_attention.py), which also serves the
vision tower; else by PyTorch's scaled_dot_product_attention. Gradients are computed likewise, from queries, keys and
values alone.

Stock attention ("sdpa") is what runs here for a mask that the user has made, and in compiled graphs, but for a single
query, whose keys it would copy once for each head that shares them; what asks for `output_attentions` gets "eager".
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import logging

from . import int4_cpu_attention as kernel
from .int4_masks import Rule, read_rule
from .int4_operator import NAMESPACE

logger = logging.get_logger(__name__)

# Each copy of this code has one of its own, so that no model gets another's masks.
IMPLEMENTATION = f"{NAMESPACE}_blocks"
# Queries that are computed at a time: few, where keys are seen that most of them do not see, as at a window's edges;
# many on a GPU, which is slow to start.
CPU_ROWS, GPU_ROWS = 128, 1024


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    kv_offset: int = 0,
    mask_function=None,
    attention_mask: torch.Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs,
) -> Rule | torch.Tensor | None:
    """What transformers' `sdpa_mask` says, as a Rule; a row for a single query, and in a graph a mask, as that does."""
    if q_length == 1 or torch.compiler.is_compiling():
        return sdpa_mask(
            batch_size=batch_size,
            q_length=q_length,
            kv_length=kv_length,
            q_offset=q_offset,
            kv_offset=kv_offset,
            mask_function=mask_function,
            attention_mask=attention_mask,
            use_vmap=use_vmap,
            device=device,
            **kwargs,
        )
    return read_rule(
        mask_function,
        attention_mask,
        batch=batch_size,
        queries=q_length,
        keys=kv_length,
        start=int(q_offset),
        offset=kv_offset,
        by_vmap=use_vmap,
        device=torch.device(device),
    )


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Rule | torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of query [B, H, Q, D] to key and value [B, H or fewer, K, D]: [B, Q, H, D], and no weights."""
    if kwargs.get("output_attentions"):
        logger.warning_once(
            "Attention in blocks has no weights to give: with output_attentions, the layers compute as "
            'attn_implementation="eager" does, all of a square.'
        )
        return _eager(module, query, key, value, attention_mask, dropout, scaling)
    if isinstance(attention_mask, Rule) and torch.compiler.is_compiling():  # made outside of the graph
        attention_mask = attention_mask.dense()
    if not isinstance(attention_mask, Rule):
        alone = not dropout and not torch.compiler.is_compiling()
        if alone and _is_square(module, query, attention_mask, kwargs) and not kernel.why_not(query, key, value, None):
            return kernel.attend(query, key, value, None, scaling), None
        if query.shape[2] == 1 < query.shape[1] // key.shape[1] and not dropout:
            return _single(query, key, value, attention_mask, scaling), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    device = query.device.type
    if torch.is_autocast_enabled(device):
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    if not dropout and kernel.why_not(query, key, value, attention_mask) is None:
        return kernel.attend(query, key, value, attention_mask, scaling), None
    if torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value)) and not dropout:
        attended = _Attention.apply(query, key, value, attention_mask, scaling)
    else:
        attended = in_blocks(query, key, value, attention_mask, scaling, dropout)
    return attended.transpose(1, 2).contiguous(), None


def _single(query, key, value, attention_mask: torch.Tensor | None, scaling: float | None) -> torch.Tensor:
    """One query [B, H, 1, D] -> [B, 1, H, D]: heads that share keys are rows of one, so that no key is copied."""
    batch, heads, _, size = query.shape
    rows = query.reshape(batch, key.shape[1], -1, size)
    if attention_mask is not None and attention_mask.shape[1] == heads:
        attention_mask = attention_mask.reshape(-1, key.shape[1], rows.shape[2], attention_mask.shape[-1])
    attended = torch.nn.functional.scaled_dot_product_attention(
        rows, key, value, attn_mask=attention_mask, scale=scaling
    )
    return attended.reshape(batch, 1, heads, -1)


def _is_square(
    module: torch.nn.Module, query: torch.Tensor, attention_mask: torch.Tensor | None, options: dict
) -> bool:
    """Whether each of many queries sees each key, as in the vision tower."""
    is_causal = options.get("is_causal")
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return attention_mask is None and not is_causal and query.shape[2] > 1


def _rows(query: torch.Tensor) -> int:
    return CPU_ROWS if query.device.type == "cpu" else GPU_ROWS


def in_blocks(query, key, value, rule: Rule, scaling: float | None, dropout: float = 0.0) -> torch.Tensor:
    """Attention [B, H, Q, D], some rows at a time, each part with the keys that one of its rows sees."""
    parts = [
        _block(query[:, :, rows], key[:, :, keys], value[:, :, keys], rule, rows, keys, scaling, dropout)
        for rows, keys in rule.blocks(_rows(query))
    ]
    return torch.cat(parts, dim=2)


def _block(query, key, value, rule: Rule, rows: slice, keys: slice, scaling, dropout=0.0) -> torch.Tensor:
    if keys.start == keys.stop:
        return query.new_zeros(*query.shape[:3], value.shape[3])
    if query.device.type != "cpu":  # where PyTorch has no kernel for a mask and heads that share keys, but for squares
        key, value = (repeat_kv(x, query.shape[1] // x.shape[1]) for x in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=rule.visible(rows, keys),
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


class _Attention(torch.autograd.Function):
    """`in_blocks`, of which no block is kept for the gradients: each is computed again when its own are."""

    @staticmethod
    def forward(ctx, query, key, value, rule, scaling):
        ctx.save_for_backward(query, key, value)
        ctx.rule, ctx.scaling = rule, scaling
        return in_blocks(query, key, value, rule, scaling)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        query, key, value = ctx.saved_tensors
        grad_query = torch.zeros_like(query)
        grad_key, grad_value = (torch.zeros_like(x, dtype=torch.float32) for x in (key, value))
        for rows, keys in ctx.rule.blocks(_rows(query)):
            if keys.start == keys.stop:
                continue
            with torch.enable_grad():
                parts = [x.detach().requires_grad_() for x in (query[:, :, rows], key[:, :, keys], value[:, :, keys])]
                attended = _block(*parts, ctx.rule, rows, keys, ctx.scaling)
            of_query, of_key, of_value = torch.autograd.grad(attended, parts, grad[:, :, rows])
            grad_query[:, :, rows] = of_query
            grad_key[:, :, keys] += of_key
            grad_value[:, :, keys] += of_value
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None


def _eager(module, query, key, value, attention_mask, dropout, scaling) -> tuple[torch.Tensor, torch.Tensor]:
    """With attention weights [B, H, Q, K]; as transformers' models do it."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(2, 3)) * scaling
    if isinstance(attention_mask, Rule):
        attention_mask = attention_mask.dense()
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    weights = torch.nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(IMPLEMENTATION, attention)
AttentionMaskInterface.register(IMPLEMENTATION, mask)
