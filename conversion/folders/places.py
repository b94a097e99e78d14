"""Where an output may lie: in nothing that is read, and around none of it.

What is written into a source becomes part of it, and a source in the output would be published or removed with it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from conversion.errors import BadInput


def check_apart(
    output: Path, folders: Mapping[str, Path | None], within: Mapping[str, Path | None] | None = None
) -> None:
    """Raises BadInput if an output and what is read are the same, or one lies in the other.

    Links, other spellings, letter case where the disk ignores it, and a folder mounted twice do not hide that.

    Args:
        output: the folder that will be written.
        folders: option -> folder that is read.
        within: option -> file, or folder of which some files are read by name: may lie around the output, not in it.
    """
    around = _lineage(output)
    for option, source in {**folders, **(within or {})}.items():
        if source is None:
            continue
        lineage = _lineage(source)
        if lineage[0] == around[0]:
            problem = f"is {option} {source}"
        elif around[0] in lineage:
            problem = f"holds {option} {source}"
        elif option in folders and lineage[0] in around:
            problem = f"lies in {option} {source}"
        else:
            continue
        raise BadInput(f"--output {output}: {problem}; give --output a folder elsewhere, what is read stays as it is")


def _lineage(path: Path) -> list[tuple[int, int] | str]:
    """What a path is, then what holds it, and so on: device and number, or the name of what does not exist."""
    whole = Path(os.path.realpath(path))
    return [_identity(place) for place in (whole, *whole.parents)]


def _identity(path: Path) -> tuple[int, int] | str:
    try:
        status = path.stat()
    except OSError:
        return os.path.normcase(path)
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.normcase(path)
