"""`convert_flax.py quality`: perplexity of a converted repo on a text."""

from __future__ import annotations

import argparse

from conversion.arguments import check_has_tokenizer, check_repo_folder, read_text
from conversion.errors import BadInput


def run(chosen: argparse.Namespace) -> None:
    """Measures and prints.

    Raises:
        BadInput: the repo cannot be loaded or lacks its tokenizer, or the text cannot be measured on.
    """
    if chosen.stride > chosen.window:
        raise BadInput(f"--window {chosen.window} --stride {chosen.stride}: the stride is at most the window")
    check_repo_folder(chosen.repo, "quality")
    check_has_tokenizer(chosen.repo)
    text = read_text(chosen.text)
    from conversion.quality import measure  # torch and transformers: what is wrong above is told before they load

    measure(
        chosen.repo,
        text,
        window=chosen.window,
        stride=chosen.stride,
        device=chosen.device,
        dtype=chosen.dtype,
        report=print,
    )
