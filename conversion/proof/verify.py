"""All that can be proven of a finished repo of any format.

* `verify`: in one error all that is wrong; with its source, number by number.
* `check_repo`: hashes, index, names, shapes and dtypes; needs nothing but the repo.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conversion.errors import BadInput, shortened
from conversion.identify import repo_kind
from conversion.proof.checkpoint_proof import prove_repo
from conversion.proof.file_check import Findings, check_files
from conversion.proof.manifest import MANIFEST, again, read_manifest
from conversion.proof.repo_proof import compare_repos
from conversion.repos.awq_repo import AwqRepo
from conversion.repos.stored_repo import StoredRepo, open_repo
from conversion.source.source import Source


def verify(
    path: Path,
    workers: int,
    report: Callable[[str], None],
    *,
    checkpoint: Source | None = None,
    against: AwqRepo | None = None,
) -> None:
    """Proves what can be proven of a repo.

    Args:
        path: folder of a repo in any format that this project writes.
        workers: tensors compared at a time.
        report: takes one line per finding.
        checkpoint: the source that it was made from.
        against: the AWQ repo that it was made from.

    Raises:
        BadInput: a file is damaged, missing or one too many, or a number is not the source's.
    """
    findings, repo = _examine(path, workers)
    if not checkpoint and not against:
        _raise_problems(path, findings)
        _report_files(findings, repo, report)
        report("not compared with a source: --checkpoint DIR or --against AWQ_REPO does that, number by number")
        return
    rewritten, findings.rewritten = findings.rewritten, []
    _raise_problems(path, findings)
    _report_files(findings, repo, report)
    try:
        if checkpoint:
            prove_repo(repo, checkpoint, workers, report)
        if against:
            compare_repos(repo, against, report)
    except BadInput as error:
        if not rewritten:
            raise
        raise BadInput(f"{error}; {again(*rewritten)}") from error
    for name in rewritten:
        if name.endswith(".gguf"):  # holds more than tensors
            raise BadInput(
                f"{path}: the tensors of {name} are its source's, but what it holds beside them, as the tokenizer, is "
                f"not what was written (SHA-256); {again(name)}"
            )
        report(f"note: {name} is not the bytes that were written, but all its tensors are its source's; harmless")


def check_repo(path: Path, workers: int, report: Callable[[str], None]) -> StoredRepo:
    """Checks a repo against its manifest and its configuration.

    Raises:
        BadInput: a hash, a name, a shape or a dtype differs.
    """
    findings, repo = _examine(path, workers)
    _raise_problems(path, findings)
    _report_files(findings, repo, report)
    return repo


def _examine(path: Path, workers: int) -> tuple[Findings, StoredRepo | None]:
    """What files and structure tell; without a repo there is at least one problem."""
    findings = check_files(path, read_manifest(path), workers)
    try:
        repo = open_repo(path)
        findings.problems += repo.problems()
    except BadInput as error:
        if not findings.problems:
            findings.problems.append(str(error))
        return findings, None
    return findings, repo


def _raise_problems(path: Path, findings: Findings) -> None:
    problems = findings.problems + [
        f"{name} is not the file that was written (SHA-256); which of its tensors differ, --checkpoint or --against "
        f"tells; {again(name)}"
        for name in findings.rewritten
    ]
    if problems:
        count = f"{len(problems)} problems: " if len(problems) > 1 else ""
        raise BadInput(f"{path}: {count}{shortened(problems)}")


def _report_files(findings: Findings, repo: StoredRepo, report: Callable[[str], None]) -> None:
    for note in findings.notes:
        report(f"note: {note}")
    if findings.equal:
        report(f"files: {findings.equal}, every SHA-256 as in {MANIFEST}")
    report(
        f"format: {repo_kind(repo.path)}, {len(repo.linears)} int4 matrices; names, shapes and dtypes are the model's"
    )
