"""The vision tower and the projector of a GGUF file: matrices in float16, patch and position embeddings in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

from conversion.errors import BadInput
from conversion.export.gguf_file import Float16, write_gguf
from conversion.formats.gguf_names import VISION, tensor_name
from conversion.repos.awq_repo import AwqRepo
from conversion.tensor_spec import TensorSpec


def write_vision(repo: AwqRepo, path: Path) -> list[str]:
    """Writes the vision tower and the projector of a model that sees.

    Returns:
        Lines for the user.

    Raises:
        BadInput: float16 does not hold a weight.
    """
    matrices = Float16()
    write_gguf(path, gguf.MODEL_ARCH.MMPROJ, _metadata(repo), _specs(repo), _values(repo, matrices))
    return matrices.lines("vision tower")


def _specs(repo: AwqRepo) -> list[TensorSpec]:
    return [TensorSpec(tensor_name(repo.config, name), _dtype(repo, name), repo.shape(name)) for name in _names(repo)]


def _values(repo: AwqRepo, matrices: Float16) -> Iterator[tuple[str, np.ndarray]]:
    """Names and contents of the tensors."""
    for name in _names(repo):
        shift = 1 if "soft_emb_norm" in name else 0  # the projector's RMSNorm; SigLIP's LayerNorms have no such 1
        values = repo.read(name).astype(np.float32) + np.float32(shift)
        try:
            rounded = values if _dtype(repo, name) == "float32" else matrices.round(values)
        except OverflowError as error:
            raise BadInput(f"{name}: {error}") from error
        yield tensor_name(repo.config, name), rounded


def _names(repo: AwqRepo) -> list[str]:
    return [name for name in repo.plain if name.startswith(VISION)]


def _dtype(repo: AwqRepo, name: str) -> str:
    return "float32" if len(repo.shape(name)) == 1 or ".embeddings." in name else "float16"


def _metadata(repo: AwqRepo) -> dict[str, object]:
    vision = repo.config.vision_config
    return {
        "type": gguf.GGUFType.MMPROJ,
        "file_type": gguf.LlamaFileType.MOSTLY_F16,
        "clip_has_vision_encoder": True,
        "clip_projector_type": gguf.VisionProjectorType.GEMMA3,
        "vision_projection_dim": repo.text_config.hidden_size,
        "vision_image_size": vision.image_size,
        "vision_patch_size": vision.patch_size,
        "vision_embedding_length": vision.hidden_size,
        "vision_feed_forward_length": vision.intermediate_size,
        "vision_block_count": vision.num_hidden_layers,
        "vision_head_count": vision.num_attention_heads,
        "vision_attention_layernorm_eps": vision.layer_norm_eps,
        "vision_use_gelu": True,
        "vision_image_mean": [0.5, 0.5, 0.5],
        "vision_image_std": [0.5, 0.5, 0.5],
        "vision_projector_scale_factor": vision.image_size
        // vision.patch_size
        // math.isqrt(repo.config.mm_tokens_per_image),
    }
