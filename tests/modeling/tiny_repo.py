"""Tiny Gemma 3 repos in AWQ format, written without any code of the project, and the float model that they stand for.

The packing here is spelled out element by element from the format's description, so that it checks the project's.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3TextConfig

ROOT = Path(__file__).resolve().parents[2]
KEEP = [
    "model.vision_tower",
    "model.multi_modal_projector",
    "vision_tower",
    "multi_modal_projector",
    "embed_tokens",
    "lm_head",
]
QUANTIZATION = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": 32,
    "version": "gemm",
    "zero_point": True,
    "modules_to_not_convert": KEEP,
}


@dataclass
class TinyRepo:
    path: Path
    reference: torch.nn.Module  # stock transformers, float32, with the dequantized weights


def text_config(**changes) -> Gemma3TextConfig:
    values = dict(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=16,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
        layer_types=["sliding_attention"] * 5 + ["full_attention"],
    )
    return Gemma3TextConfig(**(values | changes))


def multimodal_config(**changes) -> Gemma3Config:
    vision = dict(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=56,
        patch_size=14,
        vision_use_head=False,
        model_type="siglip_vision_model",
    )
    values = dict(
        text_config=text_config(vocab_size=384).to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
        boi_token_index=300,
        eoi_token_index=301,
        image_token_index=320,
        eos_token_id=1,
    )
    return Gemma3Config(**(values | changes))


def pack_awq_by_hand(codes: np.ndarray) -> np.ndarray:
    """codes [N, K] in -8..7 -> AWQ words int32 [K, N/8]."""
    outputs, inputs = codes.shape
    words = np.zeros((inputs, outputs // 8), dtype=np.uint32)
    for nibble, output in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        words |= (codes[output::8].T + 8).astype(np.uint32) << np.uint32(4 * nibble)
    return words.view(np.int32)


def on_grid(shape: tuple[int, int], generator: torch.Generator, scale_dtype: torch.dtype, q4_0: bool = False):
    """Random codes [N, K] in -7..7 and scales [N, K/32] of `scale_dtype`, sized so that the model's logits are tame.

    Args:
        q4_0: codes from -8 on, and scales as llama.cpp's quantizer gives them: half of them negative, some zero.
    """
    codes = torch.randint(-8 if q4_0 else -7, 8, shape, generator=generator)
    scales = (torch.rand(shape[0], shape[1] // 32, generator=generator) + 0.5) * 0.35 / shape[1] ** 0.5
    if q4_0:
        scales *= torch.tensor([-1.0, 0.0, 1.0])[torch.bucketize(torch.rand_like(scales), torch.tensor([0.48, 0.52]))]
        codes[(scales == 0).repeat_interleave(32, dim=1)] = 0  # the one that a plain embedding can tell
    return codes, scales.to(scale_dtype)


def build(
    path: Path,
    config,
    *,
    dtype: torch.dtype = torch.bfloat16,
    scale_dtype: torch.dtype = torch.bfloat16,
    embedding: str = "plain",
    seed: int = 0,
    q4_0: bool = False,
) -> TinyRepo:
    """Write a repo of random int4 weights at `path` and return it with its float32 reference."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    multimodal = isinstance(config, Gemma3Config)
    model_class = Gemma3ForConditionalGeneration if multimodal else Gemma3ForCausalLM
    reference = model_class(config).eval()
    tensors, weights = {}, reference.state_dict()
    for name, weight in weights.items():
        disk = _disk_name(name) if multimodal else name
        if name == "lm_head.weight":
            continue
        if name.endswith("embed_tokens.weight") or (
            ".layers." in name and name.endswith("_proj.weight") and "vision" not in name
        ):
            codes, scales = on_grid(tuple(weight.shape), generator, scale_dtype, q4_0)
            if name.endswith("embed_tokens.weight"):
                codes[-64:] = 0
                scales[-64:] = 1
            exact = codes * scales.float().repeat_interleave(32, dim=1) + 0  # no -0
            stem = disk.removesuffix(".weight")
            if not name.endswith("embed_tokens.weight"):
                tensors[f"{stem}.qweight"] = torch.from_numpy(pack_awq_by_hand(codes.numpy()))
                zeros = np.full((weight.shape[1] // 32, weight.shape[0] // 8), 0x88888888, dtype=np.uint32)
                tensors[f"{stem}.qzeros"] = torch.from_numpy(zeros.view(np.int32))
                tensors[f"{stem}.scales"] = scales.T.contiguous()
            elif embedding == "plain":
                tensors[disk] = exact.to(dtype)
                save_path = path / "int4_embedding.safetensors"
                path.mkdir(parents=True, exist_ok=True)
                save_file({f"{stem}.scales": scales}, save_path, metadata={"format": "pt"})
            else:
                words = np.zeros((weight.shape[0], weight.shape[1] // 8), dtype=np.uint32)
                for nibble in range(8):
                    words |= (codes.numpy()[:, nibble::8] + 8).astype(np.uint32) << np.uint32(4 * nibble)
                tensors[f"{stem}.qweight"] = torch.from_numpy(words.view(np.int32))
                tensors[f"{stem}.scales"] = scales
            weights[name] = exact
        else:
            scale = 0.02 if "norm" not in name and weight.dim() > 1 else 0.1
            value = torch.randn(weight.shape, generator=generator) * scale
            value = value.to(dtype).float()
            tensors[disk] = value.to(dtype)
            weights[name] = value
    reference.load_state_dict(weights | _tied(weights))
    _write(path, config, tensors, dtype, multimodal)
    return TinyRepo(path, reference)


def _tied(weights: dict) -> dict:
    return {"lm_head.weight": next(v for k, v in weights.items() if k.endswith("embed_tokens.weight"))}


def _disk_name(name: str) -> str:
    if name.startswith("model.language_model."):
        return "language_model.model." + name.removeprefix("model.language_model.")
    name = name.removeprefix("model.")
    if name.startswith("vision_tower.") and not name.startswith("vision_tower.vision_model."):
        name = name.replace("vision_tower.", "vision_tower.vision_model.", 1)
    return name


def _write(path: Path, config, tensors: dict, dtype: torch.dtype, multimodal: bool) -> None:
    path.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    shards = [names[::2], names[1::2]]
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        file = f"model-{i:05d}-of-00002.safetensors"
        save_file({name: tensors[name].contiguous() for name in shard}, path / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    own = "Gemma3ForConditionalGeneration" if multimodal else "Gemma3ForCausalLM"
    classes = {"AutoModel": "Gemma3Model" if multimodal else "Gemma3TextModel", "AutoModelForCausalLM": own}
    if multimodal:
        classes |= {"AutoModelForImageTextToText": own, "AutoModelForMultimodalLM": own}
    values = config.to_dict() | {
        "architectures": [own],
        "dtype": str(dtype).removeprefix("torch."),
        "quantization_config": QUANTIZATION,
        "auto_map": {"AutoConfig": f"int4_config.{type(config).__name__}"}
        | {auto: f"modeling_gemma3_int4.{name}" for auto, name in classes.items()},
    }
    (path / "config.json").write_text(json.dumps(values))
    (path / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 2, "eos_token_id": [1], "pad_token_id": 0})
    )
    for file in [ROOT / "modeling_gemma3_int4.py", *ROOT.glob("int4_*.py")]:
        shutil.copy(file, path / file.name)
