"""The flow of an export, the same for every format: written, read back, completed, published.

Beside what its exporter writes, every format gets a card, a manifest and, if the repo has them, its NOTICE and LICENSE.
"""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from conversion.convert.pipeline import convert
from conversion.convert.plan import NO_TOKENIZER, check_options, make_plan
from conversion.errors import BadInput, NoSpace
from conversion.export.hub_exporter import HubExporter
from conversion.export.read_back import read_back
from conversion.folders.files import write_text
from conversion.folders.places import check_apart
from conversion.folders.work_folder import WorkFolder, check_finished
from conversion.formats import HUB_FORMATS
from conversion.options import FORMATS, Options
from conversion.proof.manifest import MANIFEST, read_manifest
from conversion.repos.awq_repo import AwqRepo
from conversion.repos.stored_repo import open_repo
from conversion.shards import sha256
from conversion.small_files.model_card import export_card
from conversion.small_files.provenance import LICENSES
from conversion.small_files.repo_files import write_json


class Exporter(Protocol):
    """What writes one format."""

    def write(self, repo: AwqRepo, folder: Path) -> list[str]:
        """Writes weights, settings and tokenizer into an empty folder.

        Returns:
            Lines for the user.

        Raises:
            BadInput: the format cannot hold such a repo.
        """


def export(
    source: Path,
    output: Path,
    kind: str,
    *,
    gguf_embedding: str = "q4_0",
    report: Callable[[str], None] = print,
) -> None:
    """Writes a converted repo in another format.

    Args:
        source: a repo in AWQ format, as convert_flax.py writes it.
        output: a new or empty folder.
        kind: one of `FORMATS`.
        gguf_embedding: `q4_0` or `f16`.
        report: takes one line per finding.

    Raises:
        BadInput: the source is no such repo, or the format cannot hold it; the output folder is as it was.
        NoSpace: the disk is full.
    """
    check_apart(output, {"REPO": source})
    check_export(output, kind)
    check_finished(source)
    with WorkFolder(output) as work:
        _export(source, work, kind, gguf_embedding, report)


def convert_and_export(
    options: Options,
    kind: str,
    *,
    gguf_embedding: str = "q4_0",
    report: Callable[[str], None] = print,
) -> None:
    """Converts a checkpoint to another format, by way of an AWQ repo that is removed afterwards.

    Args:
        options: what the user chose, for the output in the other format.
        kind, gguf_embedding, report: as for `export`.

    Raises:
        BadInput, SourceLost, NoSpace, KeyboardInterrupt: as for `convert` and `export`.
    """
    output = options.output
    check_options(options)
    check_export(output, kind)
    awq = awq_folder(output)
    options = dataclasses.replace(options, output=awq)
    if kind == "gguf" and make_plan(options).tokenizer is None:
        raise BadInput(f"--format gguf: {NO_TOKENIZER}")

    def export_repo(repo: Path) -> None:
        try:
            _export(repo, work, kind, gguf_embedding, report)
        except BadInput as error:
            kept = f"the AWQ repo is done and waits: without --format and with --output {awq} the same command"
            raise BadInput(f"{error}; {kept} publishes it") from error

    with WorkFolder(output) as work:
        convert(options, report, export_repo)
    with suppress(OSError):  # an earlier run made it, or somebody put something there
        awq.rmdir()


def awq_folder(output: Path) -> Path:
    """Where the AWQ repo waits while it is exported to `output`: one place, however the folder is spelled."""
    output = output.resolve()
    return output.with_name(f"{output.name}.awq")


def _export(source: Path, work: WorkFolder, kind: str, gguf_embedding: str, report: Callable[[str], None]) -> None:
    """Fills the work folder from a repo and publishes it, or goes on where that was interrupted."""
    if work.note:
        report(work.note)
    repo = AwqRepo(source)
    times = {path.name: path.stat().st_mtime_ns for path in sorted(source.iterdir()) if path.is_file()}
    state = {"source": str(source.resolve()), "source files": times, "format": kind, "gguf_embedding": gguf_embedding}
    work.check(state)
    try:
        work.start(state)
        if not work.complete:
            _write(repo, work, kind, gguf_embedding, report)
        work.publish()
    except BadInput as error:
        raise work.discard(error) from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt("repeat the command to go on") from None
    except OSError as error:
        hint = "the disk takes no file as large as this; " if error.errno == errno.EFBIG else ""
        raise NoSpace(f"{error}; {hint}repeat the command to go on, or remove {work.path}") from error


def _write(repo: AwqRepo, work: WorkFolder, kind: str, gguf_embedding: str, report: Callable[[str], None]) -> None:
    """Everything that is published."""
    for line in _exporter(kind, gguf_embedding).write(repo, work.repo):
        report(line)
    for line in read_back(repo, open_repo(work.repo)):
        report(line)
    for file in (*repo.path.glob("NOTICE"), *repo.path.glob(LICENSES)):
        shutil.copyfile(file, work.repo / file.name)
    card = (repo.path / "README.md").read_text() if (repo.path / "README.md").is_file() else ""
    source = read_manifest(repo.path).get("source", {}).get("kind", "flax")
    write_text(work.repo / "README.md", export_card(card, kind, (repo.path / "NOTICE").is_file(), source))
    names = sorted({path.name for path in work.repo.iterdir()} - {MANIFEST})
    write_json(work.repo / MANIFEST, {"files": {name: sha256(work.repo / name) for name in names}})
    work.finish([*names, MANIFEST])


def _exporter(kind: str, gguf_embedding: str) -> Exporter:
    if kind in HUB_FORMATS:
        return HubExporter(HUB_FORMATS[kind])
    from conversion.export.gguf_exporter import GgufExporter  # the gguf library is not everybody's

    return GgufExporter(gguf_embedding)


def check_export(output: Path, kind: str) -> None:
    """Raises BadInput for what can be known before there is a repo to export."""
    if kind not in FORMATS:
        raise BadInput(
            f"--format {kind}: a converted repo is a repo in AWQ format already; choose {' or '.join(FORMATS)}"
        )
    if kind == "gguf" and find_spec("gguf") is None:
        raise BadInput("GGUF files are written by the gguf library, which is not installed: pip install gguf")
    WorkFolder(output)
