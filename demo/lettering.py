"""Draws numbers and words, in matplotlib's own fonts."""

import functools
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .render import COLORS, SIZE, Box, disturb, pick, shade

_FONT_FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold",
         "DejaVuSans-Oblique", "STIXGeneral", "STIXGeneralBol")  # fmt: skip
SMALLEST = 0.19  # size of a small font, as a share of the picture; its capitals have three quarters of that
OVERSAMPLE = 3  # half of the small letters are drawn this much larger, then shrunk, as the processor does


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_FONT_FOLDER / f"{name}.ttf"), size)


def _ink_and_ground(rng: np.random.Generator) -> tuple[str, str]:
    """Names of two colors that can be told apart."""
    while True:
        ink, ground = pick(rng, list(COLORS)), pick(rng, list(COLORS))
        if rng.random() < 0.4:
            ink, ground = ("black", "white") if rng.random() < 0.7 else ("white", "black")
        if np.abs(np.array(COLORS[ink]) - COLORS[ground]).sum() > 250:
            return ink, ground


def draw_quarter_text(rng: np.random.Generator, text: str):
    """A number or a word in a font of a quarter of the picture's height, 256 pixels square. Facts as `draw_text`'s."""
    ink, ground = _ink_and_ground(rng)
    side = 4 * SIZE
    font = _font(pick(rng, FONTS), side // 4)
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("RGB", (side, side), shade(rng, ground))
    x = rng.integers(4, max(5, side - (right - left))) - left
    y = rng.integers(4, max(5, side - (bottom - top))) - top
    ImageDraw.Draw(picture).text((int(x), int(y)), text, font=font, fill=shade(rng, ink))
    return picture, {"text": text, "ink": ink, "background": ground, "boxes": []}


def draw_text(rng: np.random.Generator, text: str, small: float = 0.0):
    """A number or a word. Facts: text, ink (color's name), background, boxes.

    Args:
        rng: source of chance.
        text: at most seven characters.
        small: how often the letters may be as small as a fifth of the picture, instead of as large as fit.
    """
    ink, ground = _ink_and_ground(rng)
    name = pick(rng, FONTS)
    box = _font(name, 100).getbbox(text)
    fits = 100 * min(60 / (box[2] - box[0]), 44 / (box[3] - box[1]))
    size, k = fits * rng.uniform(0.8, 1.0), 1
    if small and rng.random() < small:
        size, k = min(fits, SIZE * rng.uniform(SMALLEST, 0.45)), OVERSAMPLE if rng.random() < 0.5 else 1
    font = _font(name, int(size * k))
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("RGB", (SIZE * k, SIZE * k), shade(rng, ground))
    x = rng.integers(k, max(k + 1, SIZE * k - (right - left))) - left
    y = rng.integers(k, max(k + 1, SIZE * k - (bottom - top))) - top
    ImageDraw.Draw(picture).text((int(x), int(y)), text, font=font, fill=shade(rng, ink))
    ends = [float(x) + font.getlength(text[:n]) for n in range(len(text) + 1)]
    boxes = [
        Box(letter.upper(), ink, start / k, (float(y) + top) / k, end / k, (float(y) + bottom) / k)
        for letter, start, end in zip(text, ends, ends[1:], strict=False)
    ]
    if rng.random() < 0.25:
        picture = picture.rotate(rng.uniform(-6, 6), Image.Resampling.BILINEAR, fillcolor=picture.getpixel((0, 0)))
    if k > 1:
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return disturb(rng, picture, 0.25), {"text": text, "ink": ink, "background": ground, "boxes": boxes}
