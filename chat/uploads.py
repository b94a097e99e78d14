"""The uploaded pictures on the disk: for a day, within a bound of bytes, under the SHA-256 of what was uploaded.

What is kept is the decoded picture, so that it is decoded once and no more: none of the place or camera that a file may
tell of stays. Servers of one user share the folder: what one has left behind, however it ended, another cleans away.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from chat import DAY
from chat.errors import MissingPictures, PictureError
from chat.pictures import read_picture
from chat.question import PICTURE_ID

LIMIT = 10**9  # bytes
REFUSED_KEPT = 256  # reasons for which uploads were refused


class Uploads:
    """Pictures by their ids. For several threads, and several processes.

    Args:
        folder: Where to keep them; by default a folder of the user's own among the temporary files.
        limit: Bytes that all of them may take; the oldest go first.
        clock: Seconds.

    Raises:
        OSError: The folder cannot be made, or is somebody else's.
    """

    def __init__(self, folder: Path | None = None, limit: int = LIMIT, clock: Callable[[], float] = time.time) -> None:
        self.folder = own_folder() if folder is None else folder
        self.limit = limit
        self._clock = clock
        self._decoding = threading.Lock()  # one at a time: a picture of 50 megapixels takes 200 MB
        self._refused: OrderedDict[str, PictureError] = OrderedDict()
        self._ours: set[str] = set()
        make_private(self.folder)
        self.clean()

    def add(self, data: bytes, name: str = "This file") -> tuple[str, int, int]:
        """Keeps a picture, decoded.

        Args:
            data: The file.
            name: What a message calls it.

        Returns:
            Its id, and the width and height that it had.

        Raises:
            PictureError: It is none that can be used.
        """
        number = hashlib.sha256(data).hexdigest()
        with self._decoding:
            picture, (width, height) = read_picture(data, name)
            part = self.folder / f"{number}.{os.getpid()}.part"
            try:
                picture.save(part, "PNG", compress_level=1)
                os.replace(part, self._path(number))
            finally:
                part.unlink(missing_ok=True)
            self._ours.add(number)
        self.clean()
        return number, width, height

    def add_or_remember(self, data: bytes, name: str) -> str:
        """Keeps a picture, or why it is refused, for `open` to say: a client of the API hears only answers."""
        try:
            return self.add(data, name)[0]
        except PictureError as error:
            number = hashlib.sha256(data).hexdigest()
            self._refused[number] = error
            while len(self._refused) > REFUSED_KEPT:
                self._refused.popitem(last=False)
            return number

    def check(self, ids: list[str]) -> None:
        """Checks that pictures are there.

        Raises:
            PictureError: One was refused.
            MissingPictures: Some are not.
        """
        for number in ids:
            if not self.has(number) and number in self._refused:
                raise self._refused[number]
        if missing := [number for number in dict.fromkeys(ids) if not self.has(number)]:
            raise MissingPictures(missing)

    def has(self, number: str) -> bool:
        try:
            return bool(PICTURE_ID.fullmatch(number)) and not self._is_old(self._path(number))
        except OSError:
            return False

    def open(self, number: str) -> Image.Image:
        """A picture: RGB.

        Raises:
            MissingPictures: It is not there, or no longer.
        """
        if not self.has(number):
            raise MissingPictures([number])
        try:
            with Image.open(self._path(number), formats=["PNG"]) as picture:
                return picture.convert("RGB")
        except OSError:
            raise MissingPictures([number]) from None

    def clean(self) -> None:
        """Removes what is older than a day, and the oldest of what is over the limit."""
        files = []
        for path in self._files():
            with contextlib.suppress(OSError):
                if self._is_old(path):
                    path.unlink()
                else:
                    files.append((path.stat().st_mtime, path.stat().st_size, path))
        size = sum(file[1] for file in files)
        for _, bytes_, path in sorted(files):
            if size <= self.limit:
                break
            with contextlib.suppress(OSError):
                path.unlink()
            size -= bytes_

    def close(self) -> None:
        """Removes the pictures that came through this object."""
        for number in self._ours:
            with contextlib.suppress(OSError):
                self._path(number).unlink()
        self._ours.clear()

    def _files(self) -> Iterator[Path]:
        with contextlib.suppress(OSError):
            yield from (path for path in self.folder.iterdir() if path.suffix in (".png", ".part"))

    def _path(self, number: str) -> Path:
        return self.folder / f"{number}.png"

    def _is_old(self, path: Path) -> bool:
        return path.stat().st_mtime < self._clock() - DAY


def own_folder() -> Path:
    """The folder by default: in GRADIO_TEMP_DIR, else among the temporary files, with the user's number in its name."""
    user = os.getuid() if hasattr(os, "getuid") else "user"  # Windows has a folder for each user's temporary files
    return Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()) / f"gemma3-int4-chat-{user}"


def make_private(folder: Path) -> None:
    """Makes a folder that nobody else reads.

    Raises:
        OSError: There is one of somebody else's, who could put files into it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if hasattr(os, "getuid") and (folder.is_symlink() or folder.stat().st_uid != os.getuid()):
        raise OSError(
            f"{folder}: this folder, for uploaded pictures, is not yours. Set GRADIO_TEMP_DIR to another one."
        )
    with contextlib.suppress(OSError):
        folder.chmod(0o700)
