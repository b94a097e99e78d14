# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""What is around the int4 matrices, on a CPU: parts of Gemma 3 as single calls of `csrc/`.

What this file offers:
    Gemma3TextModel       one token of each sequence: layer after layer, without what transformers does for each
    Gemma3DecoderLayer    one token of each sequence: a whole layer in one call
    Gemma3RMSNorm         any number of rows: one pass instead of seven
    Gemma3MLP             gelu(gate) * up in one pass
    Linear, Conv2d        those of the vision tower
    SiglipEncoder         one picture after the other
    SiglipMLP             gelu in one pass
    FUSED, FUSED_TOWER    which of transformers' and torch's classes these replace

For one token transformers' Gemma 3 runs some 74 tensor operations a layer, each of a few microseconds, and copies the
cache to append a row. The classes are transformers' own, and compute as they do, except that bfloat16 on a CPU takes
the fused kernels wherever nothing forbids it (gradients, compilation, and for the layer what `forward` and
`_NativeLayer` list). Names, adapters, hooks, `save_pretrained`, caches and `generate` know nothing of it.
"""

import ctypes
import functools

import torch
from torch import nn
from transformers import activations
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPast
from transformers.models.gemma3 import modeling_gemma3 as stock
from transformers.models.siglip import modeling_siglip as siglip
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from . import int4_prefill as prefill
from .int4_attention import IMPLEMENTATION
from .int4_cache import KVBuffer
from .int4_cpu_hardware import cpu, threads
from .int4_cpu_library import Gated, Layer, Norm, Step, Steps, library
from .int4_cpu_native import NativeCpu, dense, empty, native_matrix
from .int4_layers import Int4Linear
from .int4_versions import CACHE, cache_among


def _is_plain_bfloat16(x: torch.Tensor, multiple: int = 32) -> bool:
    """Whether the C code can compute with it, rows of a multiple, and need not be differentiated or compiled."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.shape[-1] % multiple == 0
    )


class Gemma3RMSNorm(stock.Gemma3RMSNorm):
    """In one pass. Named as the one it replaces: transformers looks for "RMSNorm" in the name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (_is_plain_bfloat16(x) and self.weight.dtype == torch.bfloat16 and self.weight.device == x.device):
            return super().forward(x)
        n = x.shape[-1]
        y = torch.empty(x.shape, dtype=x.dtype)
        x, weight = x.contiguous(), self.weight
        call = Norm(x.data_ptr(), weight.data_ptr(), x.numel() // n, n, self.eps, y.data_ptr())
        library().int4_rms_norm(call, threads() if x.numel() > 1 << 14 else 1)
        return y


class Gemma3MLP(stock.Gemma3MLP):
    """gelu(gate) * up in one pass, over what the gate has just made where nobody else sees it.

    The projections are called as modules, adapters in their place too.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (_is_plain_bfloat16(x) and type(self.act_fn) is activations.GELUTanh and not self.act_fn._forward_hooks):
            return super().forward(x)
        gate, up = self.gate_proj(x), self.up_proj(x)
        if not (_is_plain_bfloat16(gate) and gate.is_contiguous() and up.is_contiguous() and up.dtype == gate.dtype):
            return self.down_proj(self.act_fn(gate) * up)
        y = gate if _is_unseen(self.gate_proj) else empty(gate.shape, gate.dtype)
        call = Gated(gate.data_ptr(), up.data_ptr(), gate.numel(), y.data_ptr())
        library().int4_gated(call, threads())
        return self.down_proj(y)


