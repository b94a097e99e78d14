"""Every command answers `--help` before anything is imported that has to be installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("benchmarks", "chat", "conversion", "csrc", "demo", "real270m", "requirements", "space", "tests")
SCRIPTS = ("app.py", "convert_flax.py", "csrc/pack.py", "requirements/install.py")  # all others are run by -m
DRIVERS = ROOT / "tests" / "engines" / "drivers"  # run by tests, with a job's file for an argument


def commands() -> list[str]:
    """What stands after `python` to run each command of this repository from its top folder."""
    files = [*ROOT.glob("*.py"), *(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))]
    found = [
        file.relative_to(ROOT)
        for file in sorted(files)
        if DRIVERS not in file.parents and '\nif __name__ == "__main__":\n' in file.read_text("utf-8")
    ]
    return [
        file.as_posix() if file.as_posix() in SCRIPTS else f"-m {'.'.join(file.with_suffix('').parts)}"
        for file in found
    ]


def test_all_scripts_are_found() -> None:
    assert set(SCRIPTS) < set(commands())


@pytest.mark.parametrize("command", commands())
def test_help_needs_nothing_installed(command: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    bare = [sys.executable, "-S"]  # without site-packages: an import of anything else than Python's own fails
    done = subprocess.run(
        [*bare, *command.split(), "--help"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")
