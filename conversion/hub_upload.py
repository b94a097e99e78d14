"""`--push-to-hub ID`: a finished repo, uploaded with huggingface_hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError, LocalTokenNotFoundError

from conversion.errors import BadInput, first_line
from conversion.folders.work_folder import check_finished

FAILURES = (HTTPError, HFValidationError, LocalTokenNotFoundError, OSError, RuntimeError)  # the last: hf_xet's


def push(folder: Path, repo_id: str) -> str:
    """Creates the repo if need be, then as a private one, and uploads every file of the folder.

    Args:
        folder: a finished repo.
        repo_id: `user/name` on the Hub.

    Returns:
        Address of the commit.

    Raises:
        BadInput: a conversion writes there, not logged in, not allowed, or the connection broke; the folder is as it
            was.
    """
    check_finished(folder)
    try:
        api = HfApi()
        api.create_repo(repo_id, private=True, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message="Add converted weights"))
    except FAILURES as error:
        raise BadInput(
            f"{folder} is complete, but was not uploaded to {repo_id}: {first_line(error)}; "
            f"log in with `hf auth login`, then `hf upload {repo_id} {folder}`"
        ) from error
