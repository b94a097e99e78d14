"""Any source, opened by the reader of its kind: the one place that tells them apart."""

from __future__ import annotations

from pathlib import Path

from conversion.source.flax_source import FlaxSource
from conversion.source.source import Source


def open_source(path: Path) -> Source:
    """Opens what `arguments.source_path` found.

    Raises:
        BadInput: it is no source, or damaged.
    """
    return FlaxSource(path)
