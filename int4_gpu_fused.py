# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""What is around the int4 matrices, on a GPU: projections of one input in one launch, and what is between them in one.

What this file offers:
    Gemma3Attention      few rows: q, k and v as one product; norm and rotary position of all heads as one kernel
    Gemma3MLP            few rows: gate and up as one product; gelu(gate) * up as one kernel
    Gemma3RMSNorm        any number of rows: one kernel instead of ten
    FUSED                which of transformers' classes these replace

A decoding step is short: what a GPU waits for is launches. The classes are transformers' own, and compute as they do; a
product of their own they take only where all that take part are plain int4 matrices on the Triton backend, so that an
adapter or a hook is never passed by. Nothing is stored twice: the kernels read each matrix where its module has it.
In a compiled graph the joint products remain, and torch.compile fuses the rest.
"""

import torch
from torch import nn
from transformers.activations import GELUTanh
from transformers.models.gemma3 import modeling_gemma3 as stock

from .int4_gpu_triton import Triton, gated, heads, rms_norm
from .int4_layers import Int4Linear
from .int4_versions import cache_among

# Up to so many rows products are bound by the weights' bytes and by launches; beyond, a joint one gains nothing.
FEW_ROWS = 64
DEVICE_TYPE = "cuda"  # where the kernels run; Triton's interpreter runs them on "cpu"


def _may_fuse(x: torch.Tensor) -> bool:
    return x.dtype == torch.bfloat16 and not torch.is_grad_enabled()


def _may_launch(x: torch.Tensor, *modules: nn.Module) -> bool:
    """Whether a kernel may compute from x what these modules do: eagerly, on a GPU, with nobody watching."""
    return (
        _may_fuse(x)
        and not torch.compiler.is_compiling()
        and x.device.type == DEVICE_TYPE
        and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    )


def _together(x: torch.Tensor, linears: list[nn.Module]) -> torch.Tensor | None:
    """x [..., K] -> [M, all N], or None where each has to be called for itself."""
    if not _may_fuse(x) or x.numel() > FEW_ROWS * x.shape[-1]:
        return None
    for linear in linears:
        if (
            type(linear) is not Int4Linear  # an adapter in its place, say
            or not issubclass(linear.backend, Triton)
            or linear.packed["group_scales"].dtype != linears[0].packed["group_scales"].dtype
            or linear.device != x.device
            or linear._forward_hooks
            or linear._forward_pre_hooks
            or "forward" in linear.__dict__  # as accelerate hooks a module
        ):
            return None
    return Triton.linears(x.reshape(-1, x.shape[-1]), [linear.packed for linear in linears])


class Gemma3RMSNorm(stock.Gemma3RMSNorm):
    """One kernel. Named as the one it replaces: transformers looks for "RMSNorm" in the name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _may_launch(x) or self.weight.device != x.device:
            return super().forward(x)
        return rms_norm(x, self.weight, self.eps)


class Gemma3MLP(stock.Gemma3MLP):
    """gate and up as one product, gelu(gate) * up as one kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = _together(x, [self.gate_proj, self.up_proj])
        if both is None:
            return super().forward(x)
        if _may_launch(x, self.act_fn) and type(self.act_fn) is GELUTanh:
            hidden = gated(both)
        else:
            gate, up = both.chunk(2, dim=-1)
            hidden = self.act_fn(gate) * up
        return self.down_proj(hidden.view(*x.shape[:-1], -1))


class Gemma3Attention(stock.Gemma3Attention):
    """q, k and v as one product. Beyond the projections, `forward` is transformers' own, 5.23 and 5.24."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        projected = _together(hidden_states, [self.q_proj, self.k_proj, self.v_proj])
        if projected is None:
            return super().forward(hidden_states, position_embeddings, attention_mask, **kwargs)

        batch_and_length = hidden_states.shape[:-1]
        projected = projected.view(*batch_and_length, -1, self.head_dim)  # [batch, length, heads, head_dim]
        keys = self.k_proj.out_features // self.head_dim
        queries = projected.shape[2] - 2 * keys
        query, key, value = projected.split([queries, keys, keys], dim=2)
        cos, sin = position_embeddings
        if _may_launch(hidden_states, self.q_norm, self.k_norm):
            query, key = heads(
                projected, queries, keys, self.q_norm.weight, self.k_norm.weight, cos, sin, self.q_norm.eps
            )
            query, key = query.transpose(1, 2), key.transpose(1, 2)
        else:
            query, key = self.q_norm(query.transpose(1, 2)), self.k_norm(key.transpose(1, 2))
            query, key = stock.apply_rotary_pos_emb(query, key, cos, sin)
        value = value.transpose(1, 2)

        cache = cache_among(kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in ("cache", "past_key_values")}
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = stock.ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, stock.eager_attention_forward
        )
        attended, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(attended.reshape(*batch_and_length, -1).contiguous()), weights


FUSED = {
    stock.Gemma3Attention: Gemma3Attention,
    stock.Gemma3MLP: Gemma3MLP,
    stock.Gemma3RMSNorm: Gemma3RMSNorm,
}
