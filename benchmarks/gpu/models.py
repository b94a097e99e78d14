"""Whole models with random weights, made on the device."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from gemma3_int4 import int4_backend, modeling_gemma3_int4
from gemma3_int4.int4_attention import IMPLEMENTATION
from gemma3_int4.int4_layers import AwqLinear, Int4Embedding, Int4Linear
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from benchmarks.gpu.clock import reset_peak
from benchmarks.gpu.products import random_matrix, text_config


def models(args: argparse.Namespace, name: str, device: torch.device) -> Iterator[tuple[str, torch.nn.Module]]:
    """The int4 model, then, if asked for, the bfloat16 one; the first is gone when the second comes."""
    for kind, build in (("int4", int4_model), ("bf16", bfloat16_model)):
        if kind in args.models:
            reset_peak(device)
            yield kind, build(text_config(name), device)


def int4_model(config: Gemma3TextConfig, device: torch.device) -> torch.nn.Module:
    """The class that `from_pretrained` gives, with random weights that never were anything but int4."""
    config._int4_checkpoint = modeling_gemma3_int4.Int4Checkpoint(
        keep=(), packed_embedding=True, scale_dtypes={"model.embed_tokens.scales": torch.bfloat16}, ahead={}
    )
    model = _on_meta(modeling_gemma3_int4.Gemma3ForCausalLM, config, IMPLEMENTATION)
    for name in [name for name, module in model.named_modules() if isinstance(module, AwqLinear)]:
        rows, columns = model.get_submodule(name).rows, model.get_submodule(name).columns
        backend = int4_backend.choose_backend(device, torch.bfloat16, rows, columns)
        packed = backend.pack(*random_matrix(rows, columns, device))
        model.set_submodule(name, Int4Linear(rows, columns, torch.bfloat16, backend, packed).eval())
    stored = model.get_input_embeddings()
    shape = stored.rows, stored.columns
    backend = int4_backend.choose_backend(device, torch.bfloat16, *shape)
    packed = backend.pack(*random_matrix(*shape, device))
    model._set_int4_embedding(Int4Embedding(*shape, torch.bfloat16, backend, packed, stored.embed_scale))
    modeling_gemma3_int4.use_fused_modules(model)
    return _filled(model, device)


def bfloat16_model(config: Gemma3TextConfig, device: torch.device) -> torch.nn.Module:
    """Stock Gemma 3 in bfloat16, random."""
    model = _filled(_on_meta(Gemma3ForCausalLM, config, "sdpa"), device)
    model.tie_weights()
    return model


def _on_meta(model_class: type, config: Gemma3TextConfig, attention: str) -> torch.nn.Module:
    config._attn_implementation = attention
    with torch.device("meta"):
        return model_class(config).to(torch.bfloat16).eval().requires_grad_(False)


def _filled(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Random values for what is still without memory: 1 for norms (stored as 0), rows of norm 1 for matrices."""
    for owner in model.modules():
        for name, tensor in list(owner.named_parameters(recurse=False)):
            if tensor.is_meta:
                value = torch.zeros(tensor.shape, dtype=torch.bfloat16, device=device)
                if tensor.dim() > 1:
                    value.normal_(std=tensor.shape[1] ** -0.5)
                setattr(owner, name, torch.nn.Parameter(value, requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config).to(device)  # its buffers were meta, too
    embedding = model.get_input_embeddings()
    if "embed_scale" in dict(embedding.named_buffers()):
        embedding.embed_scale = torch.tensor(model.config.hidden_size**0.5, device=device)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def token_bytes(model: torch.nn.Module) -> int:
    """Bytes of weights that one decoding step reads."""
    return getattr(model, "int4_bytes", 0) + sum(parameter.nbytes for parameter in model.parameters())


def backend_of(model: torch.nn.Module) -> str:
    return getattr(model, "int4_backend", "cublas")
