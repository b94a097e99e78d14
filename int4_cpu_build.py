# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The CPU kernels compiled on the user's machine, once, and kept in a cache.

What this file offers:
    build           the compiled kernels, as a ctypes.CDLL
    Unavailable     why they cannot be had
    cache_folder    a folder for what is made once on this machine

The cache is `$XDG_CACHE_HOME/gemma3-int4/kernels`, or `~/.cache/gemma3-int4/kernels`: a folder that only the user may
write. Compiling takes about two seconds. Where nothing can be kept, every start compiles anew, in a temporary folder,
and one warning says why.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers.utils import logging

from .int4_cpu_hardware import INSTRUCTION_SETS, cpu
from .int4_cpu_source import SOURCE

logger = logging.get_logger(__name__)

FLAGS = ("-O3", "-std=gnu11", "-shared", "-fPIC")
ARM_EXTENSIONS = {"asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16"}  # features, as compilers spell them


class Unavailable(Exception):
    """Why the kernels cannot be had on this machine."""


class _Refused(Unavailable):
    """What a compiler says that ends with an error."""


def compiler_flags(name: str | None = None) -> list[str]:
    """What to compile SOURCE with for an instruction set, or for the best that this CPU has.

    Raises:
        Unavailable: The kernels know no instruction set of this CPU.
    """
    name, features = name or cpu().instruction_set, cpu().features
    if name is None:
        missing = [feature for feature in INSTRUCTION_SETS["AVX2"] if feature not in features]
        raise Unavailable(f"this CPU lacks {', '.join(missing)}" if features else "they are for Linux on x86 and Arm")
    if "asimd" in INSTRUCTION_SETS[name]:
        extensions = [ARM_EXTENSIONS[feature] for feature in INSTRUCTION_SETS[name] if feature in ARM_EXTENSIONS]
        return [*FLAGS, "-march=" + "+".join(["armv8.2-a" if extensions else "armv8-a", *extensions])]
    return [*FLAGS, f"-D{name}", *(f"-m{feature.replace('_', '')}" for feature in INSTRUCTION_SETS[name])]


def _check_choice() -> None:
    """Refuses an instruction set that this CPU has not all of: the first missing instruction would end the process.

    Raises:
        Unavailable: It lacks some.
    """
    name = cpu().instruction_set
    missing = [feature for feature in INSTRUCTION_SETS.get(name, ()) if feature not in cpu().features]
    if missing:
        raise Unavailable(f"{name} was chosen, and this CPU lacks {', '.join(missing)}")


def build() -> ctypes.CDLL:
    """The kernels from the cache, where they are there and whole; else compiled, and kept if that is possible.

    Raises:
        Unavailable: No compiler, or one that fails; or the CPU has no instruction set that the kernels know.
        OSError: What was compiled cannot be loaded, or there is not even a temporary folder.
        subprocess.SubprocessError: The compiler does not answer.
    """
    best = compiler_flags()
    compiler = _compiler()
    _check_choice()
    _show_openmp()
    version = _run([*compiler, "--version"], timeout=60).stdout
    try:
        return _built([*compiler, *best], version)
    except _Refused as error:
        for name in _lesser_sets():
            with contextlib.suppress(_Refused):
                library = _built([*compiler, *compiler_flags(name)], version)
                logger.warning(
                    f"int4 CPU kernels are compiled for {name}, less than this CPU has, and slower: for "
                    f"{cpu().instruction_set} {error}"
                )
                return library
        raise


def _lesser_sets() -> list[str]:
    """What else the CPU has: a compiler may be older than the best of it."""
    names = list(INSTRUCTION_SETS)
    lesser = names[names.index(cpu().instruction_set) + 1 :]
    return [name for name in lesser if cpu().features.issuperset(INSTRUCTION_SETS[name])]


def _built(command: list[str], version: str) -> ctypes.CDLL:
    """What a command compiles, from the cache or into it. `version` is what the compiler says of itself."""
    key = _key(command, version)
    try:
        folder = cache_folder("kernels")
        if (library := _found(folder, key)) is not None:
            return library
    except (OSError, RuntimeError) as error:
        folder, why_not_kept = None, error
    with _compiled(command) as made:
        if folder is not None:
            try:
                return ctypes.CDLL(str(_kept(made, folder, key)))
            except OSError as error:
                why_not_kept = error
        library = ctypes.CDLL(str(made))  # which stays loaded when its file is gone
    logger.warning(
        f"int4 CPU kernels are compiled anew at every start (2 s), because they cannot be kept: {why_not_kept}; "
        "XDG_CACHE_HOME names another place"
    )
    return library


