# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Whether a model fits: the memory that it will take, from its tensors' shapes, against what there is.

What this file offers:
    bytes_needed        of a model once it is loaded, and while it is
    bytes_available     on a device, before loading
    check_memory        the two compared: an error, a warning, or nothing
    check_prompt        whether a prompt fits, before it is read
    control_groups      the folders where Linux has the limits of this process
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Of the published models in bfloat16 with the int4 embedding, in GB: what to advise where one does not fit.
PUBLISHED = {"12B": 7.5, "4B": 3.0, "1B": 0.6}
CGROUP = Path("/sys/fs/cgroup")
# By the version of control groups.
CGROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("memory.max", "memory.current", ""),
}
MEMINFO = Path("/proc/meminfo")
GROUPS = Path("/proc/self/cgroup")


def bytes_needed(
    stored: dict[str, torch.Tensor], dtype: torch.dtype, embedding_scales: int, on_cpu: bool
) -> tuple[int, int]:
    """Bytes that the weights take when loaded, and at most on the way there.

    Args:
        stored: meta tensors with shapes and dtypes of what is on disk, by name.
        dtype: of the model.
        embedding_scales: bytes of the side file where a plain embedding becomes int4, 0 where it stays what it is.
        on_cpu: there a tensor is a part of the mapped file until it is cast or repacked, elsewhere it is copied.
    """
    stays = peak = plain = cast = 0
    for name, tensor in stored.items():
        kind = name.rpartition(".")[2]
        floats = tensor.numel() * dtype.itemsize
        copied = tensor.nbytes if kind in ("qweight", "qzeros", "scales") else floats
        mapped = on_cpu and (copied == tensor.nbytes)
        peak += 0 if mapped else copied
        if name.endswith("embed_tokens.weight") and embedding_scales:
            plain, cast = floats, 0 if mapped else floats
            stays += tensor.numel() // 2 + embedding_scales
            peak += tensor.numel() // 2 + embedding_scales
        elif kind != "qzeros":
            stays += copied
    if on_cpu and dtype == torch.bfloat16:  # the layers are repacked while the embedding is loaded and recovered
        return stays, max(stays + cast, peak)
    if on_cpu:  # before that: its plain twin is gone then
        return stays, max(stays, peak)
    return stays, max(peak, stays + plain)


def bytes_available(device: torch.device) -> int | None:
    """Bytes that can be allocated on a device, swap included; None where nobody says."""
    if device.type == "cuda":
        index = device.index if device.index is not None else torch.cuda.current_device()
        unused = torch.cuda.memory_reserved(index) - torch.cuda.memory_allocated(index)
        return torch.cuda.mem_get_info(index)[0] + unused
    if device.type != "cpu":
        return None
    try:
        values = _numbers(MEMINFO.read_text().replace(":", "").splitlines())
    except OSError:  # macOS says how much there is in all; Windows has no sysconf
        named = "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ())
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if named else None
    if "MemAvailable" not in values:
        return None
    here = 1024 * (values["MemAvailable"] + values.get("SwapFree", 0))
    return min([here, *_below_limits()])


def check_memory(path, needed: tuple[int, int], device: torch.device, advice: dict[str, int]) -> None:
    """Compares what a model needs with what there is.

    Args:
        path: the repo, for the warning.
        needed: as `bytes_needed` gives it.
        device: where all of it goes.
        advice: other ways to load it, as a sentence says them, and the bytes that each needs.

    Raises:
        MemoryError: what stays is more than there is. (Where only the peak is more, a warning is logged.)
    """
    stays, peak = needed
    available = bytes_available(device)
    if available is None or peak <= available:
        return
    text = (
        f"the model takes {stays / 1e9:.1f} GB of memory on {device} and {peak / 1e9:.1f} GB while it is loaded; "
        f"{available / 1e9:.1f} GB are available."
    )
    if stays <= available:
        logger.warning(f"{path}: {text} Loading may be slow, or end for want of memory.")
        return
    fitting = [way for way, size in advice.items() if size <= available]
    fitting += [f"the {name} ({size} GB)" for name, size in PUBLISHED.items() if size * 1e9 <= available][:1]
    raise MemoryError(f"{text} " + (f"What would fit: {' or '.join(fitting)}." if fitting else "Free some first."))


def prompt_bytes(config, batch: int, tokens: int, dtype: torch.dtype) -> int:
    """Bytes that reading a prompt takes beside the model, and beside what a layer computes a chunk of it in: its keys
    and values in full layers, what goes from layer to layer, and what comes out.

    Args:
        config: of the language model.
    """
    keys_and_values = 2 * config.num_key_value_heads * config.head_dim * config.layer_types.count("full_attention")
    return batch * tokens * (keys_and_values + 2 * config.hidden_size) * dtype.itemsize


def chunk_bytes(config, tokens: int) -> int:
    """Bytes that a layer computes so many tokens in: gate, up and their product, in float32 where a CPU is fast in
    nothing else. By then queries, keys and values, which are fewer, are gone.

    Args:
        config: of the language model.
    """
    return 3 * tokens * config.intermediate_size * torch.float32.itemsize


def check_prompt(config, batch: int, tokens: int, chunk: int, dtype: torch.dtype, device: torch.device) -> None:
    """Says of a long prompt before it is read that it does not fit.

    Args:
        config: of the language model.
        batch, tokens: sequences, and new tokens of each.
        chunk: tokens of each that are read at a time.

    Raises:
        MemoryError: it does not; the message says how long a prompt would.
    """
    available = bytes_available(device)
    at_once = chunk_bytes(config, batch * chunk)
    needed = prompt_bytes(config, batch, tokens, dtype) + at_once
    if available is None or needed <= available:
        return
    fitting = max(available - at_once, 0) // prompt_bytes(config, batch, 1, dtype)
    raise MemoryError(
        f"a prompt of {tokens:,} tokens{f' in each of {batch} sequences' if batch > 1 else ''} takes "
        f"{needed / 1e9:.1f} GB of memory on {device} beside the model; "
        f"{available / 1e9:.1f} GB are available. What would fit: {fitting:,} tokens."
    )


def control_groups(controller: str) -> Iterator[tuple[int, Path]]:
    """The folders of this process's control groups, each before the one above it, up to where a container's begin.

    Args:
        controller: "memory", "cpu".

    Yields:
        The version of control groups, 1 or 2, and a folder, which need not exist.
    """
    try:
        groups = [line.split(":", 2) for line in GROUPS.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, own in groups:
        if controllers and controller not in controllers.split(","):
            continue
        top = CGROUP / controllers
        if not top.exists():  # the kernel may order "cpuacct,cpu" otherwise than the mount point
            top = CGROUP / controller
        group = top / own.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            yield (1 if controllers else 2), folder


def _below_limits() -> list[int]:
    """Bytes that are left below the limits of this process's control groups, of both versions, and of those above."""
    left = []
    for version, folder in control_groups("memory"):
        limit, used, prefix = CGROUP_FILES[version]
        try:
            room = int((folder / limit).read_text()) - int((folder / used).read_text())
            cached = _numbers((folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no limit ("max"), or no such group in this container
            continue
        left.append(max(room + cached.get(f"{prefix}inactive_file", 0) + cached.get(f"{prefix}active_file", 0), 0))
    return left


def _numbers(lines: Iterable[str]) -> dict[str, int]:
    """The first number of each line "name number ...", by name."""
    fields = (line.split() for line in lines)
    return {field[0]: int(field[1]) for field in fields if len(field) > 1 and field[1].isdigit()}
