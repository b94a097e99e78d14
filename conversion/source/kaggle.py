"""`--checkpoint kaggle:NAME`: Google's checkpoints, downloaded through kagglehub into its cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import kagglehub
import requests
from kagglehub.config import get_cache_folder, get_kaggle_credentials
from kagglehub.exceptions import DataCorruptionError, KaggleApiHTTPError, UnauthenticatedError

from conversion.errors import BadInput, NoSpace
from conversion.folders.folder_lock import FolderLock, Unwritable
from conversion.identify import EXAMPLE, GEMMA, GOOGLES, PREFIX


def download(reference: str) -> Path:
    """Fetches a checkpoint, or finds it in kagglehub's cache; an interrupted download goes on.

    Args:
        reference: `kaggle:gemma3-27b-it-int4`, or a full handle such as `kaggle:google/gemma-3/flax/NAME/1`.

    Returns:
        The folder that Kaggle's archive unpacks to.

    Raises:
        BadInput: no credentials, the license not accepted, no such model, no connection, damaged on the way.
        NoSpace: it cannot be stored; what has arrived is kept.
    """
    name = reference.removeprefix(PREFIX)
    handle = name if "/" in name else GEMMA + name
    page = f"https://www.kaggle.com/models/{'/'.join(handle.split('/')[:2])}"
    try:
        with _alone(handle):
            return Path(kagglehub.model_download(handle))
    except (KaggleApiHTTPError, UnauthenticatedError) as error:
        status = error.response.status_code if isinstance(error, KaggleApiHTTPError) else 401
        raise BadInput(f"{reference}: {_reason(status, page)}") from error
    except ValueError as error:
        raise BadInput(f"{reference}: not a model handle ({error}); give e.g. {EXAMPLE}") from error
    except DataCorruptionError as error:
        raise BadInput(f"{reference}: damaged on the way; repeat the command to fetch it again") from error
    except requests.RequestException as error:
        raise BadInput(f"{reference}: Kaggle cannot be reached ({type(error).__name__}); repeat the command") from error
    except OSError as error:
        raise NoSpace(
            f"{reference}: cannot be stored in {get_cache_folder()} ({error.strerror or error}); make room there, or "
            f"name another folder in KAGGLEHUB_CACHE, and repeat the command"
        ) from error


@contextmanager
def _alone(handle: str) -> Iterator[None]:
    """Keeps other processes from downloading the same model: kagglehub, resuming, would append to one file twice."""
    model = ".".join(handle.split("/")[:4])  # whichever version
    with ExitStack() as stack:
        with suppress(Unwritable):  # a cache that is only read
            stack.enter_context(FolderLock(Path(get_cache_folder(), f".{model}"), "download"))
        yield


def _reason(status: int, page: str) -> str:
    """What an HTTP status of Kaggle means to the user."""
    if status in (401, 403) and not get_kaggle_credentials():
        return (
            "no Kaggle credentials were found; make an API token at https://www.kaggle.com/settings and put it in "
            "~/.kaggle/kaggle.json, or into KAGGLE_USERNAME and KAGGLE_KEY"
        )
    if status == 401:
        return "Kaggle does not accept the credentials; make a new API token at https://www.kaggle.com/settings"
    if status == 403:
        return f"Kaggle refuses access: log in, accept Gemma's licence at {page}, and repeat the command"
    if status == 404:
        return f"there is no such model or version; {page} lists them, Google's INT4 ones are {', '.join(GOOGLES)}"
    return f"Kaggle answered with status {status}; try again later"
