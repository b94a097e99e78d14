"""Which GGUF files make up a model: its parts if it was split, and the mmproj file of its vision tower."""

from __future__ import annotations

from pathlib import Path

from conversion.errors import BadInput, shortened
from conversion.formats.gguf_reader import GgufFile
from conversion.identify import PART, first_part, is_tower

ARCHITECTURE, TOWER, ADAPTER = "gemma3", "clip", "adapter"
PROJECTOR = "gemma3"


def find_model(path: Path) -> Path:
    """The file of a language model, the first of them if it was split.

    Args:
        path: the file, one of its parts, or a folder that holds one model.

    Raises:
        BadInput: the folder holds no model, or several.
    """
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.gguf"))
        models = sorted({first_part(name) for name in files if not is_tower(name)})
        if len(models) != 1:
            names = f": {shortened(models)}" if models else ""
            raise BadInput(f"{path}: holds {len(models)} GGUF files of a language model{names}; name one")
        return path / models[0]
    return path.with_name(first_part(path.name))


def find_tower(model: Path, named: Path | None) -> Path | None:
    """The mmproj file: the one that is named, else the one beside the model, None if there is none.

    Raises:
        BadInput: there are several.
    """
    if named:
        return named
    beside = [file for file in sorted(model.parent.glob("*.gguf")) if is_tower(file.name)]
    if len(beside) > 1:
        names = ", ".join(file.name for file in beside)
        raise BadInput(f"{model.parent}: holds {len(beside)} mmproj files, {names}; name one with --mmproj")
    return beside[0] if beside else None


def open_model(path: Path) -> GgufFile:
    """A language model, the tensors of all parts together.

    Args:
        path: its file, or the first of them.

    Raises:
        BadInput: it is another thing, a part is missing or damaged.
    """
    if not path.is_file():
        raise BadInput(f"{path}: missing, the first part of a split model; download it, beside the others")
    model = GgufFile(path)
    architecture = model.metadata.get("general.architecture")
    if model.metadata.get("general.type") == ADAPTER or "adapter.type" in model.metadata:
        raise BadInput(f"{path}: is a LoRA adapter, not a model; merge it into a model, quantize that, and convert it")
    if architecture == TOWER:
        raise BadInput(f"{path}: is a vision tower (mmproj); give the file of the language model, this one beside it")
    if architecture != ARCHITECTURE:
        raise BadInput(f"{path}: its architecture is {architecture}; only {ARCHITECTURE} is converted here")
    count = int(model.metadata.get("split.count", 1))
    if count > 1:
        _add_parts(model, count)
    return model


def _add_parts(model: GgufFile, count: int) -> None:
    """Adds the tensors of the other parts."""
    match = PART.fullmatch(model.path.name)
    if not match:
        name = f"...-00001-of-{count:05d}.gguf"
        raise BadInput(f"{model.path}: is one of {count} parts, but not named {name}; give all parts their own names")
    others = [model.path.with_name(f"{match[1]}-{number:05d}-of-{count:05d}.gguf") for number in range(2, count + 1)]
    if missing := [file.name for file in others if not file.is_file()]:
        raise BadInput(f"{model.path}: {len(missing)} of {count} parts are missing: {shortened(missing)}")
    for file in others:
        model.tensors |= GgufFile(file).tensors
    expected = int(model.metadata.get("split.tensors.count", len(model.tensors)))
    if len(model.tensors) != expected:
        raise BadInput(f"{model.path}: its parts hold {len(model.tensors)} tensors, expected {expected}")


def open_tower(path: Path) -> GgufFile:
    """An mmproj file of Gemma 3.

    Raises:
        BadInput: it is none, or damaged.
    """
    if not path.is_file():
        raise BadInput(f"--mmproj {path}: no such file")
    tower = GgufFile(path)
    architecture = tower.metadata.get("general.architecture")
    kind = tower.metadata.get("clip.projector_type", tower.metadata.get("clip.vision.projector_type"))
    if architecture != TOWER or kind != PROJECTOR:
        what = f"for {kind}" if architecture == TOWER else f"of architecture {architecture}"
        raise BadInput(f"{path}: is {what}, expected an mmproj file of Gemma 3; --mmproj names another one")
    return tower
