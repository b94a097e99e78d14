"""Whether every set of pins can be installed where we have no machine: resolved by uv from the index's metadata alone.

    python -m requirements.resolve

Each file of pins, on each platform, for each Python: every package must have a wheel, and whatever is needed there must
be pinned, but for what torch pins itself. Prints a table, then what is wrong; exit code 1 if anything is.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from requirements.pins import BROUGHT_BY_TORCH, ROOT, SETS, distribution, find_uv, read_pins

FILES = (*(f"requirements/{name}.txt" for name in SETS), "requirements.txt")
LARGEST = FILES[0]  # goes first; the others then find all that the index said in uv's cache
PLATFORMS = {
    "Linux x86_64": "x86_64-unknown-linux-gnu",
    "Linux aarch64": "aarch64-unknown-linux-gnu",
    "macOS 14 arm64": "aarch64-apple-darwin",
    "Windows x86_64": "x86_64-pc-windows-msvc",
}
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACOS = "14.0"  # the oldest that torch has wheels for


def fault(file: str, platform: str, python: str) -> str:
    """What keeps a file of pins from being installed; empty if nothing does.

    Args:
        file: The file, from the repository's root.
        platform: A key of `PLATFORMS`.
        python: The Python version.
    """
    run = _compile(file, platform, python, *([] if file == LARGEST else ["--offline"]))
    if run.returncode and file != LARGEST:
        run = _compile(file, platform, python)
    if run.returncode:
        return run.stderr.strip()
    if file == "requirements.txt":  # it names only what the app asks for itself
        return ""
    needed = {distribution(line) for line in run.stdout.splitlines()}
    unpinned = sorted(name for name in needed - set(read_pins(ROOT / file)) if not BROUGHT_BY_TORCH.match(name))
    return f"needed but not pinned: {', '.join(unpinned)}" if unpinned else ""


def _compile(file: str, platform: str, python: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        find_uv(),
        "pip",
        "compile",
        "--quiet",
        "--no-header",
        "--no-annotate",
        "--only-binary",
        ":all:",
        *options,
    ]
    command += ["--python-platform", PLATFORMS[platform], "--python-version", python, file]
    environment = {**os.environ, "MACOSX_DEPLOYMENT_TARGET": MACOS}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    faults = {}
    for files in (FILES[:1], FILES[1:]):
        cases = list(itertools.product(files, PLATFORMS, PYTHONS))
        with ThreadPoolExecutor(4) as pool:
            faults |= dict(zip(cases, pool.map(lambda case: fault(*case), cases), strict=True))
    print(f"{'':26}{'':16}", *(f"{python:>6}" for python in PYTHONS))
    for file, platform in itertools.product(FILES, PLATFORMS):
        marks = ("no" if faults[file, platform, python] else "yes" for python in PYTHONS)
        print(f"{file:26}{platform:16}", *(f"{mark:>6}" for mark in marks))
    for case, words in faults.items():
        if words:
            print("\n", *case, f"\n{words}")
    failed = sum(map(bool, faults.values()))
    print(f"\n{len(faults) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
