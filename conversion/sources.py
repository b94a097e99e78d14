"""What the user names as a checkpoint or a repo, and what it is instead if it is neither."""

from __future__ import annotations

from pathlib import Path


def checkpoint_folder(given: str) -> Path:
    """A folder as it is; `kaggle:NAME` is downloaded first."""
    if not given.startswith("kaggle:"):
        return Path(given)
    from conversion.kaggle import download  # only those who download need kagglehub

    return download(given)


def check_repo_folder(path: Path, verb: str) -> None:
    """Raises BadInput if there is no converted repo."""
