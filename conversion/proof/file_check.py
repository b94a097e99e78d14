"""The files of a finished repo against its manifest: what is damaged, missing or extra, and what is harmless.

Only files that belong to a model repo are judged: those that the manifest names, and others at the top of the folder
that loaders might take for weights. What a desktop, a clone, an editor or Python leaves is passed over.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from conversion.proof.damage import damage_of
from conversion.proof.manifest import MANIFEST, again
from conversion.shards import INDEX, sha256
from conversion.small_files.repo_files import CODE_FILES, MODELING_FILE

LITTER = (
    *(".*", "._*", "*~", "#*#", "*.swp", "*.swo", "*.bak", "*.orig", "*.tmp", "*.lock", "*.pyc", "Icon?"),
    *("__pycache__", "Thumbs.db", "ehthumbs.db", "desktop.ini", "$RECYCLE.BIN", "System Volume Information"),
)
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".npz", ".onnx")
DOCUMENTS = (".md", ".txt")
DOCUMENT_NAMES = ("README.md", "NOTICE", "LICENSE")
# What may be edited and still is the same model: the defaults of sampling, and what a prompt looks like.
EDITABLE = ("generation_config.json", "chat_template.jinja")
SHOWN = 3


@dataclass
class Findings:
    """What a check found.

    Attributes:
        problems: what makes the repo another than the one that was written, and what to do.
        notes: what is worth a line and harmless.
        equal: how many files have the hash of the manifest.
        rewritten: files of weights that are not the bytes that were written, though they can be read: a proof against
            the source tells whether the numbers are the same.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    equal: int = 0
    rewritten: list[str] = field(default_factory=list)


def check_files(path: Path, manifest: dict, workers: int) -> Findings:
    """Compares the files at the top of a repo's folder with the manifest.

    Args:
        path: the folder.
        manifest: as `read_manifest` gives it.
        workers: files hashed at a time.
    """
    findings = Findings()
    hashes = manifest.get("files", {})
    if not manifest:
        findings.notes.append(f"no {MANIFEST}: there are no hashes to compare with, only names, shapes and dtypes")
    present = [name for name in sorted(hashes) if (path / name).is_file()]
    with ThreadPoolExecutor(workers) as pool:
        found = dict(zip(present, pool.map(lambda name: sha256(path / name), present), strict=True))
    for name in sorted(hashes):
        if name not in found:
            _judge_missing(name, findings)
        elif found[name] == hashes[name]:
            findings.equal += 1
        else:
            _judge_changed(path / name, hashes[name], findings)
    _judge_extras(path, {*hashes, *_named_by_index(path), MANIFEST}, bool(manifest), findings)
    return findings


def _judge_missing(name: str, findings: Findings) -> None:
    if name in DOCUMENT_NAMES:
        findings.notes.append(f"{name} is missing; the model does without")
    else:
        findings.problems.append(f"{name} is missing; {again(name)}")


def _judge_changed(path: Path, expected: str, findings: Findings) -> None:
    """A file that is not the bytes that were written."""
    name = path.name
    if name.endswith(WEIGHTS):
        damage = damage_of(path)
        if damage is None:
            findings.rewritten.append(name)
        else:
            findings.problems.append(f"{name} is damaged: {damage}; {again(name)}")
    elif _line_ends_only(path, expected):
        findings.notes.append(f"{name}: its line ends were changed, by git or an editor; harmless")
    elif name in DOCUMENT_NAMES or name.endswith(DOCUMENTS):
        findings.notes.append(f"{name} was edited; harmless")
    elif name in CODE_FILES and sha256(MODELING_FILE.with_name(name)) == sha256(path):
        findings.notes.append(f"{name} is this project's present version; harmless")
    elif name in EDITABLE and _readable(path):
        findings.notes.append(f"{name} was edited; the weights do not depend on it")
    else:
        findings.problems.append(
            f"{name} is not the file that was written (SHA-256), so the model may be another; unless you edited it, "
            f"{again(name)}"
        )


def _judge_extras(path: Path, known: set[str], has_manifest: bool, findings: Findings) -> None:
    """What lies at the top of the folder and is not named: findings where it may be taken for weights."""
    others = []
    for child in sorted(path.iterdir()):
        if child.name in known or any(fnmatch(child.name, pattern) for pattern in LITTER):
            continue
        if child.is_file() and child.name.endswith(WEIGHTS) and has_manifest:
            findings.problems.append(
                f"{child.name} is not in {MANIFEST}: not of this repo, and a loader may take it for its weights; move "
                "it elsewhere"
            )
        else:
            others.append(child.name)
    if others and has_manifest:
        more = f" and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        findings.notes.append(f"not of the repo, not looked at: {', '.join(others[:SHOWN])}{more}")


def _named_by_index(path: Path) -> set[str]:
    """Files of weights that the index names, itself too: without a manifest they are the repo."""
    try:
        return {INDEX, *json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _line_ends_only(path: Path, expected: str) -> bool:
    content = path.read_bytes()
    return any(
        hashlib.sha256(content.replace(old, new)).hexdigest() == expected
        for old, new in ((b"\r\n", b"\n"), (b"\n", b"\r\n"))
    )


def _readable(path: Path) -> bool:
    """Whether a settings file is whole: JSON, or text."""
    try:
        text = path.read_text(encoding="utf-8")
        return "\0" not in text and (path.suffix != ".json" or isinstance(json.loads(text), dict))
    except (OSError, ValueError):
        return False
