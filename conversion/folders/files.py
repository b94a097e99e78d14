"""What operating systems and file systems differ in: positioned reads and writes, syncing, renaming, text.

Windows has no `pread` and cannot open a folder; network and FAT file systems refuse to sync one, and some know no
rename over a file that is there.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from pathlib import Path

import numpy as np

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})
NO_FOLDER_SYNC = UNSUPPORTED | {errno.EPERM, errno.EACCES, errno.EBADF, errno.EISDIR}
NO_REPLACE = UNSUPPORTED | {errno.EEXIST, errno.EPERM, errno.EACCES}
WRITE_BYTES = 1 << 30  # at a time: macOS refuses 2 GiB and more
BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends

_position = threading.Lock()  # of a file, where reading and writing move it


def open_file(path: Path, flags: int = 0) -> int:
    """A file descriptor to read and write a file, made if it is missing, with the permissions that the umask leaves."""
    return os.open(path, os.O_RDWR | os.O_CREAT | BINARY | flags, 0o666)


def read_at(file: int, count: int, offset: int) -> bytes:
    """Up to `count` bytes of a file from an offset on; none at its end."""
    if hasattr(os, "pread"):
        return os.pread(file, count, offset)
    with _position:
        os.lseek(file, offset, os.SEEK_SET)
        return os.read(file, count)


def write_at(file: int, offset: int, values: np.ndarray | bytes) -> None:
    """Writes an array or bytes into a file, however many calls it takes."""
    if isinstance(values, np.ndarray):
        values = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    buffer = memoryview(values)
    while buffer:
        count = _write_some(file, offset, buffer[:WRITE_BYTES])
        buffer, offset = buffer[count:], offset + count


def _write_some(file: int, offset: int, buffer: memoryview) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(file, buffer, offset)
    with _position:
        os.lseek(file, offset, os.SEEK_SET)
        return os.write(file, buffer)


def write_text(path: Path, text: str) -> None:
    """Writes a text file with the same bytes on every system."""
    path.write_text(text, encoding="utf-8", newline="\n")


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under another name, syncs it and renames it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        sync(file.fileno())
    replace(temporary, path)
    sync_names(path.parent)


def replace(source: Path, target: Path) -> None:
    """Renames a file, over another one if there is one.

    Where the file system knows no such rename, the other one is removed first. A stop between the two leaves the
    source, complete, under its own name.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in NO_REPLACE or not target.is_file():
            raise
        os.unlink(target)
        os.rename(source, target)


def sync(file: int) -> None:
    """Makes the bytes of a file survive a power cut, where the file system offers that."""
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def sync_folder(path: Path) -> None:
    """Makes names in a folder, and the files they name, survive a power cut."""
    for child in path.iterdir():
        if child.is_file():
            file = os.open(child, (os.O_RDWR if sys.platform == "win32" else os.O_RDONLY) | BINARY)
            try:
                sync(file)
            finally:
                os.close(file)
    sync_names(path)


def sync_names(folder: Path) -> None:
    """Makes the names in a folder survive a power cut, where the system offers that."""
    try:
        file = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
        return
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise
    finally:
        os.close(file)


def disk_bytes(path: Path) -> int:
    """Disk space that a file takes; its length where the system does not tell."""
    status = path.stat()
    return status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
