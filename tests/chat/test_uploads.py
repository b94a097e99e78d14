"""Uploads: pictures stay for a day and no longer, within a limit, in a folder of the user's own."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from pathlib import Path

import pytest
from PIL import Image

from chat import DAY
from chat.errors import MissingPictures, PictureError
from chat.uploads import Uploads, make_private
from tests.chat.helpers.histories import png


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def uploads(tmp_path: Path, clock: Clock) -> Uploads:
    return Uploads(tmp_path / "uploads", clock=clock)


def files(uploads: Uploads) -> list[str]:
    return sorted(path.name for path in uploads.folder.iterdir())


def test_a_picture_is_found_by_the_hash_of_its_file(uploads: Uploads) -> None:
    file = png("red", (30, 20))
    number, width, height = uploads.add(file)
    assert number == hashlib.sha256(file).hexdigest()
    assert (width, height) == (30, 20)
    assert uploads.add(file) == (number, 30, 20)
    assert files(uploads) == [f"{number}.png"]
    assert uploads.open(number).getpixel((0, 0)) == (255, 0, 0)
    uploads.check([number])


def test_nothing_but_the_pixels_is_kept(uploads: Uploads, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera of mine"
    Image.new("RGB", (20, 20)).save(tmp_path / "photo.jpg", exif=exif, comment=b"at home")
    number, *_ = uploads.add((tmp_path / "photo.jpg").read_bytes())
    kept = (uploads.folder / f"{number}.png").read_bytes()
    assert b"camera" not in kept
    assert b"home" not in kept


@pytest.mark.parametrize("end", ["as it is", "after a restart"])
def test_a_day_means_a_day(uploads: Uploads, clock: Clock, end: str) -> None:
    number, *_ = uploads.add(png())
    (uploads.folder / f"{number}.{os.getpid()}.part").write_bytes(b"what a kill has left")
    clock.now += DAY - 60
    uploads.clean()
    assert uploads.has(number)
    clock.now += 120
    assert not uploads.has(number)
    with pytest.raises(MissingPictures):
        uploads.open(number)
    if end == "after a restart":
        Uploads(uploads.folder, clock=clock)
    else:
        uploads.clean()
    assert files(uploads) == []


def test_the_oldest_go_where_there_are_too_many(uploads: Uploads) -> None:
    numbers = []
    for age, color in ((3, "red"), (2, "green"), (1, "blue")):
        numbers.append(uploads.add(png(color))[0])
        path = uploads.folder / f"{numbers[-1]}.png"
        os.utime(path, (time.time() - age, time.time() - age))
    size = max(path.stat().st_size for path in uploads.folder.iterdir())
    uploads.limit = 2 * size
    uploads.clean()
    assert [uploads.has(number) for number in numbers] == [False, True, True]


def test_what_is_no_picture_is_not_kept_and_its_reason_is(uploads: Uploads) -> None:
    with pytest.raises(PictureError, match=r"^This file is not a picture"):
        uploads.add(b"no picture")
    number = uploads.add_or_remember(b"no picture", "letter.png")
    with pytest.raises(PictureError, match=r"^letter\.png is not a picture"):
        uploads.check([number])
    assert files(uploads) == []


def test_what_is_missing_is_named_once(uploads: Uploads) -> None:
    number, *_ = uploads.add(png())
    with pytest.raises(MissingPictures) as raised:
        uploads.check(["0" * 64, number, "0" * 64, "../../etc/passwd"])
    assert raised.value.ids == ["0" * 64, "../../etc/passwd"]


def test_an_end_removes_the_pictures_of_this_server_alone(uploads: Uploads) -> None:
    number, *_ = uploads.add(png("red"))
    other = Uploads(uploads.folder)
    theirs, *_ = other.add(png("blue"))
    uploads.close()
    assert files(uploads) == [f"{theirs}.png"]
    assert not uploads.has(number)


@pytest.mark.skipif(os.name == "nt", reason="Windows has a folder for each user's temporary files")
def test_the_folder_is_the_users_own(uploads: Uploads, tmp_path: Path) -> None:
    assert stat.S_IMODE(uploads.folder.stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="is not yours"):
        make_private(tmp_path / "link")