def _show_openmp() -> None:
    """Lets libraries that are loaded later find the entry points of torch's own OpenMP runtime.

    On x86 torch loads it so; wheels for Arm keep it to themselves.
    """
    if hasattr(ctypes.CDLL(None), "GOMP_parallel"):
        return
    places = Path(torch.__file__).parent
    runtimes = [path for folder in (places / "lib", places.parent / "torch.libs") for path in folder.glob("libgomp*")]
    for path in runtimes or ["libgomp.so.1"]:
        with contextlib.suppress(OSError):  # then loading the kernels says what is missing
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)


def _compiler() -> list[str]:
    """The words of CC, or cc or gcc."""
    named = os.environ.get("CC", "")
    try:
        words = shlex.split(named)
    except ValueError as error:
        raise Unavailable(f"the environment variable CC is no command ({error}): {named}") from error
    words = words or [shutil.which("cc") or shutil.which("gcc")]
    if words[0] is None:
        raise Unavailable("no C compiler (cc or gcc; the environment variable CC names another)")
    return words


def _run(command: list[str], timeout: int, source: str = "") -> subprocess.CompletedProcess:
    try:
        run = subprocess.run(
            command, input=source, capture_output=True, encoding="utf-8", errors="replace", timeout=timeout
        )
    except OSError as error:
        raise Unavailable(f"the C compiler does not run: {error}") from error
    if run.returncode:
        raise _Refused(f"{shlex.join(command)} failed ({run.returncode}): {run.stderr.strip()[-500:]}")
    return run


def _key(command: list[str], version: str) -> str:
    """A hash of all that decides what the library is, so that nothing but this key need be known of what is found.

    The compiler's version, because another one may mend or break something; what the CPU has, because a cache in a
    shared home serves several machines, and CC may hold `-march=native`.
    """
    made_from = "\0".join([SOURCE, *command, version, *sorted(cpu().features)])
    return hashlib.sha256(made_from.encode()).hexdigest()[:32]


@contextlib.contextmanager
def _compiled(command: list[str]) -> Iterator[Path]:
    """The library, in a folder that only the user may enter and that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="gemma3-int4-", ignore_cleanup_errors=True) as folder:
        made = Path(folder) / "kernel.so"
        _run([*command, "-x", "c", "-", "-o", str(made)], timeout=300, source=SOURCE)
        if not made.is_file():
            raise Unavailable(f"{shlex.join(command)} ended well and made no library")
        yield made


def cache_folder(name: str) -> Path:
    """A folder of the user's cache, made if missing.

    Raises:
        OSError: It cannot be made, or is no place to trust: another user may write to it.
        RuntimeError: There is no home to have it in.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():  # as the XDG specification has it
        root = Path.home() / ".cache"
    folder = root / "gemma3-int4" / name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_mine_alone(folder.stat()):
        raise PermissionError(f"{folder} belongs to, or can be written by, someone else")
    return folder


def _is_mine_alone(status: os.stat_result) -> bool:
    if os.name == "nt":  # where a home has no such bits, and is the user's
        return True
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _found(folder: Path, key: str) -> ctypes.CDLL | None:
    """The library of the cache; None where there is none that is whole and that this machine can load."""
    for path in sorted(folder.glob(f"kernel-{key}-*.so")):
        with contextlib.suppress(OSError):
            if _is_whole(path):
                return ctypes.CDLL(str(path))
    return None


def _is_whole(path: Path) -> bool:
    """Whether a file is the user's and has the bytes that its name says.

    To be asked before loading: a library cut short does not fail to load, it kills the process when what is missing is
    touched (SIGBUS).
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or not _is_mine_alone(status):
        return False
    return path.stem.rpartition("-")[2] == _digest(path.read_bytes())


def _digest(library: bytes) -> str:
    return hashlib.sha256(library).hexdigest()[:32]


def _kept(made: Path, folder: Path, key: str) -> Path:
    """The library copied into the cache: complete, on the disk, and only then under its name.

    The name has a hash of the bytes. So two processes that build at once do each other no harm: what one finds under
    its name is what it would have written.

    Raises:
        OSError: It cannot be kept there.
    """
    library = made.read_bytes()
    path = folder / f"kernel-{key}-{_digest(library)}.so"
    if path.exists() and _is_whole(path):
        return path
    scratch = folder / f".{secrets.token_hex(8)}"
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755), "wb") as file:
            file.write(library)
            file.flush()
            _sync(file.fileno())
        try:
            scratch.replace(path)
        except OSError:  # a file system that renames over nothing
            path.unlink()
            scratch.rename(path)
    finally:
        scratch.unlink(missing_ok=True)
    if not _is_whole(path):
        raise OSError(f"{path} does not read back as it was written")
    return path


def _sync(descriptor: int) -> None:
    """Puts a file on the disk, where the file system can be asked to (some network ones cannot)."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
