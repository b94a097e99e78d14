"""What `quantization_config` of a Hugging Face repo says, checked: AWQ or compressed-tensors on our grid, or not.

Here are only things that no tensor tells; the tensors themselves are looked at in `stored_linear.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from conversion.codes import GROUP_SIZE
from conversion.errors import BadInput, shortened

OFF_GRID = f"not on a symmetric grid of {GROUP_SIZE}"
ANEW = "such weights would have to be quantized anew, which is not done here"


def check_awq(path: Path, settings: Mapping) -> None:
    """Raises BadInput if AWQ settings, as AutoAWQ or GPTQModel write them, are not those of 4 bits on our grid.

    Args:
        path: of the repo, for messages.
        settings: `quantization_config`.
    """
    problems = []
    if (bits := settings.get("bits", settings.get("w_bit", 4))) != 4:
        problems.append(f"its weights have {bits} bits, not 4")
    layout = settings.get("version") or settings.get("format") or settings.get("checkpoint_format") or "gemm"
    if str(layout).lower() != "gemm":
        problems.append(f"its words are in AWQ's layout {layout}, not gemm")
    problems += _group_problems(settings.get("group_size", settings.get("q_group_size")))
    if settings.get("desc_act"):
        problems.append("its inputs were reordered (act-order, desc_act)")
    _raise(path, problems)


def check_compressed_tensors(path: Path, settings: Mapping) -> None:
    """Raises BadInput if settings of compressed-tensors are not those of symmetric 4-bit weights on our grid."""
    problems = []
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        problems.append("its quantization_config has no config_groups")
        groups = {}
    for name, group in groups.items():
        group = group if isinstance(group, Mapping) else {}
        stored_as = group.get("format") or settings.get("format")
        if stored_as not in ("pack-quantized", None):
            problems.append(f"{name} is stored as {stored_as}, not pack-quantized")
        problems += [f"{name}: {problem}" for problem in _scheme_problems(group)]
    if settings.get("transform_config"):
        problems.append("its weights are rotated (transform_config)")
    sparsity = settings.get("sparsity_config") or {}
    if sparsity.get("format", "dense") != "dense":
        problems.append(f"its weights are stored sparsely ({sparsity['format']})")
    _raise(path, problems)


def _scheme_problems(group: Mapping) -> Iterator[str]:
    """What is against one of the `config_groups`."""
    for inputs in ("input_activations", "output_activations"):
        if group.get(inputs):
            yield f"its activations are quantized too ({inputs})"
    weights = group.get("weights")
    if not isinstance(weights, Mapping):
        yield "its weights are not quantized"
        return
    if (weights.get("num_bits"), weights.get("type", "int")) != (4, "int"):
        yield f"its weights are {weights.get('type', 'int')} of {weights.get('num_bits')} bits, not int of 4"
    if not weights.get("symmetric", True):
        yield f"its weights are asymmetric, {OFF_GRID}"
    size = weights.get("group_size")
    if weights.get("strategy", "group") != "group" and size in (None, -1):
        yield f"its weights have a scale for each {weights['strategy']}, {OFF_GRID} or a multiple of it"
    else:
        yield from _group_problems(size)
    # "weight" or "static" reorders while it quantizes and puts back; the others leave the inputs reordered.
    if weights.get("actorder") in ("group", "dynamic", True):
        yield f"its inputs were reordered (act-order {weights['actorder']})"


def _group_problems(size: object) -> Iterator[str]:
    if not isinstance(size, int) or size < GROUP_SIZE or size % GROUP_SIZE:
        yield f"its group size is {size}, {OFF_GRID} or a multiple of it"


def anew(problems: list[str]) -> str:
    """What to add to problems of which one is that weights are off the grid."""
    return f"; {ANEW}" if any(OFF_GRID in problem for problem in problems) else ""


def _raise(path: Path, problems: list[str]) -> None:
    if problems:
        raise BadInput(f"{path}: {shortened(problems)}{anew(problems)}")
