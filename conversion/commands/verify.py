"""`convert_flax.py verify`: proof of a finished repo."""

from __future__ import annotations

import argparse

from conversion.flax_checkpoint import FlaxCheckpoint
from conversion.source_hashes import check_source_hashes
from conversion.sources import check_repo_folder, checkpoint_folder
from conversion.verify import check_repo, prove_repo


def run(chosen: argparse.Namespace) -> None:
    """Checks a finished repo, against its source too if that is given.

    Raises:
        BadInput: anything differs.
    """
    check_repo_folder(chosen.repo, "verify")
    repo = check_repo(chosen.repo, chosen.workers, print)
    if chosen.checkpoint:
        folder = checkpoint_folder(chosen.checkpoint)
        checkpoint = FlaxCheckpoint(folder)
        if chosen.source_hashes:
            check_source_hashes(chosen.source_hashes, folder, checkpoint, chosen.workers, print)
        prove_repo(repo, checkpoint, chosen.workers, print)
