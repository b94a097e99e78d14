"""Makes .venv and installs a set of requirements/ into it, with uv where it is installed, else with pip.

    python requirements/install.py model | app | convert | dev

`make` calls it with the newest Python that it finds; on Windows, `py -3.13 requirements/install.py app` is all that
`make` would do. What is installed already stays, and a second set comes on top. Environment variables:

    TORCH_INDEX   where torch comes from: cpu, cuda, or the address of a package index; by default cuda where an NVIDIA
                  driver is present, else cpu
    UV            another uv; empty: pip even where uv is installed
    PYTHON        the Python asked for: a .venv of another version is then an error
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SETS = ("model", "app", "convert", "dev")
OLDEST, TOO_NEW = (3, 11), (3, 15)
PYTORCH = "https://download.pytorch.org/whl/"
CPU_INDEX, WINDOWS_CUDA_INDEX = PYTORCH + "cpu", PYTORCH + "cu130"
WINDOWS = os.name == "nt"
TORCH_VERSION = "import importlib.metadata; print(importlib.metadata.version('torch'))"
DRIVER = Path("/proc/driver/nvidia/version")


class Stop(Exception):
    """What is missing and how to get it, in one sentence."""


class Environment:
    """A virtual environment: made, mended, and filled.

    Args:
        folder: Where it is or will be.
        uv: uv's path, or None to install with pip.
        dry_run: Prints the commands instead of running them.
    """

    def __init__(self, folder: Path, uv: str | None, dry_run: bool = False) -> None:
        self.folder, self.uv, self.dry_run = folder, uv, dry_run
        self.python = folder / ("Scripts/python.exe" if WINDOWS else "bin/python")
        self.stamp = folder / "installed.json"

    def ensure(self) -> None:
        """Makes the environment, or mends what an interrupted or incomplete set-up left.

        Raises:
            Stop: It has another Python than it should, or this Python has no venv module.
        """
        if not self.folder.exists():
            self._make()
            return
        version = self.ask("import sys; print(*sys.version_info[:2], sep='.')")
        if version is None:
            print(f"{self.folder}: its Python does not start; the environment is made anew", flush=True)
            self._make("--clear")
            return
        asked = ".".join(map(str, sys.version_info[:2]))
        if not OLDEST <= tuple(map(int, version.split("."))) < TOO_NEW:
            raise Stop(f"{self.folder} has Python {version}, not 3.11 to 3.14; remove the folder, then try again")
        if os.environ.get("PYTHON") and version != asked:
            raise Stop(f"{self.folder} has Python {version}, not {asked}; remove the folder, or leave out PYTHON=")
        if not self.uv and self.ask("import pip; print(pip.__version__)") is None:
            if self.ask("import ensurepip; print('here')") is None:
                raise Stop(no_venv_module(version))
            print(f"{self.folder} has no pip; it is added", flush=True)
            self.run([str(self.python), "-m", "ensurepip", "--upgrade"])

    def _make(self, *options: str) -> None:
        if find_spec("venv") and find_spec("ensurepip"):
            print(f"{self.folder}: a new environment of Python {platform.python_version()}", flush=True)
            self.run([sys.executable, "-m", "venv", *options, str(self.folder)])
        elif self.uv:
            self.run([self.uv, "venv", "--seed", "--python", sys.executable, *options, str(self.folder)])
        else:
            raise Stop(no_venv_module(".".join(map(str, sys.version_info[:2]))))

    def ask(self, code: str) -> str | None:
        """What the environment's Python prints; None if it fails."""
        try:
            run = subprocess.run([str(self.python), "-c", code], capture_output=True, text=True, check=False)
        except OSError:
            return None
        return run.stdout.strip() if run.returncode == 0 else None

    def run(self, command: list[str]) -> None:
        """Runs a command with its output in view.

        Raises:
            Stop: It failed.
        """
        if self.dry_run:
            print(*command)
        elif subprocess.run(command, cwd=str(ROOT), check=False).returncode:
            raise Stop(f"failed: {' '.join(command)}")

    def install(self, *arguments: str) -> None:
        """Installs with uv or pip; `--index URL` among the arguments is looked at before the default index."""
        if self.uv:
            self.run([self.uv, "pip", "install", "--python", str(self.python), *arguments])
        else:
            pip = ["--extra-index-url" if word == "--index" else word for word in arguments]
            command = [str(self.python), "-m", "pip", "--disable-pip-version-check", "install", "--no-compile"]
            self.run([*command, "--timeout", "15", "--retries", "2", *pip])  # bytecode comes as modules are imported

    def installed(self) -> dict[str, str]:
        """The hash of each set's pins as installed, and under `torch` where that came from."""
        return json.loads(self.stamp.read_text("utf-8")) if self.stamp.exists() else {}

    def note(self, **installed: str) -> None:
        """Writes down what `installed` returns from now on."""
        if not self.dry_run:
            self.stamp.write_text(json.dumps(installed), "utf-8")


