"""Text-only repos of random int4 weights in the published shapes, and the GGUF file of the same codes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Gemma3TextConfig

from conversion.awq_repo import AwqRepo
from conversion.formats.gguf import write_language_model
from conversion.repo_files import CODE_FILES
from conversion.sizes import SIZES, published_config
from tests.real270m import published_tokenizer

ROOT = Path(__file__).resolve().parents[1]
KEEP = ["model.vision_tower", "model.multi_modal_projector", "vision_tower", "multi_modal_projector"]
QUANTIZATION = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def random_repo(name: str, cache: Path, layers: int | None = None) -> tuple[Path, Path]:
    """The repo of a published size, and its GGUF file, made on the first call; the code files are always today's."""
    size = next(size for size in SIZES if size.name.lower() == name)
    folder = cache / (name if layers is None else f"{name}-{layers}-layers")
    if not (folder / "config.json").exists():
        config = published_config(size, "it").get_text_config()
        config.vocab_size = 262144
        config.num_hidden_layers = layers or config.num_hidden_layers
        config.layer_types = config.layer_types[: config.num_hidden_layers]
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, config)
    for file in CODE_FILES:
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, folder / file)
    gguf = folder / "model-Q4_0.gguf"
    if not gguf.exists():
        write_language_model(AwqRepo(folder), gguf.with_suffix(".part"))
        gguf.with_suffix(".part").rename(gguf)
    return folder, gguf


def _write(folder: Path, config: Gemma3TextConfig) -> None:
    hidden, inner = config.hidden_size, config.intermediate_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shapes = {
        "self_attn.q_proj": (q, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
    weight_map = {}

    def save(number: int, tensors: dict[str, torch.Tensor]) -> None:
        file = f"model-{number:05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, file))

    rows, columns = config.vocab_size, hidden
    tensors = {"model.embed_tokens.qweight": _words(rows, columns // 8), "model.norm.weight": _zeros(hidden)}
    save(0, tensors | {"model.embed_tokens.scales": _scales(rows, columns // 32, columns)})
    for layer in range(config.num_hidden_layers):
        tensors = {f"{norm}.weight": _zeros(hidden) for norm in norms}
        tensors |= {f"self_attn.{name}_norm.weight": _zeros(config.head_dim) for name in "qk"}
        for name, (outputs, inputs) in shapes.items():
            tensors[f"{name}.qweight"] = _words(inputs, outputs // 8)
            tensors[f"{name}.qzeros"] = torch.full((inputs // 32, outputs // 8), 0x88888888 - 2**32, dtype=torch.int32)
            tensors[f"{name}.scales"] = _scales(inputs // 32, outputs, inputs)
        save(layer + 1, {f"model.layers.{layer}.{name}": tensor for name, tensor in tensors.items()})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    tokenizer = published_tokenizer()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(next(tokenizer.rglob(file)), folder / file)
    values = config.to_dict() | {
        "architectures": ["Gemma3ForCausalLM"],
        "dtype": "bfloat16",
        "int4_embedding": "int4",
        "quantization_config": QUANTIZATION | {"modules_to_not_convert": [*KEEP, "embed_tokens", "lm_head"]},
        "auto_map": {"AutoModelForCausalLM": "modeling_gemma3_int4.Gemma3ForCausalLM"},
    }
    (folder / "config.json").write_text(json.dumps(values))


def _words(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (rows, columns), dtype=torch.int32)


def _scales(rows: int, columns: int, inputs: int) -> torch.Tensor:
    """Such that a row of codes has a norm of about 1."""
    return ((torch.rand(rows, columns) + 0.5) / 4.6 * inputs**-0.5).bfloat16()


def _zeros(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.bfloat16)
