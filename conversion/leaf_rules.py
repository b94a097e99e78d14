"""Every leaf of a Gemma 3 checkpoint, the tensors it becomes, and how its axes move: declared once.

* `RULES`: one `Rule` for each kind of leaf.
* `Rearrangement`: the little axis language of the rules, invertible.

Names and axes follow google-deepmind/gemma (Flax) and transformers' Gemma3ForConditionalGeneration in its first key
layout (`language_model.model.*`; text-only: `model.*`), which every release of transformers, vLLM and gptqmodel loads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

EMBEDDING_LEAF = "transformer/embedder/input_embedding"

LANGUAGE, VISION, PROJECTOR = "language", "vision", "projector"


@dataclass(frozen=True)
class Rearrangement:
    """How the axes of a leaf become the axes of its tensors, written like einops: `"N D H -> (N H) D"`.

    An axis named `T` on both sides counts the tensors stacked in the leaf (k and v; gate and up). A `1` is an axis of
    length one that the tensor lacks.
    """

    pattern: str

    @cached_property
    def leaf_axes(self) -> list[str]:
        return self.pattern.split(" -> ")[0].split()

    @cached_property
    def tensor_axes(self) -> list[list[str]]:
        """Axes of one tensor, each the list of leaf axes it is flattened from; without `T`."""
        right = self.pattern.split(" -> ")[1]
        groups = [match.strip("()").split() for match in re.findall(r"\([^)]*\)|\S+", right)]
        return [group for group in groups if group != ["T"]]

    @property
    def stacked(self) -> bool:
        return self.leaf_axes[0] == "T"

    def to_tensors(self, leaf: np.ndarray) -> list[np.ndarray]:
        """Splits and rearranges a leaf. The results are views where numpy can make them."""
        order = [self.leaf_axes.index(axis) for axis in self._flat_order()]
        sizes = dict(zip(self.leaf_axes, leaf.shape, strict=True))
        parts = leaf.transpose(order).reshape(-1, *self.tensor_shape(sizes))
        return list(parts)

    def to_leaf(self, tensors: list[np.ndarray], leaf_shape: tuple[int, ...]) -> np.ndarray:
        """The way back: `to_leaf(to_tensors(x), x.shape)` is `x`."""
        sizes = dict(zip(self.leaf_axes, leaf_shape, strict=True))
        flat_order = self._flat_order()
        moved = np.stack(tensors).reshape([sizes[axis] for axis in flat_order])
        return np.ascontiguousarray(moved.transpose([flat_order.index(axis) for axis in self.leaf_axes]))

    def tensor_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(math.prod(sizes[axis] for axis in group) for group in self.tensor_axes)

    def _flat_order(self) -> list[str]:
        leading = [axis for axis in self.leaf_axes if axis in ("T", "1")]
        return leading + [axis for group in self.tensor_axes for axis in group]


@dataclass(frozen=True)
class Rule:
    """One kind of leaf.

    Attributes:
        leaf: name of the leaf, path parts joined by `/`; `{i}` is the layer.
        tensors: transformers names below the part's prefix; several when the leaf stacks them.
        axes: how the axes move.
        part: `language`, `vision` or `projector`: which prefix and which layer count apply.
        int4: whether the leaf lies on the int4 grid, groups along the last tensor axis (the contraction axis).
    """

    leaf: str
    tensors: tuple[str, ...]
    axes: Rearrangement
    part: str
    int4: bool = False


def _rule(part: str, leaf: str, tensors: str, axes: str, int4: bool = False) -> Rule:
    return Rule(leaf, tuple(tensors.split()), Rearrangement(axes), part, int4)


def _language_rules() -> Iterator[Rule]:
    """Vocabulary V, width D, N query heads and K key heads of H, MLP width F. RMSNorm stores w - 1 on both sides."""
    yield _rule(LANGUAGE, EMBEDDING_LEAF, "embed_tokens.weight", "V D -> V D", int4=True)
    layer, block = "transformer/layer_{i}", "layers.{i}"
    yield _rule(LANGUAGE, f"{layer}/attn/q_einsum/w", f"{block}.self_attn.q_proj.weight", "N D H -> (N H) D", int4=True)
    yield _rule(
        LANGUAGE,
        f"{layer}/attn/kv_einsum/w",
        f"{block}.self_attn.k_proj.weight {block}.self_attn.v_proj.weight",
        "T K D H -> T (K H) D",
        int4=True,
    )
    yield _rule(
        LANGUAGE, f"{layer}/attn/attn_vec_einsum/w", f"{block}.self_attn.o_proj.weight", "N H D -> D (N H)", int4=True
    )
    yield _rule(
        LANGUAGE,
        f"{layer}/mlp/gating_einsum/w",
        f"{block}.mlp.gate_proj.weight {block}.mlp.up_proj.weight",
        "T F D -> T F D",
        int4=True,
    )
    yield _rule(LANGUAGE, f"{layer}/mlp/linear/w", f"{block}.mlp.down_proj.weight", "F D -> D F", int4=True)
    yield _rule(LANGUAGE, f"{layer}/attn/_query_norm/scale", f"{block}.self_attn.q_norm.weight", "H -> H")
    yield _rule(LANGUAGE, f"{layer}/attn/_key_norm/scale", f"{block}.self_attn.k_norm.weight", "H -> H")
    yield _rule(LANGUAGE, f"{layer}/pre_attention_norm/scale", f"{block}.input_layernorm.weight", "D -> D")
    yield _rule(LANGUAGE, f"{layer}/post_attention_norm/scale", f"{block}.post_attention_layernorm.weight", "D -> D")
    yield _rule(LANGUAGE, f"{layer}/pre_ffw_norm/scale", f"{block}.pre_feedforward_layernorm.weight", "D -> D")
    yield _rule(LANGUAGE, f"{layer}/post_ffw_norm/scale", f"{block}.post_feedforward_layernorm.weight", "D -> D")
    yield _rule(LANGUAGE, "transformer/final_norm/scale", "norm.weight", "D -> D")


def _projector_rules() -> Iterator[Rule]:
    """From SigLIP's width W to the language model's D."""
    yield _rule(PROJECTOR, "transformer/embedder/mm_input_projection/w", "mm_input_projection_weight", "W D -> W D")
    yield _rule(PROJECTOR, "transformer/embedder/mm_soft_embedding_norm/scale", "mm_soft_emb_norm.weight", "W -> W")


def _vision_rules() -> Iterator[Rule]:
    """SigLIP: A heads of B, MLP width M, P patches of X by Y pixels in C channels."""
    siglip = "SigLiPFromPatches_0/siglip_encoder"
    yield _rule(VISION, f"{siglip}/embedding/kernel", "embeddings.patch_embedding.weight", "X Y C W -> W C X Y")
    yield _rule(VISION, f"{siglip}/embedding/bias", "embeddings.patch_embedding.bias", "W -> W")
    yield _rule(VISION, f"{siglip}/pos_embedding", "embeddings.position_embedding.weight", "1 P W -> P W")
    layer, block = f"{siglip}/Transformer/encoderblock_{{i}}", "encoder.layers.{i}"
    for flax, ours in ("LayerNorm_0", "layer_norm1"), ("LayerNorm_1", "layer_norm2"):
        yield _rule(VISION, f"{layer}/{flax}/scale", f"{block}.{ours}.weight", "W -> W")
        yield _rule(VISION, f"{layer}/{flax}/bias", f"{block}.{ours}.bias", "W -> W")
    attention = f"{layer}/MultiHeadDotProductAttention_0"
    for flax, ours in ("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"):
        yield _rule(VISION, f"{attention}/{flax}/kernel", f"{block}.self_attn.{ours}.weight", "W A B -> (A B) W")
        yield _rule(VISION, f"{attention}/{flax}/bias", f"{block}.self_attn.{ours}.bias", "A B -> (A B)")
    yield _rule(VISION, f"{attention}/out/kernel", f"{block}.self_attn.out_proj.weight", "A B W -> W (A B)")
    yield _rule(VISION, f"{attention}/out/bias", f"{block}.self_attn.out_proj.bias", "W -> W")
    yield _rule(VISION, f"{layer}/MlpBlock_0/Dense_0/kernel", f"{block}.mlp.fc1.weight", "W M -> M W")
    yield _rule(VISION, f"{layer}/MlpBlock_0/Dense_0/bias", f"{block}.mlp.fc1.bias", "M -> M")
    yield _rule(VISION, f"{layer}/MlpBlock_0/Dense_1/kernel", f"{block}.mlp.fc2.weight", "M W -> W M")
    yield _rule(VISION, f"{layer}/MlpBlock_0/Dense_1/bias", f"{block}.mlp.fc2.bias", "W -> W")
    yield _rule(VISION, f"{siglip}/Transformer/encoder_norm/scale", "post_layernorm.weight", "W -> W")
    yield _rule(VISION, f"{siglip}/Transformer/encoder_norm/bias", "post_layernorm.bias", "W -> W")


RULES: list[Rule] = [*_language_rules(), *_projector_rules(), *_vision_rules()]
