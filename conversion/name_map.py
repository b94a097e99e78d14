"""Flax leaf <-> transformers tensors, declared once and read in both directions.

* `RULES`: every leaf of a Gemma 3 checkpoint, the tensors it becomes, and how its axes move.
* `Rearrangement`: the little axis language of the rules, invertible.
* `entries`: config -> one `Entry` per leaf of such a checkpoint.
* `match_leaves`: leaves + config -> the entries, once it is certain that every leaf is used and every tensor filled.

Names and axes follow google-deepmind/gemma (Flax) and transformers' Gemma3ForConditionalGeneration in its first key
layout (`language_model.model.*`; text-only: `model.*`), which every release of transformers, vLLM and gptqmodel loads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.errors import BadInput, shortened

EMBEDDING_LEAF = "transformer/embedder/input_embedding"
PADDING_ROWS = 64  # zero rows that Google's multimodal configs append to the embedding (262144 -> 262208)

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


def _rules() -> list[Rule]:
    rules = []

    def add(part: str, leaf: str, tensors: str, axes: str, int4: bool = False) -> None:
        rules.append(Rule(leaf, tuple(tensors.split()), Rearrangement(axes), part, int4))

    # Language model. RMSNorm stores w - 1 on both sides.
    add(LANGUAGE, EMBEDDING_LEAF, "embed_tokens.weight", "V D -> V D", int4=True)
    layer, block = "transformer/layer_{i}", "layers.{i}"
    add(LANGUAGE, f"{layer}/attn/q_einsum/w", f"{block}.self_attn.q_proj.weight", "N D H -> (N H) D", int4=True)
    add(
        LANGUAGE,
        f"{layer}/attn/kv_einsum/w",
        f"{block}.self_attn.k_proj.weight {block}.self_attn.v_proj.weight",
        "T K D H -> T (K H) D",
        int4=True,
    )
    add(LANGUAGE, f"{layer}/attn/attn_vec_einsum/w", f"{block}.self_attn.o_proj.weight", "N H D -> D (N H)", int4=True)
    add(
        LANGUAGE,
        f"{layer}/mlp/gating_einsum/w",
        f"{block}.mlp.gate_proj.weight {block}.mlp.up_proj.weight",
        "T F D -> T F D",
        int4=True,
    )
    add(LANGUAGE, f"{layer}/mlp/linear/w", f"{block}.mlp.down_proj.weight", "F D -> D F", int4=True)
    add(LANGUAGE, f"{layer}/attn/_query_norm/scale", f"{block}.self_attn.q_norm.weight", "H -> H")
    add(LANGUAGE, f"{layer}/attn/_key_norm/scale", f"{block}.self_attn.k_norm.weight", "H -> H")
    add(LANGUAGE, f"{layer}/pre_attention_norm/scale", f"{block}.input_layernorm.weight", "D -> D")
    add(LANGUAGE, f"{layer}/post_attention_norm/scale", f"{block}.post_attention_layernorm.weight", "D -> D")
    add(LANGUAGE, f"{layer}/pre_ffw_norm/scale", f"{block}.pre_feedforward_layernorm.weight", "D -> D")
    add(LANGUAGE, f"{layer}/post_ffw_norm/scale", f"{block}.post_feedforward_layernorm.weight", "D -> D")
    add(LANGUAGE, "transformer/final_norm/scale", "norm.weight", "D -> D")

    # Projector from SigLIP's width W to the language model's D.
    add(PROJECTOR, "transformer/embedder/mm_input_projection/w", "mm_input_projection_weight", "W D -> W D")
    add(PROJECTOR, "transformer/embedder/mm_soft_embedding_norm/scale", "mm_soft_emb_norm.weight", "W -> W")

    # SigLIP: A heads of B, MLP width M, P patches of X by Y pixels in C channels.
    siglip = "SigLiPFromPatches_0/siglip_encoder"
    add(VISION, f"{siglip}/embedding/kernel", "embeddings.patch_embedding.weight", "X Y C W -> W C X Y")
    add(VISION, f"{siglip}/embedding/bias", "embeddings.patch_embedding.bias", "W -> W")
    add(VISION, f"{siglip}/pos_embedding", "embeddings.position_embedding.weight", "1 P W -> P W")
    layer, block = f"{siglip}/Transformer/encoderblock_{{i}}", "encoder.layers.{i}"
    for flax, ours in ("LayerNorm_0", "layer_norm1"), ("LayerNorm_1", "layer_norm2"):
        add(VISION, f"{layer}/{flax}/scale", f"{block}.{ours}.weight", "W -> W")
        add(VISION, f"{layer}/{flax}/bias", f"{block}.{ours}.bias", "W -> W")
    attention = f"{layer}/MultiHeadDotProductAttention_0"
    for flax, ours in ("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"):
        add(VISION, f"{attention}/{flax}/kernel", f"{block}.self_attn.{ours}.weight", "W A B -> (A B) W")
        add(VISION, f"{attention}/{flax}/bias", f"{block}.self_attn.{ours}.bias", "A B -> (A B)")
    add(VISION, f"{attention}/out/kernel", f"{block}.self_attn.out_proj.weight", "A B W -> W (A B)")
    add(VISION, f"{attention}/out/bias", f"{block}.self_attn.out_proj.bias", "W -> W")
    add(VISION, f"{layer}/MlpBlock_0/Dense_0/kernel", f"{block}.mlp.fc1.weight", "W M -> M W")
    add(VISION, f"{layer}/MlpBlock_0/Dense_0/bias", f"{block}.mlp.fc1.bias", "M -> M")
    add(VISION, f"{layer}/MlpBlock_0/Dense_1/kernel", f"{block}.mlp.fc2.weight", "M W -> W M")
    add(VISION, f"{layer}/MlpBlock_0/Dense_1/bias", f"{block}.mlp.fc2.bias", "W -> W")
    add(VISION, f"{siglip}/Transformer/encoder_norm/scale", "post_layernorm.weight", "W -> W")
    add(VISION, f"{siglip}/Transformer/encoder_norm/bias", "post_layernorm.bias", "W -> W")
    return rules


RULES: list[Rule] = _rules()


@dataclass(frozen=True)
class Entry:
    """One leaf of one checkpoint and what becomes of it.

    Attributes:
        leaf: name of the leaf.
        leaf_shape: its expected shape.
        tensors: full transformers names.
        tensor_shape: shape of each of them as transformers holds it ([out, in] for a matrix), before padding.
        rule: the rule it follows.
    """

    leaf: str
    leaf_shape: tuple[int, ...]
    tensors: tuple[str, ...]
    tensor_shape: tuple[int, ...]
    rule: Rule = field(repr=False)

    @property
    def int4(self) -> bool:
        return self.rule.int4

    @property
    def grouped_by_row(self) -> bool:
        """For int4 leaves: whether the contraction axis is the leaf's last one, else it is the one before."""
        return self.rule.axes.leaf_axes[-1] == self.rule.axes.tensor_axes[-1][-1]

    @property
    def slabs_are_outputs(self) -> bool:
        """For int4 leaves: whether the matrices of the leaf follow each other along the outputs."""
        return len(self.leaf_shape) > 2 and self.rule.axes.leaf_axes[-3] in self.rule.axes.tensor_axes[0]

    @property
    def is_embedding(self) -> bool:
        return self.tensors[0].endswith("embed_tokens.weight")


