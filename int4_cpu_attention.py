# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Attention of many queries on a CPU, by our kernel: bfloat16, in blocks that stay in the caches.

What this file offers:
    why_not    whether the kernel can compute an attention
    attend     that attention
"""

import torch

from .int4_cpu_hardware import cpu, threads
from .int4_cpu_library import Attention, library
from .int4_masks import Rule


def why_not(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule | None) -> str | None:
    """Why the kernel cannot compute this, or torch is faster; None where it can.

    Args:
        query, key, value: [B, H, Q, D], [B, H or fewer, K, D] twice.
        rule: what each query sees; None: every key.
    """
    tensors = (query, key, value)
    if any(x.device.type != "cpu" or x.dtype != torch.bfloat16 for x in tensors):
        return "it computes in bfloat16, on a CPU"
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "it has no derivative"
    if cpu().instruction_set is None or cpu().amx:
        return "torch has faster units" if cpu().amx else "it knows no instructions of this CPU"
    if query.shape[-1] % 8 or value.shape[-1] != query.shape[-1]:
        return "the numbers of a head come in eights"
    if rule is not None and rule.asks is not None:
        return "it is told stretches of keys"
    return None if library() is not None else "it is not available"


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule | None, scaling: float | None
) -> torch.Tensor:
    """Attention [B, Q, H, D] of what `why_not` has nothing against."""
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    batch, heads, queries, dim = query.shape
    out = torch.empty(batch, queries, heads, dim, dtype=query.dtype)
    call = Attention(
        query=query.data_ptr(),
        key=key.data_ptr(),
        value=value.data_ptr(),
        query_strides=query.stride()[:3],
        key_strides=key.stride()[:3],
        value_strides=value.stride()[:3],
        batch=batch,
        heads=heads,
        kv_heads=key.shape[1],
        queries=queries,
        keys=key.shape[2],
        dim=dim,
        scaling=dim**-0.5 if scaling is None else scaling,
        out=out.data_ptr(),
    )
    if rule is not None:
        call.first, call.end = rule.first.data_ptr(), rule.end.data_ptr()
        call.rule_stride = queries if len(rule.first) > 1 else 0
        if rule.seen is not None:
            call.seen = rule.seen.data_ptr()
            call.seen_stride = rule.seen.stride(0) if len(rule.seen) > 1 else 0
    library().int4_attention(call, threads())
    return out
