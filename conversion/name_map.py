"""Flax leaf <-> transformers tensors, for one model.

* `entries`: config -> one `Entry` per leaf of such a checkpoint, after the rules of `leaf_rules.py`.
* `match_leaves`: leaves + config -> the entries, once it is certain that every leaf is used and every tensor filled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from transformers import Gemma3Config, Gemma3TextConfig

from conversion.errors import BadInput, shortened
from conversion.leaf_rules import EMBEDDING_LEAF, LANGUAGE, PROJECTOR, RULES, VISION, Rule
from conversion.part import Part

LINEAR = re.compile(r"(language_model\.)?model\.layers\.\d+\.\w+\.\w+_proj\.weight")  # of a language model, in floats
PADDING_ROWS = 64  # zero rows that Google's multimodal configs append to the embedding (262144 -> 262208)


@dataclass(frozen=True)
class Entry(Part):
    """One leaf of one checkpoint and what becomes of it.

    Attributes:
        leaf_shape: its expected shape.
        rule: the rule it follows.
    """

    leaf_shape: tuple[int, ...]
    rule: Rule = field(repr=False)

    @property
    def grouped_by_row(self) -> bool:
        """For int4 leaves: whether the contraction axis is the leaf's last one, else it is the one before."""
        return self.rule.axes.leaf_axes[-1] == self.rule.axes.tensor_axes[-1][-1]

    @property
    def slabs_are_outputs(self) -> bool:
        """For int4 leaves: whether the matrices of the leaf follow each other along the outputs."""
        return len(self.leaf_shape) > 2 and self.rule.axes.leaf_axes[-3] in self.rule.axes.tensor_axes[0]


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
        kind = "plain" if not rule.int4 else "embedding" if rule.leaf == EMBEDDING_LEAF else "linear"
        return Entry(named(rule.leaf), tensors, rule.axes.tensor_shape(sizes), kind, shape, rule)

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


def both_layouts(stem: str) -> list[str]:
    """The name of a language model's module in the first key layout, and in that of transformers 5."""
    return [stem, re.sub(r"^language_model\.model\.", "model.language_model.", stem)]


def is_language(leaf: str) -> bool:
    """Whether a leaf is not of the vision tower or the projector. Unknown leaves count as language: they are errors."""
    others = {rule.leaf.split("{i}")[0] for rule in RULES if rule.part != LANGUAGE}
    return not any(leaf.startswith(start) for start in others)