def entries(config: Gemma3Config | Gemma3TextConfig, embedding_rows: int) -> list[Entry]:
    """Every leaf that a checkpoint of this config holds, in the order of the model.

    Args:
        config: multimodal or text-only configuration.
        embedding_rows: rows of the embedding in the checkpoint (without the zero rows of `PADDING_ROWS`).
    """
    sizes = axis_sizes(config, embedding_rows)
    multimodal = isinstance(config, Gemma3Config)
    prefixes = {
        LANGUAGE: "language_model.model." if multimodal else "model.",
        PROJECTOR: "multi_modal_projector.",
        VISION: "vision_tower.vision_model.",
    }
    text = config.get_text_config()
    layers = {LANGUAGE: text.num_hidden_layers, PROJECTOR: 0}
    if multimodal:
        layers[VISION] = config.vision_config.num_hidden_layers

    def of(rule: Rule, i: int | None) -> Entry:
        def named(text: str) -> str:
            return text.replace("{i}", str(i))

        shape = tuple(len(rule.tensors) if a == "T" else sizes[a] for a in rule.axes.leaf_axes)
        tensors = tuple(prefixes[rule.part] + named(name) for name in rule.tensors)
        return Entry(named(rule.leaf), shape, tensors, rule.axes.tensor_shape(sizes), rule)

    # Layer by layer, as the model runs, each part's layers after what comes before them in the rules.
    result = []
    rules = [rule for rule in RULES if rule.part in layers and (multimodal or rule.part == LANGUAGE)]
    for part in (LANGUAGE, PROJECTOR, VISION):
        mine = [rule for rule in rules if rule.part == part]
        layered = [rule for rule in mine if "{i}" in rule.leaf]
        first = mine.index(layered[0]) if layered else len(mine)
        result += [of(rule, None) for rule in mine[:first]]
        result += [of(rule, i) for i in range(layers.get(part, 0)) for rule in layered]
        result += [of(rule, None) for rule in mine[first:] if rule not in layered]
    return result


