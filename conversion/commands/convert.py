"""`convert_flax.py convert`: a checkpoint becomes a repo, in AWQ format or from that in another one."""

from __future__ import annotations

import argparse
import dataclasses

from conversion.arguments import source_path
from conversion.commands.plan import checked_options
from conversion.convert.pipeline import convert
from conversion.export.export import check_export, convert_and_export
from conversion.folders.work_folder import WorkFolder
from conversion.hub_upload import push


def run(chosen: argparse.Namespace) -> None:
    """Converts, and uploads the result if asked.

    Raises:
        BadInput, NoSpace: as `convert` and `export` say.
    """
    options = checked_options(chosen)
    if chosen.format == "awq":
        WorkFolder(options.output)
    else:
        check_export(options.output, chosen.format)
    options = dataclasses.replace(options, checkpoint=source_path(chosen.checkpoint, tower=not chosen.mmproj))
    if chosen.format == "awq":
        convert(options)
    else:
        convert_and_export(options, chosen.format, gguf_embedding=chosen.gguf_embedding or "q4_0")
    if chosen.push_to_hub:
        print(push(options.output, chosen.push_to_hub))
