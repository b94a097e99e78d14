"""Repos of random int4 weights in the published shapes, and the same codes in the forms that peers read.

What this file offers:
    random_repo    the repo, its embedding stored as int4
    gguf_of        the same as a GGUF file, all Q4_0, for llama.cpp, the vision tower in one beside it
    plain_twin     the same with a plain embedding, for engines that read AWQ and know no int4 embedding
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Gemma3Config, Gemma3TextConfig

from benchmarks.engine_worker import TOWER_FILE
from benchmarks.shapes import config_of, linear_shapes, random_scales
from conversion.export.gguf_language import write_language_model
from conversion.export.gguf_vision import write_vision
from conversion.formats.gguf_names import VISION
from conversion.name_map import PADDING_ROWS, entries
from conversion.repos.awq_repo import AwqRepo
from conversion.sizes import VOCABULARY
from conversion.small_files.repo_files import CODE_FILES
from real270m.fetch import published_tokenizer

ROOT = Path(__file__).resolve().parents[1]
EMBEDDING_FILE = "model-embedding.safetensors"
KEEP = ["model.vision_tower", "model.multi_modal_projector", "vision_tower", "multi_modal_projector"]
QUANTIZATION = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}


def random_repo(name: str, cache: Path, layers: int | None = None, *, tower: bool = False) -> Path:
    """The repo of a published size ("4b"), or of its first layers; made on the first call, with today's code files.

    Args:
        name: the size.
        cache: where the folder of the repo is, or will be.
        layers: how many of its layers; None: all.
        tower: with the vision tower; if not, the repo is a text model's.

    Raises:
        ValueError: this size has no vision tower.
    """
    folder = cache / "-".join([name, *([f"{layers}-layers"] if layers else []), *(["tower"] if tower else [])])
    if not (folder / "config.json").exists():
        config = config_of(name, layers)
        if tower and not hasattr(config, "vision_config"):
            raise ValueError(f"{name} has no vision tower")
        config = config if tower else config.get_text_config()
        config.get_text_config().vocab_size = VOCABULARY + (PADDING_ROWS if tower else 0)
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder, config)
    for file in CODE_FILES:
        if (ROOT / file).exists():
            shutil.copy(ROOT / file, folder / file)
    return folder


def gguf_of(repo: Path, folder: Path) -> Path:
    """The GGUF file of a repo's codes in `folder`, written on the first call; of a vision tower too, beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    awq = AwqRepo(repo)
    files = {"model-Q4_0.gguf": write_language_model}
    if hasattr(awq.config, "vision_config"):
        files[TOWER_FILE] = write_vision
    for file, write in files.items():
        if not (folder / file).exists():
            write(awq, folder / f"{file}.part")
            (folder / f"{file}.part").rename(folder / file)
    return folder / "model-Q4_0.gguf"


def plain_twin(repo: Path) -> Path:
    """A folder beside the shards of a random repo, made on the first call; shards without the embedding are links."""
    folder = repo / "plain"
    if not (folder / "config.json").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file in repo.glob("model-*.safetensors"):
            if file.name != EMBEDDING_FILE:
                (folder / file.name).hardlink_to(file)
        weight = np.concatenate(list(AwqRepo(repo).embedding_weights())).view(np.int16)
        tensors = {"model.embed_tokens.weight": torch.from_numpy(weight).view(torch.bfloat16)}
        save_file(tensors, folder / EMBEDDING_FILE, metadata={"format": "pt"})
        _write_index(folder)
        shutil.copy(repo / "config.json", folder)
    return folder


def _write(folder: Path, whole: Gemma3Config | Gemma3TextConfig) -> None:
    config = whole.get_text_config()
    sees = config is not whole
    start, hidden = "language_model.model" if sees else "model", config.hidden_size
    norms = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")

    def save(file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / file, metadata={"format": "pt"})

    rows = config.vocab_size
    embedding = {"qweight": _words(rows, hidden // 8), "scales": random_scales(rows, hidden // 32, inputs=hidden)}
    save(EMBEDDING_FILE, {f"{start}.embed_tokens.{name}": tensor for name, tensor in embedding.items()})
    save("model-norm.safetensors", {f"{start}.norm.weight": _zeros(hidden)})
    for layer in range(config.num_hidden_layers):
        tensors = {f"{norm}.weight": _zeros(hidden) for norm in norms}
        tensors |= {f"self_attn.{name}_norm.weight": _zeros(config.head_dim) for name in "qk"}
        for name, (outputs, inputs) in linear_shapes(config).items():
            tensors[f"{name}.qweight"] = _words(inputs, outputs // 8)
            tensors[f"{name}.qzeros"] = torch.full((inputs // 32, outputs // 8), 0x88888888 - 2**32, dtype=torch.int32)
            tensors[f"{name}.scales"] = random_scales(inputs // 32, outputs, inputs=inputs)
        tensors = {f"{start}.layers.{layer}.{name}": tensor for name, tensor in tensors.items()}
        save(f"model-{layer:05d}.safetensors", tensors)
    if sees:
        parts = [entry for entry in entries(whole, VOCABULARY) if entry.tensors[0].startswith(VISION)]
        shapes = {name: entry.tensor_shape for entry in parts for name in entry.tensors}
        save("model-vision.safetensors", {name: _normal(*shape) for name, shape in shapes.items()})
    _write_index(folder)
    tokenizer = published_tokenizer()
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(next(tokenizer.rglob(file)), folder / file)
    name, auto = ("ConditionalGeneration", "ImageTextToText") if sees else ("CausalLM", "CausalLM")
    values = whole.to_dict() | {
        "architectures": [f"Gemma3For{name}"],
        "dtype": "bfloat16",
        "quantization_config": QUANTIZATION | {"modules_to_not_convert": [*KEEP, "embed_tokens", "lm_head"]},
        "auto_map": {f"AutoModelFor{auto}": f"modeling_gemma3_int4.Gemma3For{name}"},
    }
    (folder / "config.json").write_text(json.dumps(values))


def _write_index(folder: Path) -> None:
    weight_map = {}
    for file in sorted(folder.glob("model-*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            weight_map |= dict.fromkeys(shard.keys(), file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _words(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(-(2**31), 2**31 - 1, (rows, columns), dtype=torch.int32)


def _zeros(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.bfloat16)


def _normal(*shape: int) -> torch.Tensor:
    return (torch.randn(shape) * 0.02).bfloat16()
