"""One virtual environment per engine, made on first use under ~/.cache/gemma3-int4/engines and kept.

`pins/NAME.txt` states every package of the environment NAME with its version; it is installed without resolving
dependencies, because several engines ask for versions that they do not need or that clash. An environment whose pins
are still the same is used as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from pathlib import Path

from real270m.fetch import CACHE, Unavailable

ENGINES = CACHE / "engines"
PINS = Path(__file__).parents[1] / "pins"


def environment(name: str) -> Path:
    """The Python interpreter of an engine's environment, which is made if it is missing or has other pins.

    Raises:
        Unavailable: pip cannot install the pins.
    """
    folder, wanted = ENGINES / name, (PINS / f"{name}.txt").read_text()
    python, stamp = folder / "bin" / "python", folder / "pins.txt"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _install(python, PINS / f"{name}.txt")
        _make_torchvision_importable(folder)
        stamp.write_text(wanted)
    return python


def _install(python: Path, pins: Path) -> None:
    # PyTorch's own index has CPU wheels, which win over PyPI's CUDA builds of the same version. The Makefile knows it.
    index = os.environ.get("TORCH_CPU_INDEX")
    extra = ["--extra-index-url", index, "--retries", "1"] if index else []
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", *extra, "--requirement", pins]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise Unavailable(f"{pins.name} cannot be installed: {run.stderr.strip().splitlines()[-3:]}")


def _make_torchvision_importable(folder: Path) -> None:
    """PyPI's torchvision registers CUDA operators on import, which CPU torch lacks; no engine here uses them."""
    for file in folder.glob("lib/*/site-packages/torchvision/__init__.py"):
        unneeded = ("_autograd_registrations", "_meta_registrations")
        lines = file.read_text().splitlines(keepends=True)
        file.write_text("".join(line for line in lines if line.strip(" ,\n") not in unneeded))
