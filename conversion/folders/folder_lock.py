"""A folder that one process at a time writes in.

The lock is the system's own, `flock` or on Windows `msvcrt.locking`, on `FOLDER/.lock`: it dies with its process, so
what a killed one leaves stops nobody. It lies inside the folder, so that every spelling, link and mount of the folder
meets it.

Some network file systems know no such locks. There a second file stands for it, `.lock-owner`, made where none is; it
counts as left behind only if its process, on this very machine, is surely gone.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import time
import uuid
from contextlib import suppress
from pathlib import Path

from conversion.errors import BadInput
from conversion.folders import files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCK = ".lock"
OWNER = ".lock-owner"
TAKEOVER = ".lock-takeover"  # exists while an owner that is gone is replaced
NAMES = frozenset({LOCK, OWNER, TAKEOVER})
NO_LOCKS = files.UNSUPPORTED | {errno.ENOLCK}
LOCKED_BYTE = 1 << 30  # on Windows, where a locked byte cannot be read: beyond what the file says
TRIES, PAUSE = 6, 0.05  # whoever only looks holds the lock for a moment


class Unwritable(BadInput):
    """A folder in which nothing can be written, a lock no more than anything else."""


class FolderLock:
    """The right to write in a folder, as a context manager; the folder is made if it is missing.

    Left, the folder holds no trace of the lock, and what was made of it is removed if nothing was put there.

    Args:
        folder: the folder.
        work: what is done in it, for messages.

    Attributes:
        note: what the user should know about this lock, None if nothing.
    """

    def __init__(self, folder: Path, work: str = "conversion"):
        self.folder, self.work = folder, work
        self.note: str | None = None
        self._made: list[Path] = []
        self._file: int | None = None

    def __enter__(self) -> FolderLock:
        """Takes the lock.

        Raises:
            BadInput: another process has it.
            Unwritable: the folder cannot be made or written.
        """
        try:
            self._acquire()
        except OSError as error:
            self._remove_made()
            raise Unwritable(
                f"{self.folder}: cannot be made or written ({error}); choose a folder elsewhere"
            ) from error
        except BaseException:
            self._remove_made()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._remove(OWNER)
            if os.name != "nt":  # Windows removes no open file
                self._remove(LOCK)
        finally:
            os.close(self._file)
            self._file = None
        if os.name == "nt":
            self._remove(LOCK)
        self._remove_made()

    def check(self) -> None:
        """Raises BadInput if another process has the lock; writes nothing."""
        for _ in range(TRIES):
            if self._is_free():
                return
            time.sleep(PAUSE)
        raise self._busy()

    def _is_free(self) -> bool:
        owner = self.folder / OWNER
        if owner.exists() and not _surely_gone(_read(owner)):
            return False
        try:
            file = os.open(self.folder / LOCK, os.O_RDONLY | files.BINARY)
        except OSError:  # not there, or nobody's to read
            return True
        try:
            return _lock(file, shared=True) is not False
        finally:
            os.close(file)

    def _acquire(self) -> None:
        for left in reversed(range(TRIES)):
            self._make_folder()
            try:
                if self._try():
                    return
            except FileNotFoundError:  # who had it removed the empty folder
                if not left:
                    raise
            time.sleep(PAUSE)
        raise self._busy()

    def _try(self) -> bool:
        me = _myself()
        file = files.open_file(self.folder / LOCK)
        try:
            locked = _lock(file)
            if locked is None and self._claim(me):
                self.note = (
                    f"{self.folder}: this file system knows no locks that end with their process; {OWNER} stands for "
                    f"one, and if this machine stops meanwhile it is yours to remove"
                )
                locked = True
            elif locked:
                os.ftruncate(file, 0)
                files.write_at(file, 0, json.dumps(me).encode())
                # Whoever had the lock may have removed the file that is open here.
                locked = _read(self.folder / LOCK) == me and not self._claimed()
            if locked:
                self._file = file
            return bool(locked)
        finally:
            if self._file is None:
                os.close(file)

    def _claimed(self) -> bool:
        """Whether somebody who sees no locks here has the folder."""
        owner = self.folder / OWNER
        return owner.exists() and not _surely_gone(_read(owner))

    def _claim(self, me: dict) -> bool:
        """Makes the file that stands for a lock, unless there is one of a process that may live."""
        with suppress(FileExistsError):
            self._write_owner(me)
            return True
        if not _surely_gone(_read(self.folder / OWNER)):
            return False
        try:
            os.close(files.open_file(self.folder / TAKEOVER, os.O_EXCL))
        except FileExistsError:
            return False
        try:  # looked at again: another one may have been faster
            if not _surely_gone(_read(self.folder / OWNER)):
                return False
            os.unlink(self.folder / OWNER)
            self._write_owner(me)
            return True
        finally:
            self._remove(TAKEOVER)

    def _write_owner(self, me: dict) -> None:
        file = files.open_file(self.folder / OWNER, os.O_EXCL)
        try:
            files.write_at(file, 0, json.dumps(me).encode())
        finally:
            os.close(file)

    def _busy(self) -> BadInput:
        owner = _read(self.folder / OWNER)
        who = owner or _read(self.folder / LOCK)
        named = f" (process {who['process']} on {who['host']}, since {who['since']})" if who else ""
        how = f"; if it is surely gone, remove {self.folder / OWNER}" if owner or self._claimed() else ""
        return BadInput(
            f"{self.folder}: another {self.work}{named} is writing there; wait until it is done, or stop it{how}"
        )

    def _make_folder(self) -> None:
        folder = self.folder.absolute()
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            with suppress(FileExistsError):
                path.mkdir()
                self._made.append(path)

    def _remove_made(self) -> None:
        for path in reversed(self._made):
            with suppress(OSError):  # something was put there
                path.rmdir()
        self._made = []

    def _remove(self, name: str) -> None:
        with suppress(OSError):
            os.unlink(self.folder / name)


def _lock(file: int, shared: bool = False) -> bool | None:
    """Locks an open file: True if it could, False if another has it, None if the file system knows no locks."""
    try:
        if fcntl:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        else:
            os.lseek(file, LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


def _myself() -> dict:
    return {
        "process": os.getpid(),
        "host": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": _machine(),
        "started": _started(os.getpid()),
        "token": uuid.uuid4().hex,
    }


def _read(path: Path) -> dict:
    """What a holder of the lock wrote, nothing if it is just writing."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}


def _surely_gone(owner: dict) -> bool:
    """Whether a process ran on this very machine, since it was started last, and runs no more."""
    if os.name == "nt" or owner.get("machine") != _machine():  # Windows has no harmless os.kill
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs, for another user
        pass
    started = _started(owner["process"])
    return None not in (started, owner["started"]) and started != owner["started"]  # its number went to another one


def _machine() -> list[str]:
    """What process numbers are unique in: the host, since it was started, and on Linux the namespace."""
    known = [platform.node()]
    with suppress(OSError):
        known.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        known.append(os.readlink("/proc/self/ns/pid"))
    return known


def _started(process: int) -> str | None:
    """When a process was started, in Linux's own units; None where the system does not tell."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
