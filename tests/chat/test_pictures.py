"""read_picture: every kind of upload becomes an upright RGB picture, or a message that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chat import pictures
from chat.errors import PictureError
from chat.pictures import KEPT_PIXELS, MAX_PICTURE_BYTES, PREVIEW_SIDE, preview_of, read_picture
from tests.chat.helpers.histories import png


def open_picture(path: Path) -> Image.Image:
    return read_picture(path.read_bytes(), path.name)[0]


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


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "bmp", "tiff", "avif"])
def test_common_formats_are_read(tmp_path: Path, extension: str) -> None:
    Image.new("RGB", (16, 16), "blue").save(tmp_path / f"picture.{extension}")
    red, _, blue = open_picture(tmp_path / f"picture.{extension}").getpixel((8, 8))
    assert red < 20
    assert blue > 235


def test_a_text_named_png_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fake.png").write_text("hello")
    with pytest.raises(PictureError, match=r"fake\.png is not a picture"):
        open_picture(tmp_path / "fake.png")


def test_postscript_is_refused_whatever_its_name(tmp_path: Path) -> None:
    """Pillow would start Ghostscript for it."""
    Image.new("RGB", (16, 16)).save(tmp_path / "drawing.eps")
    (tmp_path / "drawing.eps").rename(tmp_path / "drawing.png")
    with pytest.raises(PictureError, match="not a picture"):
        open_picture(tmp_path / "drawing.png")


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif", "bmp", "tiff", "avif"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path: Path, extension: str, kept: float) -> None:
    path = tmp_path / f"cut.{extension}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(PictureError, match=rf"cut\.{extension} is (damaged or cut short|not a picture)"):
        open_picture(path)


@pytest.mark.parametrize(("side", "message"), [(7_200, "megapixels"), (20_000, "far too large")])
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int, message: str) -> None:
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 2**20
    with pytest.raises(PictureError, match=message):
        open_picture(tmp_path / "bomb.png")


def test_a_file_of_too_many_bytes_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "big.png").open("wb") as file:
        file.truncate(MAX_PICTURE_BYTES + 1)
    with pytest.raises(PictureError, match="at most 20 MB") as raised:
        open_picture(tmp_path / "big.png")
    assert raised.value.status == 413


def test_a_photo_of_a_phone_is_read(tmp_path: Path) -> None:
    pytest.importorskip("pi_heif")
    picture = open_picture(Path(__file__).parent / "data" / "photo.heic")
    assert picture.size == (100, 60)
    assert picture.getpixel((10, 30))[0] > 200  # red on the left
    assert picture.getpixel((90, 30))[2] > 200  # blue on the right


def test_a_photo_of_a_phone_is_refused_in_a_sentence_where_it_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FORMATS", tuple(kind for kind in pictures.FORMATS if kind != "HEIF"))
    with pytest.raises(PictureError, match=r"photo\.heic is not a picture I can read\.") as raised:
        open_picture(Path(__file__).parent / "data" / "photo.heic")
    assert raised.value.status == 415


def test_a_drawing_is_refused_in_a_sentence() -> None:
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>'
    with pytest.raises(PictureError, match=r"a\.svg is not a picture I can read\. PNG, .* work\."):
        read_picture(drawing, "a.svg")


def edges(size: tuple[int, int]) -> Image.Image:
    """White above, black below, so that a wrong place or average shows."""
    picture = Image.new("RGB", size, "white")
    picture.paste("black", (0, size[1] // 2, *size))
    return picture


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_a_large_picture_is_averaged(tmp_path: Path, extension: str) -> None:
    edges((4000, 3000)).save(tmp_path / f"large.{extension}")
    picture, size = read_picture((tmp_path / f"large.{extension}").read_bytes())
    assert size == (4000, 3000)
    assert picture.size == (2000, 1500)
    assert picture.width * picture.height <= KEPT_PIXELS
    expected = np.array(edges((4000, 3000)).reduce(2)).astype(int)
    assert np.abs(np.array(picture).astype(int) - expected).max() <= (0 if extension == "png" else 40)


def test_a_turned_picture_of_odd_size_is_averaged_whole(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    edges((3001, 2999)).save(tmp_path / "odd.png", exif=exif)
    picture, size = read_picture((tmp_path / "odd.png").read_bytes())
    assert size == (2999, 3001)
    assert picture.size == (1500, 1501)
    assert [picture.getpixel((x, 750))[0] for x in (0, 1499)] == [0, 255]


def test_what_is_kept_is_smaller_than_a_picture_in_memory() -> None:
    """Eight pictures of 49 megapixels, each 147 MB once decoded, one after the other."""
    file = png("red", (7000, 7000))
    kept = [read_picture(file)[0] for _ in range(2)]
    assert all(picture.width * picture.height * 3 < 10_000_000 for picture in kept)


def test_a_preview_is_what_every_browser_shows(tmp_path: Path) -> None:
    (tmp_path / "preview.png").write_bytes(preview_of(Image.new("RGB", (2000, 1000), "red")))
    with Image.open(tmp_path / "preview.png") as preview:
        assert preview.format == "PNG"
        assert preview.size == (PREVIEW_SIDE, PREVIEW_SIDE // 2)