def no_venv_module(version: str) -> str:
    """The sentence for a Python without venv, as Debian and Ubuntu ship it."""
    return (
        f"Python {version} has no venv module: install it (Debian, Ubuntu: apt-get install python{version}-venv), "
        "or uv, then try again"
    )


def nvidia_driver() -> bool:
    """Whether an NVIDIA driver is present."""
    if DRIVER.exists():
        return True
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    run = subprocess.run([tool, "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    return run.returncode == 0 and "GPU" in run.stdout


def torch_source(system: str, asked: str) -> tuple[str | None, str]:
    """Where torch comes from.

    Args:
        system: `platform.system()`.
        asked: TORCH_INDEX: cpu, cuda, an index's address, or nothing.

    Returns:
        The index to look at before the default one, or None for that one alone; and what to tell the user.
    """
    if asked not in ("", "cpu", "cuda"):
        return asked, f"from {asked}"
    if system == "Darwin":
        return None, "macOS, with Metal"
    driver = nvidia_driver()
    build = asked or ("cuda" if driver else "cpu")
    index = {
        ("Linux", "cpu"): CPU_INDEX,
        ("Windows", "cuda"): WINDOWS_CUDA_INDEX,
    }.get((system, build))  # the default index has CUDA for Linux and a CPU build for Windows
    reason = "as TORCH_INDEX asks" if asked else "an NVIDIA driver is present" if driver else "no NVIDIA driver found"
    other = "cpu" if build == "cuda" else "cuda"
    return index, f"{build.upper()} build ({reason}); for the other: TORCH_INDEX={other}"


def install_torch(environment: Environment, pin: str) -> None:
    """Installs torch alone, from the index for this machine; its own requirements follow with the set."""
    index, words = torch_source(platform.system(), os.environ.get("TORCH_INDEX", ""))
    print(f"{pin}: {words}", flush=True)
    source, recorded = f"{pin} {index}", environment.installed().get("torch")
    if recorded == source:
        return
    version = environment.ask(TORCH_VERSION) or ""
    if recorded is None and index == CPU_INDEX and version == pin.split("==")[1] + "+cpu":  # installed by hand
        environment.note(torch=source)
        return
    one = ["--no-deps", "--force-reinstall", pin]  # the other build of the same version would do otherwise
    try:
        environment.install(*(["--index", index] if index else []), *one)
    except Stop:
        if index is None or not environment.uv:  # pip goes on by itself where an index cannot be reached
            raise
        print(f"{index} does not answer: torch from the default index", flush=True)
        environment.install(*one)
    version = environment.ask(TORCH_VERSION) or ""
    if index == CPU_INDEX and version and "+cpu" not in version:
        print(f"{index} has not answered: this torch, {version}, brings CUDA's libraries (5 GB)", flush=True)
    environment.note(torch=source)  # and no set: another build has other requirements


def install_set(environment: Environment, pins: Path) -> None:
    """Installs a file of pins, unless it stands there already."""
    text = pins.read_text("utf-8")
    torch = re.search(r"^torch==[\w.]+", text, flags=re.MULTILINE)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if torch:
        install_torch(environment, torch[0])
    if environment.installed().get(pins.stem) == digest:
        return
    environment.install("--requirement", str(pins.relative_to(ROOT)))
    environment.note(**{**environment.installed(), pins.stem: digest})


def find_uv() -> str | None:
    """uv's path, or None where it is not installed or UV is set to nothing."""
    return shutil.which(os.environ.get("UV", "uv") or os.devnull)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", help=f"{', '.join(SETS)} (everything), or a file of pins")
    parser.add_argument("--environment", type=Path, default=Path(".venv"), help="default: .venv")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    arguments = parser.parse_args()
    os.chdir(str(ROOT))
    pins = ROOT / (f"requirements/{arguments.set}.txt" if arguments.set in SETS else arguments.set)
    try:
        if not OLDEST <= sys.version_info[:2] < TOO_NEW:
            raise Stop(f"this is Python {platform.python_version()}; Python 3.11 to 3.14 is needed")
        if not pins.exists():
            raise Stop(f"{arguments.set} is neither a set ({', '.join(SETS)}) nor a file of pins")
        environment = Environment(arguments.environment, find_uv(), arguments.dry_run)
        environment.ensure()
        install_set(environment, pins)
    except Stop as stop:
        print(stop, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
