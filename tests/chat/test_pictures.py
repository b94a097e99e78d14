"""open_picture: every kind of upload becomes an upright RGB picture, or a message that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chat.errors import ChatError
from chat.pictures import MAX_PICTURE_BYTES, open_picture


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    sideways = Image.new("RGB", (40, 20), "white")
    sideways.paste("red", (0, 0, 20, 20))  # red on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise: red on top
    sideways.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    picture = open_picture(tmp_path / "photo.jpg")
    assert picture.size == (20, 40)
    assert picture.getpixel((10, 5))[1] < 80
    assert picture.getpixel((10, 35))[1] > 200


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    picture.paste((0, 0, 0, 255), (0, 0, 4, 8))
    picture = picture.convert(mode)
    picture.save(tmp_path / "logo.png", **({"transparency": picture.getpixel((7, 0))} if mode == "P" else {}))
    opened = open_picture(tmp_path / "logo.png")
    assert opened.mode == "RGB"
    assert opened.getpixel((0, 0)) == (0, 0, 0)
    assert opened.getpixel((7, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_shades(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 256 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "scan.png")
    assert np.array(open_picture(tmp_path / "scan.png"))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
def test_common_formats_are_read(tmp_path: Path, extension: str) -> None:
    Image.new("RGB", (16, 16), "blue").save(tmp_path / f"picture.{extension}")
    red, _, blue = open_picture(tmp_path / f"picture.{extension}").getpixel((8, 8))
    assert red < 20
    assert blue > 235


def test_a_text_named_png_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fake.png").write_text("hello")
    with pytest.raises(ChatError, match=r"fake\.png is not a picture"):
        open_picture(tmp_path / "fake.png")


def test_postscript_is_refused_whatever_its_name(tmp_path: Path) -> None:
    """Pillow would start Ghostscript for it."""
    Image.new("RGB", (16, 16)).save(tmp_path / "drawing.eps")
    (tmp_path / "drawing.eps").rename(tmp_path / "drawing.png")
    with pytest.raises(ChatError, match="not a picture"):
        open_picture(tmp_path / "drawing.png")


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "bmp", "tiff"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, extension: str, kept: float) -> None:
    path = tmp_path / f"cut.{extension}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(ChatError, match=rf"cut\.{extension} is (damaged or cut short|not a picture)"):
        open_picture(path)


@pytest.mark.parametrize(("side", "message"), [(7_200, "megapixels"), (20_000, "far too large")])
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int, message: str) -> None:
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 2**20
    with pytest.raises(ChatError, match=message):
        open_picture(tmp_path / "bomb.png")


def test_a_file_of_too_many_bytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(MAX_PICTURE_BYTES + 1)
    with pytest.raises(ChatError, match="at most 20 MB"):
        open_picture(tmp_path / "big.png")