class Gemma3DecoderLayer(stock.Gemma3DecoderLayer):
    """One token of each sequence in one call. Named as the one it replaces: some look for it by its name."""

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs):
        if (
            torch.compiler.is_compiling()
            or torch.is_grad_enabled()
            or self.training
            or hidden_states.shape[1] != 1
            or (cpu().amx and len(hidden_states) > cpu().native_rows)  # torch's GEMM is faster
            or hidden_states.dtype != torch.bfloat16
            or args
            or self.config._attn_implementation not in ("sdpa", IMPLEMENTATION)
        ):
            return super().forward(hidden_states, *args, **kwargs)
        rows = len(hidden_states)
        cache = _layer_of(cache_among(kwargs), self.layer_idx, rows)
        native = self._native()
        mask = kwargs.get("attention_mask")
        cos, sin = kwargs["position_embeddings"]
        if (
            cache is None
            or native is None
            or not (mask is None or _is_plain(mask, rows, cache.keys.shape[2] + 1))
            or not (_is_table(cos, rows) and _is_table(sin, rows) and cos.shape == sin.shape)
        ):
            return super().forward(hidden_states, **kwargs)

        hidden_states = hidden_states.contiguous()
        out = torch.empty_like(hidden_states)
        _run([_step(native, cache, hidden_states, out, cos, sin, mask)])
        return out

    def is_watched(self) -> bool:
        """Whether it has to be called as a module: there is a hook, a forward of its own, or training."""
        return bool(self._forward_hooks or self._forward_pre_hooks or "forward" in self.__dict__ or self.training)

    def _native(self) -> "_NativeLayer | None":
        native = self.__dict__.get("_native_layer")
        if native is None or not native.is_current():
            native = self._native_layer = _NativeLayer(self)
        return native if native.usable else None


def _step(
    native: "_NativeLayer",
    cache: DynamicLayer,
    hidden: torch.Tensor,
    out: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    mask: torch.Tensor | None,
) -> Step:
    """One token of each sequence through a layer, hidden -> out [B, 1, D]; its keys and values go to the cache.

    The cache counts it at once; `_run` computes it, and everything has to live until then.
    """
    keys, values, head_stride, length = _append(cache)
    return Step(
        layer=native.refreshed(),
        rows=len(hidden),
        few=cpu().native_rows,
        hidden=hidden.data_ptr(),
        cos=cos.data_ptr(),
        sin=sin.data_ptr(),
        table_stride=_stride(cos),
        keys=keys,
        values=values,
        head_stride=head_stride,
        length=length,
        mask=None if mask is None else mask.data_ptr(),
        mask_stride=0 if mask is None else _stride(mask),
        out=out.data_ptr(),
    )


def _run(steps: list[Step]) -> None:
    """Computes steps, one after the other."""
    array = (Step * len(steps))(*steps)
    library().int4_decoder_layers(Steps(ctypes.addressof(array), len(steps)), threads())


