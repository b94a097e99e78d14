"""`--checkpoint hf:REPO[/FILE]`: sources on the Hugging Face Hub, downloaded into its cache by its own library.

Of a repo of GGUF files only a model and its vision tower are fetched; other repos are fetched whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, list_repo_files, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    XetDownloadError,
)

from conversion.errors import BadInput, NoSpace, SourceLost, first_line
from conversion.identify import HUB, HUB_EXAMPLE, SHOWN, first_part, is_tower
from conversion.small_files.provenance import LICENSES

# What is fetched of a repo without GGUF files.
WHOLE = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", LICENSES)


def cache_folder() -> Path:
    """Where downloads lie."""
    return Path(constants.HF_HUB_CACHE)


def download(reference: str, *, tower: bool = True) -> Path:
    """Fetches a source, or finds it in the Hub's cache; an interrupted download goes on.

    Args:
        reference: `hf:OWNER/NAME`, or `hf:OWNER/NAME/FILE.gguf`.
        tower: whether to fetch the mmproj file beside a model too.

    Returns:
        The file of the model, or the folder of a repo without GGUF files.

    Raises:
        BadInput: no such repo or file, the license not accepted, or several files to choose from.
        SourceLost: the Hub cannot be reached.
        NoSpace: it cannot be stored; what has arrived is kept.
    """
    match = re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/(.+))?", reference.removeprefix(HUB).strip("/"))
    if not match:
        raise BadInput(f"{reference}: is no name of a repo; type e.g. {HUB_EXAMPLE}")
    repo, file = match.groups()
    with _plain_errors(reference, repo):
        files = list_repo_files(repo)
        models = [name for name in files if name.endswith(".gguf") and not is_tower(name)]
        if not models and not file:
            return Path(snapshot_download(repo, allow_patterns=WHOLE))
        model = _chosen(reference, models, file)
        wanted = [name for name in models if first_part(name) == model]
        if tower:
            wanted += _tower(reference, files, model)
        wanted += [name for name in files if fnmatch(name, LICENSES)]
        first, *_ = [Path(hf_hub_download(repo, name)) for name in wanted]
        return first


def _chosen(reference: str, models: list[str], file: str | None) -> str:
    """The model's file, the first of them if it is split."""
    firsts = sorted({first_part(name) for name in models})
    if file:
        if file not in models:
            raise BadInput(f"{reference}: there is no such GGUF model there, but {_named(firsts)}")
        return first_part(file)
    likely = [name for name in firsts if "q4_0" in name.lower()] if len(firsts) > 1 else firsts
    if len(likely) != 1:
        raise BadInput(f"{reference}: holds several models; name one, as {reference}/{firsts[0]}: {_named(firsts)}")
    return likely[0]


def _tower(reference: str, files: list[str], model: str) -> list[str]:
    """The mmproj file in the folder of a model, if there is one."""
    folder = model.rpartition("/")[0]
    towers = [name for name in files if name.endswith(".gguf") and is_tower(name) and name.rpartition("/")[0] == folder]
    if len(towers) > 1:
        raise BadInput(
            f"{reference}: holds {len(towers)} mmproj files, {_named(towers)}; download one with hf download, and name "
            "it with --mmproj"
        )
    return towers


def _named(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "none at all"


@contextmanager
def _plain_errors(reference: str, repo: str) -> Iterator[None]:
    """Turns the library's errors into errors that say what to do."""
    page = f"https://huggingface.co/{repo}"
    try:
        yield
    except GatedRepoError as error:
        raise BadInput(
            f"{reference}: is gated: log in at {page}, agree to its license, type hf auth login (or set HF_TOKEN), and "
            "repeat the command"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise BadInput(
            f"{reference}: no repo that is yours to read; if it is a private one, type hf auth login. See {page}"
        ) from error
    except LocalEntryNotFoundError as error:  # an EntryNotFoundError too, but says that the Hub is out of reach
        raise _lost(reference, error) from error
    except EntryNotFoundError as error:
        raise BadInput(f"{reference}: there is no such file; see {page}") from error
    except (HTTPError, XetDownloadError, ConnectionError, TimeoutError) as error:
        raise _lost(reference, error) from error
    except OSError as error:
        raise NoSpace(
            f"{reference}: cannot be stored in {cache_folder()} ({error.strerror or first_line(error)}); make room "
            "there, or name another folder in HF_HOME, and repeat the command"
        ) from error


def _lost(reference: str, error: Exception) -> SourceLost:
    return SourceLost(f"{reference}: the Hub cannot be reached ({first_line(error)}); repeat the command")
