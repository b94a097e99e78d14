"""Any source, opened by the reader of its kind: the one place that tells them apart."""

from __future__ import annotations

from pathlib import Path

from conversion.folders.work_folder import check_finished
from conversion.identify import source_kind
from conversion.source.flax_source import FlaxSource
from conversion.source.hub_source import KINDS as HUB_KINDS
from conversion.source.hub_source import HubSource
from conversion.source.source import Source


def open_source(path: Path) -> Source:
    """Opens what `arguments.source_path` found.

    Raises:
        BadInput: it is no source, or damaged.
    """
    if source_kind(path) in HUB_KINDS:
        check_finished(path)
        return HubSource(path)
    return FlaxSource(path)
