"""`convert_flax.py convert`: a checkpoint becomes a repo, in AWQ format or from that in another one."""

from __future__ import annotations

import argparse
import dataclasses
import shutil

from conversion.commands.plan import checked_options
from conversion.errors import BadInput
from conversion.export import check_export, export
from conversion.hub_repo import WorkFolder
from conversion.hub_upload import push
from conversion.options import Options
from conversion.pipeline import convert
from conversion.plan import NO_TOKENIZER, make_conversion_plan
from conversion.sources import checkpoint_folder


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
    options = dataclasses.replace(options, checkpoint=checkpoint_folder(chosen.checkpoint))
    if chosen.format == "awq":
        convert(options)
    else:
        _convert_and_export(options, chosen.format, chosen.gguf_embedding or "q4_0")
    if chosen.push_to_hub:
        print(push(options.output, chosen.push_to_hub))


def _convert_and_export(options: Options, kind: str, gguf_embedding: str) -> None:
    """Other formats than AWQ come from an AWQ repo, made for it and removed afterwards."""
    output, awq = options.output, options.output.with_name(f"{options.output.name}.awq")
    options = dataclasses.replace(options, output=awq)
    if kind == "gguf" and make_conversion_plan(options).tokenizer is None:
        raise BadInput(f"--format gguf: {NO_TOKENIZER}")
    repo = convert(options, publish=False)
    try:
        export(repo, output, kind, gguf_embedding=gguf_embedding)
    except BadInput as error:
        kept = f"the AWQ repo is done and waits: without --format and with --output {awq} the same command publishes it"
        raise BadInput(f"{error}; {kept}") from error
    shutil.rmtree(awq)
