"""Exact versions for every dependency group of pyproject.toml, resolved by uv; `make pins` writes them.

    python -m requirements.pins [--upgrade]                   each set's file here, and the Space's requirements.txt
    python -m requirements.pins --resolution lowest-direct    build/lowest-direct.txt: the oldest versions allowed
    python -m requirements.pins --resolution highest          build/highest.txt: the newest

One file serves Linux, macOS and Windows and every Python from 3.11 on. What torch itself pins (CUDA's libraries and,
unless a group names it, triton) is left to torch: its CPU build brings none of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETS = ("dev", "app", "convert", "model")  # dev holds all the others, so they take their versions from it
UNIVERSAL = ("--universal", "--fork-strategy", "fewest", "--python-version", "3.11")
BROUGHT_BY_TORCH = re.compile(r"(nvidia|cuda)-|triton$")
HEADER = "# Written by `make pins` from pyproject.toml, group {group}; sha256 of what it asks for: {digest}"


def source() -> dict:
    """pyproject.toml, whose dependency groups (PEP 735) and constraints the pins are written from."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def constraints() -> list[str]:
    """The versions to take where the ranges leave a choice."""
    return source()["tool"]["pins"]["constraints"]


def requirements(group: str) -> list[str]:
    """What a group asks for, with the groups that it includes."""
    lines = []
    for item in source()["dependency-groups"][group]:
        lines += [item] if isinstance(item, str) else requirements(item["include-group"])
    return lines


def distribution(requirement: str) -> str:
    """The normalized distribution name of a requirement or pin (PEP 503)."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def read_pins(path: Path) -> dict[str, str]:
    """The pins of a requirements file.

    Returns:
        The line of each distribution without its comment: `name==version`, with a marker if it has one.
    """
    lines = (line.split("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return {distribution(line): line for line in lines if line}


def header(group: str) -> str:
    """The first line of a set's file: it changes whenever what the group asks for does."""
    asked = [requirements(group), constraints()]
    return HEADER.format(group=group, digest=hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16])


def find_uv() -> str:
    """uv's executable: the one beside this Python, else the one on PATH."""
    beside = shutil.which("uv", path=str(Path(sys.executable).parent))
    found = beside or shutil.which("uv")
    if not found:
        sys.exit("uv is missing: `make setup` installs it")
    return found


def compile_group(group: str, *options: str, preferred: str = "", constrained: list[str] | None = None) -> list[str]:
    """Pins for a group, one line each, with the packages that asked for it.

    Args:
        group: A group of pyproject.toml.
        options: More options of `uv pip compile`.
        preferred: Pins to keep where they fit.
        constrained: Pins to keep whether they fit or not.
    """
    with tempfile.TemporaryDirectory() as folder:
        output, limits = Path(folder) / "pins.txt", Path(folder) / "constraints.txt"
        output.write_text(preferred, "utf-8")  # uv prefers the versions that stand in its output
        limits.write_text("\n".join(constrained or []), "utf-8")
        command = [find_uv(), "pip", "compile", "--quiet", "--no-header", "--annotation-style", "line"]
        command += ["--group", f"pyproject.toml:{group}", "--output-file", str(output), "--constraints", str(limits)]
        if subprocess.run([*command, *options], cwd=ROOT, check=False).returncode:
            sys.exit(f"uv cannot resolve the group {group} (see above)")
        lines = output.read_text("utf-8").replace(f"(pyproject.toml:{group})", group)
        lines = lines.replace(f"-c {limits}, ", "").splitlines()
    named = {distribution(requirement) for requirement in requirements(group)}
    return [line for line in lines if distribution(line) in named or not BROUGHT_BY_TORCH.match(distribution(line))]


def write(path: Path, lines: list[str]) -> None:
    """Writes a requirements file in one piece."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    print(path.relative_to(ROOT))


def space_pins() -> list[str]:
    """The lines of the Space's requirements.txt: what the app asks for by name; Gradio's image resolves the rest."""
    pins = read_pins(ROOT / "requirements" / "app.txt")
    return [
        "# Written by `make pins`: the Gradio Space's pins. `spaces` comes with ZeroGPU hardware.",
        *(pins[distribution(requirement)] for requirement in requirements("app")),
    ]


def write_sets(upgrade: bool) -> None:
    """Writes the pins of every set; the smaller ones take their versions from the largest.

    Args:
        upgrade: Takes the newest versions instead of keeping the pinned ones where they still fit.
    """
    largest = ROOT / "requirements" / f"{SETS[0]}.txt"
    preferred = largest.read_text("utf-8") if largest.exists() and not upgrade else ""
    for group in SETS:
        path = ROOT / "requirements" / f"{group}.txt"
        write(path, [header(group), *compile_group(group, *UNIVERSAL, preferred=preferred, constrained=constraints())])
        preferred = largest.read_text("utf-8")
    write(ROOT / "requirements.txt", space_pins())


def write_end_of_ranges(resolution: str) -> None:
    """Writes the oldest or the newest versions that the ranges allow, for this Python and machine, to build/."""
    write(ROOT / "build" / f"{resolution}.txt", compile_group(SETS[0], "--resolution", resolution))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions, not those pinned already")
    parser.add_argument("--resolution", choices=("lowest-direct", "highest"), help="to build/: an end of the ranges")
    arguments = parser.parse_args()
    if arguments.resolution:
        write_end_of_ranges(arguments.resolution)
    else:
        write_sets(arguments.upgrade)


if __name__ == "__main__":
    main()