def match_leaves(
    shapes: Mapping[str, tuple[int, ...]],
    config: Gemma3Config | Gemma3TextConfig,
    donor_holds: Callable[[tuple[str, ...]], bool] | None = None,
) -> tuple[list[Entry], frozenset[str]]:
    """Matches the leaves of a checkpoint with a config.

    Args:
        shapes: shape of every leaf by name.
        config: the configuration they are meant to have.
        donor_holds: whether a donor has certain tensors; only leaves off the int4 grid may come from one.

    Returns:
        The entries, and the names of those leaves that must come from the donor.

    Raises:
        BadInput: leaves that no rule knows, leaves that are missing, shapes that disagree: all of them in one message.
    """
    text = config.get_text_config()
    rows = shapes.get(EMBEDDING_LEAF, (text.vocab_size,))[0]
    problems = []
    if not 0 <= text.vocab_size - rows <= PADDING_ROWS:
        problems.append(
            f"{EMBEDDING_LEAF} has {rows} rows, vocab_size is {text.vocab_size}, at most {PADDING_ROWS} more"
        )
    matched = entries(config, rows)
    expected = {entry.leaf: entry.leaf_shape for entry in matched}
    missing = [entry for entry in matched if entry.leaf not in shapes]
    donated = [entry.leaf for entry in missing if not entry.int4 and donor_holds and donor_holds(entry.tensors)]
    problems += [f"missing {entry.leaf} {list(entry.leaf_shape)}" for entry in missing if entry.leaf not in donated]
    problems += [f"unknown {name} {list(shapes[name])}" for name in shapes if name not in expected]
    problems += [
        f"{name} is {list(shapes[name])}, the config says {list(shape)}"
        for name, shape in expected.items()
        if name in shapes and shapes[name] != shape
    ]
    if problems:
        advice = _advice({entry.rule.part for entry in missing})
        raise BadInput(f"the checkpoint does not fit in {len(problems)} places: {shortened(problems)}{advice}")
    return matched, frozenset(donated)


def _advice(missing_parts: set[str]) -> str:
    """What the user may do when only tensors outside the language model are missing."""
    if not missing_parts or LANGUAGE in missing_parts:
        return ""
    return "; --donor takes these tensors from a transformers repo that has them, --text-only does without"


def axis_sizes(config: Gemma3Config | Gemma3TextConfig, embedding_rows: int) -> dict[str, int]:
    """Lengths of the axes that the rules name."""
    text = config.get_text_config()
    sizes = {
        "1": 1,
        "V": embedding_rows,
        "D": text.hidden_size,
        "N": text.num_attention_heads,
        "K": text.num_key_value_heads,
        "H": text.head_dim,
        "F": text.intermediate_size,
    }
    if isinstance(config, Gemma3Config):
        vision = config.vision_config
        sizes |= {
            "W": vision.hidden_size,
            "A": vision.num_attention_heads,
            "B": vision.hidden_size // vision.num_attention_heads,
            "M": vision.intermediate_size,
            "P": (vision.image_size // vision.patch_size) ** 2,
            "X": vision.patch_size,
            "Y": vision.patch_size,
            "C": vision.num_channels,
        }
    return sizes


def first_layout(name: str) -> str:
    """A tensor's name in the first key layout of transformers' Gemma 3, whatever layout it comes in."""
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    name = re.sub(r"^model\.(vision_tower|multi_modal_projector)\.", r"\1.", name)
    return re.sub(r"^vision_tower\.(?!vision_model\.)", "vision_tower.vision_model.", name)


def is_language(leaf: str) -> bool:
    """Whether a leaf is not of the vision tower or the projector. Unknown leaves count as language: they are errors."""
    others = {rule.leaf.split("{i}")[0] for rule in RULES if rule.part != LANGUAGE}
    return not any(leaf.startswith(start) for start in others)
