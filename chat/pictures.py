"""An uploaded file -> a picture for the model."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image, ImageOps

from chat.errors import ChatError

MAX_PICTURES = 8  # in one chat: each is some hundred tokens of context and a run of the vision tower
MAX_PICTURE_BYTES = 20 * 2**20
MAX_PICTURE_PIXELS = 50_000_000  # 150 MB once decoded
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # others of Pillow's start outside programs


def open_picture(path: str | Path) -> Image.Image:
    """Reads an uploaded picture: upright as its EXIF orientation says, transparency on white, RGB.

    Raises:
        ChatError: Not a picture, damaged, or too large.
    """
    path = Path(path)
    megabytes = path.stat().st_size / 2**20
    if path.stat().st_size > MAX_PICTURE_BYTES:
        raise ChatError(
            f"{path.name} has {megabytes:.0f} MB. Please send at most {MAX_PICTURE_BYTES // 2**20} MB a picture."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the size check below is stricter
            picture = Image.open(path, formats=PICTURE_FORMATS)
        if picture.width * picture.height > MAX_PICTURE_PIXELS:
            raise ChatError(
                f"{path.name} has {picture.width} × {picture.height} pixels. "
                f"Please send at most {MAX_PICTURE_PIXELS // 10**6} megapixels a picture."
            )
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I;16"):
            picture = picture.point(lambda value: value / 256, "L")  # Pillow would clip 16 bits at 255
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")
    except Image.DecompressionBombError:
        raise ChatError(f"{path.name} is far too large a picture. Please scale it down first.") from None
    except Image.UnidentifiedImageError:
        raise ChatError(f"{path.name} is not a picture I can read. PNG, JPEG, WebP, GIF, BMP and TIFF work.") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise ChatError(f"{path.name} is damaged or cut short ({error}). Please send the picture again.") from error
