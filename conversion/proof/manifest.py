"""conversion.json of a repo: how it was made, and the hash of each of its files."""

from __future__ import annotations

import json
from pathlib import Path

from conversion.errors import BadInput

MANIFEST = "conversion.json"


def read_manifest(path: Path) -> dict:
    """conversion.json of a repo; empty where there is none.

    Raises:
        BadInput: it is there and cannot be read.
    """
    file = path / MANIFEST
    if not file.exists():
        return {}
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(manifest["files"], dict):
            raise TypeError("files is no mapping")
        return manifest
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file}: damaged ({error}), so no hash can be compared; {again(MANIFEST)}") from error


def again(*names: str) -> str:
    """What to do about damaged files."""
    alone = "that file alone" if len(names) == 1 else "these files alone"
    return f"download or copy {', '.join(names)} again, {alone}"
