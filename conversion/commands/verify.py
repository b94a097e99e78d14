"""`convert_flax.py verify`: proof of a finished repo."""

from __future__ import annotations

import argparse
from pathlib import Path

from conversion.arguments import check_repo_folder, source_path
from conversion.errors import BadInput
from conversion.identify import repo_kind
from conversion.proof.manifest import read_manifest
from conversion.proof.verify import verify
from conversion.repos.awq_repo import AwqRepo
from conversion.source.opening import open_source
from conversion.source.source_hashes import check_source_hashes


def run(chosen: argparse.Namespace) -> None:
    """Checks a finished repo, against its source too if that is given.

    Raises:
        BadInput: anything differs.
    """
    check_repo_folder(chosen.repo, "verify")
    against = _awq_repo(chosen.against) if chosen.against else None
    checkpoint = None
    if chosen.checkpoint:
        path = source_path(chosen.checkpoint, tower=not chosen.mmproj)
        checkpoint = open_source(path, chosen.mmproj)
        if checkpoint.kind == "awq" and read_manifest(chosen.repo).get("source", {}).get("kind") != "awq":
            raise BadInput(
                f"--checkpoint {path}: is a converted repo (AWQ), and {chosen.repo} was not converted from such a one; "
                f"to compare the two, type --against {path}"
            )
        if chosen.source_hashes:
            check_source_hashes(chosen.source_hashes, path, checkpoint, chosen.workers, print)
    verify(chosen.repo, chosen.workers, print, checkpoint=checkpoint, against=against)


def _awq_repo(path: Path) -> AwqRepo:
    """The repo named by --against."""
    if path.is_dir() and (path / "_METADATA").is_file():
        raise BadInput(f"--against {path}: is a Flax checkpoint; type --checkpoint {path}")
    check_repo_folder(path, "export")
    if repo_kind(path) != "awq":
        raise BadInput(f"--against {path}: is no AWQ repo, but of format {repo_kind(path)}")
    return AwqRepo(path)
