"""An uploaded file -> an upright RGB picture of a bounded size, within a bounded memory."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib

from PIL import Image, ImageOps

from chat.errors import PictureError

try:
    import pi_heif  # HEIC, as phones take it; without it these are refused

    pi_heif.register_heif_opener()
except ImportError:
    pi_heif = None

MAX_PICTURE_BYTES = 20 * 2**20
MAX_PICTURE_PIXELS = 50_000_000
KEPT_PIXELS = 4_000_000  # a picture is reduced to so many: four crops of a 4:1 one have as many as any model looks at
PREVIEW_SIDE = 1568
BAND = 2_000_000  # pixels that are converted at once
# Others of Pillow's start outside programs.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", *(("HEIF",) if pi_heif else ()))
ORIENTATION = 0x0112


def read_picture(data: bytes, name: str = "This file") -> tuple[Image.Image, tuple[int, int]]:
    """Decodes a file: upright as its EXIF orientation says, transparency on white, RGB, at most KEPT_PIXELS.

    A larger picture is averaged over squares of its pixels, band by band, so that beside it as the decoder leaves it
    there is never another whole one in memory; a JPEG's decoder reduces it itself.

    Returns:
        The picture, and the width and height it had.

    Raises:
        PictureError: Not a picture, damaged, or too large.
    """
    if len(data) > MAX_PICTURE_BYTES:
        most = MAX_PICTURE_BYTES // 2**20
        raise PictureError(f"{name} has {len(data) / 2**20:.0f} MB. Please send at most {most} MB a picture.", 413)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size check below is stricter than Pillow's
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            if picture.width * picture.height > MAX_PICTURE_PIXELS:
                raise PictureError(
                    f"{name} has {picture.width} × {picture.height} pixels. Please send at most "
                    f"{MAX_PICTURE_PIXELS // 10**6} megapixels a picture.",
                    413,
                )
            return _upright(picture)
    except Image.DecompressionBombError:
        raise PictureError(f"{name} is far too large a picture. Please scale it down first.", 413) from None
    except Image.UnidentifiedImageError:
        raise PictureError(f"{name} is not a picture I can read. {_kinds()}", 415) from None
    except (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, zlib.error) as error:
        raise PictureError(f"{name} is damaged or cut short. Please send the picture again.", 422) from error


def _kinds() -> str:
    return f"PNG, JPEG, WebP, GIF, BMP, TIFF{', HEIC' if pi_heif else ''} and AVIF work."


def _upright(picture: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
    """The picture and its size before it was reduced, both turned."""
    orientation = picture.getexif().get(ORIENTATION)
    width, height = picture.size
    factor = math.ceil(math.sqrt(width * height / KEPT_PIXELS))
    picture.draft(None, (width // factor, height // factor))  # which JPEG alone heeds
    picture.load()
    rgb = _reduced(picture, math.ceil(math.sqrt(picture.width * picture.height / KEPT_PIXELS)))
    if orientation:
        rgb.getexif()[ORIENTATION] = orientation
        rgb = ImageOps.exif_transpose(rgb)
        if orientation in (5, 6, 7, 8):
            width, height = height, width
    rgb.info.clear()
    return rgb, (width, height)


def _reduced(picture: Image.Image, factor: int) -> Image.Image:
    """RGB, each square of factor x factor pixels averaged to one."""
    result = Image.new("RGB", (math.ceil(picture.width / factor), math.ceil(picture.height / factor)))
    rows = factor * max(1, BAND // (picture.width * factor))
    for top in range(0, picture.height, rows):
        band = _flat(picture.crop((0, top, picture.width, min(top + rows, picture.height))))
        result.paste(band.reduce(factor) if factor > 1 else band, (0, top // factor))
    return result


def _flat(picture: Image.Image) -> Image.Image:
    """RGB, transparency on white."""
    if picture.mode.startswith("I;16"):
        picture = picture.point(lambda value: value / 256, "L")  # Pillow would clip 16 bits at 255
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def preview_of(picture: Image.Image) -> bytes:
    """A picture as every browser shows it: PNG, PREVIEW_SIDE pixels at most each way."""
    picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()
