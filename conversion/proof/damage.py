"""What is wrong inside a file of weights, as far as it shows without a source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from conversion.errors import BadInput, shortened
from conversion.formats import awq
from conversion.repos.safetensors_file import SafetensorsFile


def damage_of(path: Path) -> str | None:
    """What is wrong, None where nothing shows."""
    try:
        if path.suffix == ".gguf":
            from conversion.formats.gguf_reader import GgufFile  # the gguf library is not everybody's

            GgufFile(path)
        if path.suffix != ".safetensors":
            return None
        file = SafetensorsFile(path)
    except BadInput as error:
        said = str(error).removeprefix(f"{path}: ").removesuffix("; copy or convert it again")
        return said + (_cut_tensors(path) if path.suffix == ".safetensors" else "")
    wrong = [name for name in file.header if not _plausible(name, file.read(name))]
    return f"{shortened(wrong)} cannot be right" if wrong else None


def _cut_tensors(path: Path) -> str:
    """Which tensors a file that was cut short has lost; empty where its header cannot be read."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        left = path.stat().st_size - 8 - length
        lost = [name for name, entry in header.items() if "data_offsets" in entry and entry["data_offsets"][1] > left]
    except (OSError, ValueError, TypeError, KeyError, OverflowError, MemoryError):
        return ""
    return f", so it lacks {shortened(lost)}" if lost else ""


def _plausible(name: str, values: np.ndarray) -> bool:
    """Whether a tensor can be one that was written: zero points all 8, floats finite."""
    if name.endswith("qzeros"):
        return bool((values == awq.ZERO_WORD).all())
    if values.dtype.kind == "i":
        return True
    return bool(np.isfinite(values.astype(np.float32)).all())