class Gemma3TextModel(prefill.Gemma3TextModel):
    """Takes one token of each sequence from layer to layer itself, unless there are masks to make.

    Calling layers as modules, making masks for them and asking the config for their kind is a few percent of a small
    model's step: 3 % with the real 270M on one thread of an AVX2 CPU, more where the kernels are faster.
    """

    @functools.wraps(stock.Gemma3TextModel.forward)
    def forward(self, *args, **kwargs):
        stages = None if args else self._stages(kwargs)
        if stages is None:
            return super().forward(*args, **kwargs)
        cache, ids = cache_among(kwargs), kwargs.get("input_ids")
        hidden = self.embed_tokens(ids) if ids is not None else kwargs["inputs_embeds"].contiguous()
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.tensor([[cache.get_seq_length()]])
        tables = {kind: self.rotary_emb(hidden, positions, kind) for kind in {kind for _, _, kind, _ in stages}}
        if not all(_is_table(table, len(hidden)) for pair in tables.values() for table in pair):
            return super().forward(**kwargs)
        buffers, before, steps = (torch.empty_like(hidden), torch.empty_like(hidden)), hidden, []
        for number, (native, layer, kind, mask) in enumerate(stages):
            after = buffers[number % 2]
            steps.append(_step(native, layer, before, after, *tables[kind], mask))
            before = after
        _run(steps)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(after), **{CACHE: cache})

    def _stages(self, kwargs: dict) -> "list[tuple[_NativeLayer, DynamicLayer, str, torch.Tensor | None]] | None":
        """For each layer the C code's view of it, its part of the cache, its kind, and its mask or None.

        None where a layer is to be called as a module, where masks are still to be made, or where more than the result
        is asked for.
        """
        new = kwargs["inputs_embeds"] if kwargs.get("inputs_embeds") is not None else kwargs.get("input_ids")
        if (
            torch.compiler.is_compiling()
            or torch.is_grad_enabled()
            or new is None
            or new.shape[1] != 1
            or new.device.type != "cpu"
            or (kwargs.get("input_ids") is None) == (kwargs.get("inputs_embeds") is None)
            or any(not (kwargs[name] is None or kwargs[name] is False) for name in kwargs.keys() - _UNDERSTOOD)
            or kwargs.get("return_dict") is False
        ):
            return None
        rows, config, cache = len(new), self.config, cache_among(kwargs)
        mask, positions, dtype = kwargs.get("attention_mask"), kwargs.get("position_ids"), self.norm.weight.dtype
        if (
            config._attn_implementation not in ("sdpa", IMPLEMENTATION)
            or config.use_bidirectional_attention
            or config.output_hidden_states
            or config.output_attentions
            or not config.return_dict
            or dtype != torch.bfloat16
            or (new.is_floating_point() and new.dtype != dtype)
            or (cpu().amx and rows > cpu().native_rows)  # torch's GEMM is faster
            or type(cache) is not DynamicCache
            or (positions is not None and positions.shape not in ((rows, 1), (1, 1)))
            or _any_hooks()
        ):
            return None
        seen = rows, cache.get_seq_length() + 1
        if not (mask is None or isinstance(mask, dict) or (mask.shape == seen and bool(mask.all()))):
            return None
        masks = mask if isinstance(mask, dict) else {}
        kinds, window, stages = config.layer_types, config.sliding_window, []
        if config.num_hidden_layers != len(self.layers):
            return None
        for index, decoder_layer in enumerate(self.layers):
            layer = _layer_of(cache, index, rows)
            if layer is None or type(decoder_layer) is not Gemma3DecoderLayer or decoder_layer.is_watched():
                return None
            own = masks.get(kinds[index])
            if own is None and kinds[index] == "sliding_attention" and not _is_window(layer, window):
                return None
            if own is not None and not _is_plain(own, rows, layer.keys.shape[2] + 1):
                return None
            native = decoder_layer._native()
            if native is None:
                return None
            stages.append((native, layer, kinds[index], own))
        return stages


# Arguments of a model that a step takes as transformers does; of others, only that they are not given.
_UNDERSTOOD = frozenset(
    ("input_ids", "inputs_embeds", "attention_mask", "position_ids", CACHE, "use_cache", "return_dict")
)


def _any_hooks() -> bool:
    """Whether something wants to see every module that is called."""
    module = nn.modules.module
    return bool(module._global_forward_hooks or module._global_forward_pre_hooks)


def _is_unseen(linear: nn.Module) -> bool:
    """Whether nobody else sees what a linear layer gives, so that it may be written over."""
    made = type(linear) in (Int4Linear, Linear) and "forward" not in linear.__dict__
    return made and not (linear._forward_hooks or _any_hooks())


def _is_window(layer: DynamicLayer, window: int) -> bool:
    """Whether a cache layer, and a token more, is no more than a sliding layer sees."""
    if type(layer) is DynamicSlidingWindowLayer:
        return layer.sliding_window == window
    return layer.keys.shape[2] < window


