"""Any source, opened by the reader of its kind: the one place that tells them apart."""

from __future__ import annotations

from pathlib import Path

from conversion.errors import BadInput
from conversion.folders.work_folder import check_finished
from conversion.identify import identify, source_kind
from conversion.source.source import Source


def open_source(path: Path, mmproj: Path | None = None) -> Source:
    """Opens what `arguments.source_path` found.

    Args:
        path: the source.
        mmproj: for a GGUF file, that of its vision tower; by default the one beside it.

    Raises:
        BadInput: it is no source, or damaged.
    """
    kind = source_kind(path)
    if kind == "gguf":
        from conversion.source.gguf_source import GgufSource  # its libraries are not everybody's

        return GgufSource(path, mmproj)
    if mmproj:
        raise BadInput(f"--mmproj: is for a GGUF file; {path} is {identify(path).what}")
    if kind == "flax":
        from conversion.source.flax_source import FlaxSource

        return FlaxSource(path)
    from conversion.source.hub_source import HubSource

    check_finished(path)
    return HubSource(path)
