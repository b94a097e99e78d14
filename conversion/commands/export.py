"""`convert_flax.py export`: a converted repo in another engine's format."""

from __future__ import annotations

import argparse

from conversion.arguments import check_repo_folder
from conversion.export.export import export
from conversion.hub_upload import push


def run(chosen: argparse.Namespace) -> None:
    """Exports, and uploads the result if asked.

    Raises:
        BadInput, NoSpace: as `export` says.
    """
    check_repo_folder(chosen.repo, "export")
    export(chosen.repo, chosen.output, chosen.format, gguf_embedding=chosen.gguf_embedding or "q4_0")
    if not (chosen.repo / "tokenizer.json").is_file():
        print(
            f"WARNING: {chosen.repo} holds no tokenizer.json, so {chosen.output} lacks it too: no engine can read text"
        )
    if chosen.push_to_hub:
        print(push(chosen.output, chosen.push_to_hub))
