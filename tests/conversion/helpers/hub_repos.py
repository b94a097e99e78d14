"""Repos as others publish them, made from a converted one: AWQ as AutoAWQ has it, compressed-tensors as llmcompressor.

Nothing of this project is left in them: no code, no side file, no manifest.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from conversion.formats import awq, compressed_tensors
from conversion.shards import INDEX
from tests.conversion.helpers.tiny import command_line

CASES = ("mm-27b-style", "text-1b-style")  # of the goldens
Tensors = dict[str, torch.Tensor]
AUTOAWQ = {  # as AutoAWQ 0.2.9 writes it
    "backend": "autoawq",
    "bits": 4,
    "do_fuse": False,
    "exllama_config": None,
    "fuse_max_seq_len": None,
    "group_size": 32,
    "modules_to_fuse": None,
    "modules_to_not_convert": ["vision_tower", "multi_modal_projector"],
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
}


def llmcompressor(group_size: int, **weights: object) -> dict:
    """As llmcompressor 0.9 writes it."""
    scheme = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": group_size,
        "num_bits": 4,
        "observer": "minmax",
        "observer_kwargs": {},
        "strategy": "group",
        "symmetric": True,
        "type": "int",
    }
    group = {
        "format": "pack-quantized",
        "input_activations": None,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": scheme | weights,
    }
    return {
        "config_groups": {"group_0": group},
        "format": "pack-quantized",
        "global_compression_ratio": None,
        "ignore": ["lm_head", "re:.*vision_tower.*", "re:.*multi_modal_projector.*"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "sparsity_config": {},
        "transform_config": {},
        "version": "0.12.2",
    }


def convert(source: Path, output: Path, *options: str) -> int:
    """Exit code of a conversion."""
    return command_line(["--checkpoint", str(source), "--output", str(output), *options])


def tensors_of(repo: Path) -> Tensors:
    """All tensors of a repo's shards."""
    found: Tensors = {}
    for path in sorted(repo.glob("model*.safetensors")):
        found |= load_file(path)
    return found


def write_repo(
    folder: Path,
    like: Path,
    tensors: Tensors,
    quantization: dict,
    *,
    index: bool = True,
    files: int = 3,
    changed: Callable[[dict], dict] = lambda config: config,
) -> Path:
    """Writes a repo without code, its configuration that of another.

    Args:
        folder: where to, made.
        like: a converted repo.
        tensors: all of its tensors.
        quantization: its `quantization_config`.
        index: whether there is an index.
        files: of weights.
        changed: changes its config.json.
    """
    folder.mkdir(parents=True)
    config = json.loads((like / "config.json").read_text())
    del config["auto_map"]
    (folder / "config.json").write_text(json.dumps(changed(config | {"quantization_config": quantization})))
    names, weight_map = sorted(tensors), {}
    for number in range(files):
        part = names[number::files]
        file = f"model-{number + 1:05d}-of-{files:05d}.safetensors" if files > 1 else "model.safetensors"
        save_file({name: tensors[name].contiguous() for name in part}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    if index:
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json"):
        if (like / name).is_file():
            shutil.copy(like / name, folder)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [1, 106], "cache_implementation": "hybrid"})
    )
    return folder


def second_layout(tensors: Tensors) -> Tensors:
    """Under the names of transformers 5."""

    def renamed(name: str) -> str:
        name = re.sub(r"^language_model\.model\.", "model.language_model.", name)
        return re.sub(r"^(vision_tower|multi_modal_projector)\.", r"model.\1.", name)

    return {renamed(name): tensor for name, tensor in tensors.items()}


def packed(tensors: Tensors) -> Tensors:
    """AWQ's linears as those of compressed-tensors."""
    return _relaid(tensors, "qweight", ("qzeros", "scales"), _packed)


def with_groups(tensors: Tensors, size: int) -> Tensors:
    """AWQ's linears with the first scale of every `size` inputs for all of them."""
    found = dict(tensors)
    for name in tensors:
        if name.endswith((".qzeros", ".scales")):
            found[name] = tensors[name][:: size // 32].contiguous()
    return found


def _packed(qweight: torch.Tensor, scales: torch.Tensor) -> Tensors:
    codes, _ = awq.unpack({"qweight": qweight.numpy(), "scales": scales.float().numpy()})
    words = compressed_tensors.pack(codes, scales.float().numpy().T)
    return {
        "weight_packed": torch.from_numpy(words["weight_packed"]),
        "weight_scale": scales.T.contiguous(),
        "weight_shape": torch.tensor(codes.shape),
    }


def _relaid(tensors: Tensors, words: str, others: tuple[str, ...], relay: Callable[..., Tensors]) -> Tensors:
    found: Tensors = {}
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        if part == words and "embed_tokens" not in name:
            parts = relay(tensor, tensors[f"{stem}.scales"])
            found |= {f"{stem}.{part}": value for part, value in parts.items()}
        elif part not in others:
            found[name] = tensor
    return found
