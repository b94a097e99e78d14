"""Source files against SHA-256 hashes that the user has: the only proof that catches every flipped bit."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conversion.errors import BadInput
from conversion.shards import sha256
from conversion.source.source import Source


def check_source_hashes(hashes: Path, given: Path, source: Source, workers: int, report: Callable[[str], None]) -> None:
    """Reads every file of a source and compares.

    Args:
        hashes: lines of `sha256sum`: 64 hex digits, blanks, a path relative to the folder given or to the source's own.
        given: the folder or file that the user gave as --checkpoint.
        source: the source there.
        workers: files hashed at a time.
        report: takes one line per finding.

    Raises:
        BadInput: a file differs, or has no hash; or the file of hashes cannot be read.
    """
    try:
        lines = hashes.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--source-hashes {hashes}: cannot be read ({error})") from error
    expected: dict[Path, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line.rstrip())
        if not match:
            raise BadInput(f"--source-hashes {hashes}: line {number} is not of the form that sha256sum writes")
        for folder in (given, source.files.folder):
            expected[(folder / match[2]).resolve()] = match[1].lower()

    files = source.files.paths
    if bare := [path for path in files if path.resolve() not in expected]:
        raise BadInput(f"--source-hashes {hashes}: has no hash for {len(bare)} files of the checkpoint, e.g. {bare[0]}")
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(sha256, files))
    wrong = [str(path) for path, digest in zip(files, found, strict=True) if expected[path.resolve()] != digest]
    if wrong:
        raise BadInput(f"{len(wrong)} files differ from --source-hashes: {', '.join(wrong)}; download them again")
    report(f"source: {len(files)} files have the given hashes")