def _lacks_bfloat16(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether both are of it, on a CPU without arithmetic for it."""
    return x.dtype == weight.dtype == torch.bfloat16 and x.device.type == "cpu" and not cpu().bf16_gemm


def _is_dense(x: torch.Tensor) -> bool:
    """Whether our kernel multiplies these rows."""
    return _is_plain_bfloat16(x, 8) and x.dim() > 1 and x.numel() > 0 and library() is not None


class Linear(nn.Linear):
    """Where the CPU has no bfloat16 arithmetic by our kernel, or in float32, a ninth of the time or less."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not _lacks_bfloat16(x, self.weight):
            return super().forward(x)
        if _is_dense(x):
            return dense(x, self.weight, self.bias)
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(x.float(), self.weight.float(), bias).to(x.dtype)


class Conv2d(nn.Conv2d):
    """Likewise, with patches as rows; which they are in memory, [B, H * W, C], as all layers then have them."""

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not _lacks_bfloat16(x, weight):
            return super()._conv_forward(x, weight, bias).contiguous(memory_format=torch.channels_last)
        patches_alone = self.kernel_size == self.stride and self.padding in ("valid", (0, 0))
        patches_alone = patches_alone and self.dilation == (1, 1) and self.groups == 1 and x.dim() == 4
        if patches_alone and _is_plain_bfloat16(x, 1):
            (height, width), filling = self.kernel_size, (0, -weight[0].numel() % 8)
            patches = x.unfold(2, height, height).unfold(3, width, width).permute(0, 2, 3, 1, 4, 5).flatten(3)
            patches = nn.functional.pad(patches, filling)
            if _is_dense(patches):
                return dense(patches, nn.functional.pad(weight.flatten(1), filling), bias).permute(0, 3, 1, 2)
        bias = None if bias is None else bias.float()
        return super()._conv_forward(x.float(), weight.float(), bias).to(x.dtype, memory_format=torch.channels_last)


class SiglipEncoder(siglip.SiglipEncoder):
    """One picture after the other, so that several take no more memory than one, unless something looks on."""

    def forward(self, inputs_embeds: torch.Tensor, attention_mask=None, **kwargs) -> BaseModelOutput:
        pictures = inputs_embeds.split(1)
        hooks = _any_hooks() or any(module._forward_hooks or module._forward_pre_hooks for module in self.modules())
        if len(pictures) < 2 or attention_mask is not None or hooks or not _is_plain_bfloat16(inputs_embeds, 8):
            return super().forward(inputs_embeds, attention_mask, **kwargs)
        states = torch.cat([super(SiglipEncoder, self).forward(x, **kwargs).last_hidden_state for x in pictures])
        return BaseModelOutput(last_hidden_state=states)


class SiglipMLP(siglip.SiglipMLP):
    """gelu in one pass, over what the first layer has just made."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gelu, x = self.activation_fn, self.fc1(hidden_states)
        plain = _is_plain_bfloat16(x, 16) and type(gelu) is activations.GELUTanh and _is_unseen(self.fc1)
        if not plain or gelu._forward_hooks or gelu._forward_pre_hooks or library() is None:
            return self.fc2(gelu(x))
        library().int4_gated(Gated(x.data_ptr(), None, x.numel(), x.data_ptr()), threads())
        return self.fc2(x)


class _NativeLayer:
    """The C code's view of a decoder layer, and what it was taken from, so that a change does not go unnoticed.

    `usable` is False where a linear layer is not on the native backend (an adapter stands in its place, say), a norm
    is not in bfloat16, or a hook wants to see what the fused kernel does not compute.
    """

    def __init__(self, layer: stock.Gemma3DecoderLayer):
        attention, mlp = layer.self_attn, layer.mlp
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        norms = [layer.input_layernorm, attention.q_norm, attention.k_norm, layer.post_attention_layernorm]
        norms += [layer.pre_feedforward_layernorm, layer.post_feedforward_layernorm]
        inside = [module for module in layer.modules() if module is not layer]
        self._gains = [norm.weight for norm in norms]
        self._seen = [(m._modules, name, child) for m in layer.modules() for name, child in m._modules.items()]
        self._seen += [(m._buffers, name, tensor) for m in inside for name, tensor in m._buffers.items()]
        self._seen += [(norm._parameters, "weight", gain) for norm, gain in zip(norms, self._gains, strict=True)]
        self._seen += [(m.__dict__, "forward", m.__dict__.get("forward")) for m in inside]
        self._hooks = [hooks for m in inside for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._hooked = any(self._hooks)
        self.usable = (
            all(type(linear) is Int4Linear and linear.backend is NativeCpu for linear in linears)
            and attention.head_dim % 32 == 0
            and layer.config.hidden_activation == "gelu_pytorch_tanh"
            and all(gain.dtype == torch.bfloat16 and gain.device.type == "cpu" for gain in self._gains)
            and not any("forward" in module.__dict__ for module in inside)
            and not self._hooked
        )
        if self.usable:
            self._struct = Layer(
                *(native_matrix(**linear.packed) for linear in linears),
                heads=attention.config.num_attention_heads,
                kv_heads=attention.config.num_key_value_heads,
                head_dim=attention.head_dim,
                eps=norms[0].eps,
                scaling=attention.scaling,
            )

    def is_current(self) -> bool:
        return all(owner.get(name) is value for owner, name, value in self._seen) and any(self._hooks) == self._hooked

    def refreshed(self) -> int:
        """Address of the C struct, the norms' pointers taken anew: a parameter's data can be exchanged under it."""
        self._struct.norms[:] = [gain.data_ptr() for gain in self._gains]
        return ctypes.addressof(self._struct)

    def __reduce__(self):  # a copy of the module must not share the pointers
        return (type(None), ())


def _layer_of(cache, index: int, rows: int) -> DynamicLayer | None:
    """The cache's layer, where it is one that `_append` knows."""
    if type(cache) is not DynamicCache or cache.offloading or len(cache.layers) <= index:
        return None
    layer = cache.layers[index]
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or getattr(layer, "record_past", False):
        return None
    if not layer.get_seq_length() or layer.keys.shape[0] != rows or layer.keys.dtype != torch.bfloat16:
        return None
    return layer


def _is_plain(mask: torch.Tensor, rows: int, length: int) -> bool:
    """Whether the C code can read it: a row for each sequence, or one for all."""
    shapes = (rows, 1, 1, length), (1, 1, 1, length)
    return mask.dtype == torch.bool and mask.shape in shapes and mask.stride(3) == 1


def _is_table(table: torch.Tensor, rows: int) -> bool:
    """Likewise, of the positions' cosines or sines."""
    return table.dtype == torch.bfloat16 and len(table) in (1, rows) and table.is_contiguous()


def _stride(table: torch.Tensor) -> int:
    """Distance of the rows of two sequences, 0 where they share one."""
    return table.stride(0) if len(table) > 1 else 0


def _append(cache: DynamicLayer) -> tuple[int, int, int, int]:
    """What `cache.update` does for a token of each sequence, except that its keys and values are still to be written.

    Returns:
        The addresses of the keys and of the values to attend to, the new ones last, the distance of two heads in
        numbers (those of a sequence after those of another), and the length.
    """
    buffer = KVBuffer.of(cache, 1)
    head_dim = buffer.keys.shape[-1]
    length = buffer.length + 1
    offset = buffer.start * head_dim * buffer.keys.element_size()
    attended = buffer.keys.data_ptr() + offset, buffer.values.data_ptr() + offset, buffer.rows * head_dim, length
    if isinstance(cache, DynamicSlidingWindowLayer):
        cache.cumulative_length += 1
        kept = min(length, cache.sliding_window - 1)
        buffer.hold(cache, buffer.start + length - kept, kept)
    else:
        buffer.hold(cache, buffer.start, length)
    return attended


# By its class transformers knows which outputs of a model can be recorded, and learns that where one is constructed.
_CAN_RECORD_REGISTRY.update({str(Gemma3TextModel): Gemma3TextModel._can_record_outputs})

FUSED = {
    prefill.Gemma3TextModel: Gemma3TextModel,
    stock.Gemma3DecoderLayer: Gemma3DecoderLayer,
    stock.Gemma3RMSNorm: Gemma3RMSNorm,
    stock.Gemma3MLP: Gemma3MLP,
}
FUSED_TOWER = {
    nn.Linear: Linear,
    nn.Conv2d: Conv2d,
    siglip.SiglipEncoder: SiglipEncoder,
    siglip.SiglipMLP: SiglipMLP,
}
