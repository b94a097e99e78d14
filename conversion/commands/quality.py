"""`convert_flax.py quality`: perplexity of a converted repo on a text."""

from __future__ import annotations

import argparse

from conversion.quality import measure
from conversion.sources import check_repo_folder


def run(chosen: argparse.Namespace) -> None:
    """Measures and prints.

    Raises:
        BadInput: the repo cannot be loaded or lacks its tokenizer, or the file holds no text.
    """
    check_repo_folder(chosen.repo, "quality")
    measure(
        chosen.repo,
        chosen.text,
        window=chosen.window,
        stride=chosen.stride,
        device=chosen.device,
        dtype=chosen.dtype,
        report=print,
    )
