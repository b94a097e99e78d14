"""What the user names as a checkpoint or a repo: found, or refused with what it is instead and what to type."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from conversion.errors import BadInput
from conversion.folders.work_folder import check_finished
from conversion.identify import (
    EXAMPLE,
    GOOGLES,
    HUB,
    HUB_EXAMPLE,
    PREFIX,
    REPOS,
    SHOWN,
    above,
    below,
    hub_id,
    identify,
    is_pointer,
    kaggle_reference,
    nearest_name,
    nowhere,
    repo_kind,
    source_kind,
)

METADATA = "_METADATA"
ONLY_KAGGLE = f"Google's INT4 checkpoints are on Kaggle: --checkpoint {EXAMPLE}, or the folder of one"


def source_path(given: str, *, tower: bool = True) -> Path:
    """What `open_source` takes; `kaggle:NAME` and `hf:NAME` are downloaded first.

    For a Flax checkpoint that is the folder that holds `_METADATA`, or at most two levels above it.

    Args:
        given: what the user typed.
        tower: whether the vision tower beside a GGUF file is wanted.

    Raises:
        BadInput: it is something else.
    """
    if given.lower().startswith(PREFIX):
        reference = kaggle_name(given)
        from conversion.source.kaggle import download  # only those who download need kagglehub

        return download(reference)
    if given.lower().startswith(HUB):
        from conversion.source import hub  # likewise huggingface_hub

        return hub.download(HUB + given[len(HUB) :], tower=tower)
    path = Path(given)
    if not path.exists():  # before a Path makes one slash of the two of a web address
        raise BadInput(f"--checkpoint {given}: {_no_checkpoint_there(given)}")
    if source_kind(path) == "flax":
        find_checkpoint(path)
    return path


def kaggle_name(given: str) -> str:
    """`kaggle:NAME` as `download` takes it.

    Raises:
        BadInput: no checkpoint of Google's is called so.
    """
    name = given[len(PREFIX) :].strip("/")
    if (
        "/" not in name
        and name not in GOOGLES
        and (re.search(r"(?<!\d)(1|4|12|27|270)[bm]\b", name) or "int4" not in name)
    ):
        near = PREFIX + nearest_name(name)
        raise BadInput(f"--checkpoint {given}: no INT4 checkpoint of Google's is called so; is {near} meant?")
    if "/" in name and (reference := kaggle_reference(given)) and reference != given:
        raise BadInput(f"--checkpoint {given}: type --checkpoint {reference}")
    return PREFIX + name


def _no_checkpoint_there(given: str) -> str:
    if reference := kaggle_reference(given):
        return f"no such folder; for Kaggle's checkpoint type --checkpoint {reference}"
    if name := hub_id(given):
        return f"no such folder; for the repo of the Hugging Face Hub type --checkpoint {HUB}{name}"
    takes = f"the folder of an Orbax checkpoint, a GGUF file, {EXAMPLE}, or {HUB_EXAMPLE}"
    return f"{nowhere(given)}; --checkpoint takes {takes}"


def find_checkpoint(path: Path) -> Path:
    """The folder that holds `_METADATA`: the given one, or the only one within two levels below it.

    Raises:
        BadInput: there is none, and what the path is instead.
    """
    named = f"--checkpoint {path}"
    if not path.exists():
        raise BadInput(f"{named}: {_no_checkpoint_there(str(path))}")
    if path.is_file():
        raise BadInput(f"{named}: is {identify(path)}{_and_its_checkpoint(path)}")
    found = [path] if (path / METADATA).is_file() else below(path, METADATA, 2)
    if len(found) == 1:
        _check_no_pointers(found[0], named)
        return found[0]
    if found:
        raise BadInput(f"{named}: holds several checkpoints; name one: {', '.join(map(str, found[:SHOWN]))}")
    if deeper := below(path, METADATA):
        raise BadInput(f"{named}: the checkpoint lies deeper; type --checkpoint {_quoted(deeper[0])}")
    if inside := above(path, METADATA):
        raise BadInput(f"{named}: is a part of the checkpoint; type --checkpoint {_quoted(inside)}")
    thing, kind = identify(path), repo_kind(path)
    if kind in REPOS:
        advice = "; it is what a conversion makes, and for the verbs verify, quality and export"
    else:
        advice = "" if thing.remedy else f"; {ONLY_KAGGLE}"
    raise BadInput(
        f"{named}: not an Orbax checkpoint, there is no {METADATA} file in it or below: it is {thing}{advice}"
    )


def _and_its_checkpoint(path: Path) -> str:
    """For a file: the checkpoint that it lies in or beside."""
    if identify(path).remedy:
        return ""
    folder = path.resolve().parent
    inside = folder if (folder / METADATA).is_file() else above(path, METADATA)
    near = [inside] if inside else below(folder, METADATA)
    if len(near) == 1:
        return f"; the checkpoint is the folder: type --checkpoint {_quoted(near[0])}"
    return f"; --checkpoint takes a folder. {ONLY_KAGGLE}"


def _check_no_pointers(folder: Path, named: str) -> None:
    """Raises BadInput if git left pointers in place of large files."""
    for pattern in ("*", "d/*", "ocdbt.process_*/d/*"):
        for path in sorted(folder.glob(pattern)):
            if is_pointer(path):
                raise BadInput(
                    f"{named}: {path.relative_to(folder)} is a git-lfs pointer, not the file itself; type "
                    f"`git lfs pull` in {folder}"
                )


def check_repo_folder(path: Path, verb: str) -> None:
    """Raises BadInput if a path is no repo that the verb takes, with what it is instead and what to type.

    Args:
        path: what the user gave.
        verb: `export`, `verify` or `quality`.
    """
    given, command = str(path), f"convert_flax.py {verb}"
    if not path.exists():
        raise BadInput(f"{given}: {_no_repo_there(given, verb)}")
    if path.is_file():
        thing = identify(path)
        its_repo = f"; the repo is its folder: type {command} {_quoted(path.parent)}"
        advice = its_repo if not thing.remedy and repo_kind(path.parent) else ""
        raise BadInput(f"{given}: is {thing}, {verb} takes the folder of a converted repo{advice}")
    check_finished(path)
    kind = repo_kind(path)
    if verb == "verify" and (path / "conversion.json").is_file():  # what is missing or unreadable, verify itself tells
        _check_no_pointers(path, given)
        return
    if kind is None:
        raise BadInput(f"{given}: not a converted repo, no config.json there: {_no_repo_inside(path, command)}")
    if pointers := [
        file for file in sorted(path.glob("*.safetensors")) + sorted(path.glob("*.gguf")) if is_pointer(file)
    ]:
        raise BadInput(
            f"{given}: {pointers[0].name} is a git-lfs pointer, not the file itself; type `git lfs pull` in {given}"
        )
    if kind == "gguf" and verb != "verify":
        hint = "llama.cpp's llama-perplexity measures it" if verb == "quality" else "export wants the AWQ repo"
        raise BadInput(f"{given}: is a folder of GGUF files; {hint}")
    if kind not in REPOS and verb != "quality":
        raise BadInput(f"{given}: is {identify(path).what}, not a converted repo; convert_flax.py convert makes one")


def _no_repo_there(given: str, verb: str) -> str:
    if given.lower().startswith(PREFIX) or ("/" in given and "kaggle" in given and kaggle_reference(given)):
        return (
            f"a checkpoint of Kaggle's is no repo yet; type convert_flax.py convert --checkpoint {EXAMPLE} --output DIR"
        )
    if name := hub_id(given):
        folder = name.split("/")[1]
        return (
            f"no such folder; for a repo of the Hub type hf download {name} --local-dir {folder}, "
            f"then convert_flax.py {verb} {folder}"
        )
    return f"{nowhere(given)}; {verb} takes the folder of a converted repo"


def _no_repo_inside(path: Path, command: str) -> str:
    """What a folder without config.json and GGUF files is."""
    found = below(path, "config.json")
    if len(found) == 1:
        return f"the repo lies deeper; type {command} {_quoted(found[0])}"
    if (path / METADATA).is_file() or len(below(path, METADATA)) == 1:
        return (
            "it is a Flax checkpoint, not yet converted; type "
            f"convert_flax.py convert --checkpoint {_quoted(path)} --output DIR"
        )
    if inside := above(path, "conversion.json"):
        return f"it is a part of a repo; type {command} {_quoted(inside)}"
    return f"it is {identify(path)}"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def check_donor(given: str) -> None:
    """Raises BadInput if --donor names what is neither a folder of safetensors nor a Hub id."""
    path, named = Path(given), f"--donor {given}"
    takes = "--donor takes a folder of safetensors as transformers writes them, or a Hub id"
    if path.is_dir():
        if not any(path.glob("*.safetensors")):
            deeper = below(path, "config.json")
            where = f"; type --donor {_quoted(deeper[0])}" if len(deeper) == 1 else f"; {takes}"
            raise BadInput(f"{named}: is {identify(path).what}, holds no model.safetensors{where}")
        _check_no_pointers(path, named)
    elif path.is_file():
        folder = f"; type --donor {_quoted(path.parent)}" if any(path.parent.glob("*.safetensors")) else f"; {takes}"
        raise BadInput(f"{named}: is {identify(path).what}, not a folder{folder}")
    elif hub_id(given) != given:
        name = hub_id(given)
        raise BadInput(f"{named}: " + (f"type --donor {name}" if name else f"{nowhere(given)}; {takes}"))


def check_tokenizer(path: Path) -> None:
    """Raises BadInput if --tokenizer names what holds none."""
    named = f"--tokenizer {path}"
    takes = "--tokenizer takes a tokenizer.model, or a folder with tokenizer.json"
    if not path.exists():
        name = hub_id(str(path))
        fetch = f"; for one of the Hub type hf download {name} --include 'tokenizer*' --local-dir DIR" if name else ""
        raise BadInput(f"{named}: {nowhere(str(path))}{fetch}; {takes}")
    if path.is_file():
        thing = identify(path)
        other = thing.what != "a SentencePiece tokenizer" and thing.what != "a file" and path.name != "tokenizer.json"
        if thing.remedy or other:
            raise BadInput(f"{named}: is {thing}; {takes}")
        return
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        deeper = [folder for name in ("tokenizer.json", "tokenizer.model") for folder in below(path, name)]
        where = f"type --tokenizer {_quoted(deeper[0])}" if deeper else takes
        raise BadInput(f"{named}: holds neither tokenizer.json nor tokenizer.model, is {identify(path).what}; {where}")
    _check_no_pointers(path, named)


def check_config(path: Path) -> None:
    """Raises BadInput if --config names no file that can be JSON."""
    named = f"--config {path}"
    if not path.exists():
        raise BadInput(f"{named}: {nowhere(str(path)).replace('folder', 'file', 1)}; --config takes a config.json")
    if path.is_dir():
        inside = path / "config.json"
        where = f"type --config {_quoted(inside)}" if inside.is_file() else "--config takes a config.json"
        raise BadInput(f"{named}: is a folder; {where}")
    if (thing := identify(path)).what not in ("a JSON file", "a file"):
        raise BadInput(f"{named}: is {thing}; --config takes a config.json")


def check_has_tokenizer(repo: Path) -> None:
    """Raises BadInput if a repo lacks its tokenizer: transformers would make up one that knows no word, and go on."""
    if not any((repo / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise BadInput(
            f"{repo}: holds no tokenizer.json, so no text can be read; copy the model's tokenizer into it, "
            "or convert again with --tokenizer"
        )
    _check_no_pointers(repo, str(repo))


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, without a byte order mark.

    Raises:
        BadInput: it cannot be read, is no text, or is empty.
    """
    named = f"--text {path}"
    if path.is_dir():
        raise BadInput(f"{named}: is a folder; --text takes a text file in UTF-8")
    if not path.exists():
        raise BadInput(f"{named}: {nowhere(str(path)).replace('folder', 'file', 1)}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadInput(f"{named}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        thing = identify(path)
        what = f"is {thing}" if thing.what != "a file" else f"cannot be read as UTF-8 ({error})"
        raise BadInput(f"{named}: {what}; --text takes plain text in UTF-8") from error
    if "\0" in text:
        raise BadInput(f"{named}: holds zero bytes, so it is no plain text in UTF-8")
    if not text.strip():
        raise BadInput(f"{named}: is empty; give a file with some thousand words of plain text")
    return text
