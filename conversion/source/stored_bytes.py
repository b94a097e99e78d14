"""Stored values, read piece by piece through tensorstore, and its errors in words that say what to do."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import tensorstore as ts
import zstandard

from conversion.errors import BadInput, SourceLost

READ_BYTES = 1 << 20  # encoded bytes fetched at a time


class StoredBytes:
    """A stored value as a file, read piece by piece with one piece fetched ahead."""

    def __init__(self, store: ts.KvStore, key: str, start: int, stop: int | None):
        self._store, self._key, self._position, self._stop = store, key, start, stop
        self._piece = memoryview(b"")
        self._ahead = self._fetch()

    def read(self, size: int) -> bytes:
        """The next piece as it comes, whatever size is asked for; empty at the end."""
        return self._arrive() if self._ahead is not None else b""

    def readinto(self, target: memoryview) -> int:
        if not self._piece:
            self._piece = memoryview(self.read(READ_BYTES))
        count = min(len(target), len(self._piece))
        target[:count], self._piece = self._piece[:count], self._piece[count:]
        return count

    def _fetch(self) -> ts.Future | None:
        end = self._position + READ_BYTES
        if self._stop is not None:
            end = min(end, self._stop)
        if end == self._position:
            return None
        return self._store.read(self._key, byte_range=slice(self._position, end))

    def _arrive(self) -> bytes:
        try:
            piece = self._ahead.result().value
        except ValueError as error:
            if "OUT_OF_RANGE" not in str(error) or self._stop is not None:
                raise
            # A whole piece reaches beyond the end of the value, so this is the last one.
            piece, self._stop = self._store.read(self._key, byte_range=slice(self._position, None)).result().value, -1
        if not piece and not last_byte(self._store, self._key).result().value:
            raise ValueError(f"NOT_FOUND: the data of {self._key}")
        self._position += len(piece)
        self._ahead = None if self._stop == -1 else self._fetch()
        return piece


def last_byte(store: ts.KvStore, key: str) -> ts.Future:
    """The last byte of a stored value; empty if the file that holds it is gone, which OCDBT does not call an error."""
    return store.read(key, byte_range=slice(-1, None))


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turns what tensorstore and zstandard raise into errors that say what to do."""
    try:
        yield
    except zstandard.ZstdError as error:
        raise BadInput(f"{what}: its compressed data is damaged ({error}); download the checkpoint again") from error
    except ValueError as error:
        if refused(error) or any(code in str(error) for code in ("NOT_FOUND", "OUT_OF_RANGE", "UNAVAILABLE")):
            raise SourceLost(f"{what}: cannot be read: {reason_of(error)}; is the file still there?") from error
        raise BadInput(f"{what}: damaged: {reason_of(error)}; download the checkpoint again") from error
    except OSError as error:
        raise SourceLost(f"{what}: cannot be read: {error}") from error


def refused(error: Exception) -> re.Match | None:
    """The number of the operating system's error if it refused to read; bytes that were read and make no sense lack it.

    Whatever tensorstore calls it: EIO is UNKNOWN, a time-out DEADLINE_EXCEEDED, a lack of memory RESOURCE_EXHAUSTED.
    """
    return re.search(r"os_error_code='(\d+)'", str(error))


def reason_of(error: Exception) -> str:
    """The operating system's words, or the first clause of tensorstore's message, without its source locations."""
    if number := refused(error):
        return os.strerror(int(number[1]))
    return str(error).split(" [", 1)[0].split("\n", 1)[0]
