"""Colors by name, and drawings made over into other art styles.

* `colors_of(sprite)`: the one or two colors that a drawing has, by name.
* `restyle(rng, sprite)`: the same drawing as another hand might have drawn it: flat, inked, shaded, coarse.

A model that learns one look of a turtle per pack of art learns the pack. Mixing styles takes that away from it.
"""

import functools

import numpy as np
from PIL import Image, ImageFilter

COLORS = {
    "red": (220, 30, 30),
    "green": (30, 150, 40),
    "blue": (35, 60, 220),
    "yellow": (240, 215, 30),
    "orange": (245, 135, 15),
    "purple": (130, 40, 165),
    "pink": (250, 150, 190),
    "brown": (125, 70, 30),
    "black": (12, 12, 12),
    "white": (250, 250, 250),
    "gray": (130, 130, 130),
    "teal": (0, 130, 130),
}
_NAMES = list(COLORS)
_NO_NAME = len(_NAMES)  # cream, skin and the like
_HUES = ((10, "red"), (42, "orange"), (68, "yellow"), (160, "green"), (195, "teal"), (258, "blue"), (292, "purple"),
         (340, "pink"), (360, "red"))  # degrees up to which a hue has the name  # fmt: skip


@functools.cache
def _names_of_rgb() -> np.ndarray:
    """Index of the name of every color of five bits a channel: uint8 [32768]."""
    red, green, blue = (v.astype(np.float32) / 31 for v in np.mgrid[0:32, 0:32, 0:32])
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    spread = np.maximum(high - low, 1e-6)
    hue = np.select(
        [high == red, high == green],
        [(green - blue) / spread % 6, (blue - red) / spread + 2],
        (red - green) / spread + 4,
    )
    hue, strength = hue * 60, spread / np.maximum(high, 1e-6)
    names = np.full(hue.shape, _NO_NAME, np.uint8)
    start = 0
    for stop, name in _HUES:
        names[(hue >= start) & (hue < stop + (stop == 360))] = _NAMES.index(name)
        start = stop
    warm, ruddy = (hue < 46) & (hue >= 8), (hue < 16) | (hue > 330)
    names[warm & (high < 0.68)] = _NAMES.index("brown")
    names[warm & (high >= 0.68) & (strength < 0.38)] = _NO_NAME
    names[ruddy & (strength < 0.55) & (high > 0.7)] = _NAMES.index("pink")
    dull = strength < 0.16
    names[dull] = np.where(high[dull] > 0.84, _NAMES.index("white"), _NAMES.index("gray"))
    names[(high < 0.2) | (dull & (high < 0.27))] = _NAMES.index("black")
    return names.reshape(-1)


def colors_of(sprite: Image.Image) -> tuple[str, ...]:
    """Names the color of a drawing, or its two colors, the larger part first.

    Args:
        sprite: RGBA.

    Returns:
        One or two names of `COLORS`; none when it has more, or shades that have no name. Dark lines do not count unless
        they are the greater part of it.
    """
    pixels = np.asarray(sprite)
    solid = pixels[pixels[..., 3] > 128].astype(np.int32)[:, :3] >> 3
    names = _names_of_rgb()[solid[:, 0] << 10 | solid[:, 1] << 5 | solid[:, 2]]
    counts = np.bincount(names, minlength=_NO_NAME + 1)
    black = _NAMES.index("black")
    if counts[black] < 0.55 * len(names):
        counts[black] = 0
    total = max(int(counts.sum()), 1)
    first, second = np.argsort(-counts[:_NO_NAME], kind="stable")[:2]
    if counts[first] >= 0.6 * total:
        return (_NAMES[first],)
    if counts[first] + counts[second] >= 0.75 * total and counts[second] >= 0.25 * total:
        return _NAMES[first], _NAMES[second]
    return ()


def _lines(rgb: Image.Image, strength: float) -> np.ndarray:
    """How dark a line lies on each pixel where colors meet, 0..1 [H, W, 1]."""
    edges = np.asarray(rgb.convert("L").filter(ImageFilter.FIND_EDGES), dtype=np.float32)
    return np.minimum(edges * (strength / 255), 1)[..., None]


def _flat(rng: np.random.Generator, rgb: Image.Image) -> Image.Image:
    """Few colors, each of one shade."""
    return rgb.quantize(int(rng.integers(3, 8)), Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).convert("RGB")


def _shaded(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Light from one side."""
    height, width = pixels.shape[:2]
    lean = rng.uniform(-1, 1, 2).astype(np.float32)
    slope = (
        np.linspace(-1, 1, height, dtype=np.float32)[:, None] * lean[0]
        + np.linspace(-1, 1, width, dtype=np.float32) * lean[1]
    )
    return pixels + slope[..., None] * np.float32(rng.uniform(20, 70))


def _outlined(rng: np.random.Generator, sprite: Image.Image) -> Image.Image:
    """A line around the whole, as stickers and line art have it."""
    wide = sprite.getchannel("A").filter(ImageFilter.MaxFilter(5 if sprite.width >= 40 and rng.random() < 0.4 else 3))
    choice = rng.random()
    color = (15, 15, 15) if choice < 0.65 else (255, 255, 255) if choice < 0.85 else tuple(rng.integers(0, 256, 3))
    line = Image.new("RGBA", sprite.size, (*(int(v) for v in color), 0))
    line.putalpha(wide)
    line.alpha_composite(sprite)
    return line


def restyle(rng: np.random.Generator, sprite: Image.Image) -> Image.Image:
    """Makes a drawing over into another style; what it shows stays.

    Args:
        rng: source of chance.
        sprite: RGBA.

    Returns:
        RGBA of the same size.
    """
    alpha, rgb = sprite.getchannel("A"), sprite.convert("RGB")
    if rng.random() < 0.12:  # coarse pixels
        side = max(12, int(sprite.width * rng.uniform(0.4, 0.7)))
        small = sprite.resize((side, max(12, side * sprite.height // sprite.width)), Image.Resampling.BOX)
        sprite = small.resize(sprite.size, Image.Resampling.NEAREST)
        alpha, rgb = sprite.getchannel("A"), sprite.convert("RGB")
    look = rng.random()
    bold = min(1.0, sprite.width / 44)  # lines on a small drawing would cover it
    if look < 0.55:
        rgb = _flat(rng, rgb)
    pixels = np.asarray(rgb, dtype=np.float32)
    if rng.random() < 0.35:  # paler or stronger colors, and now and then others
        gray = pixels.mean(-1, keepdims=True)
        pixels = gray + (pixels - gray) * np.float32(rng.uniform(0.4, 1.8)) + np.float32(rng.uniform(-30, 45))
        if rng.random() < 0.12:
            pixels = pixels[..., rng.permutation(3)]
    if look < 0.4:  # dark lines between flat colors
        pixels = pixels * (1 - _lines(rgb, bold * rng.uniform(2, 6)))
    elif look < 0.62:
        pixels = _shaded(rng, pixels)
    elif look < 0.74:  # a drawing with a pen: lines on paper
        paper = rng.integers(200, 256, 3).astype(np.float32)
        pixels = paper * (1 - _lines(rgb, bold * rng.uniform(3, 7)))
    elif look < 0.84:  # grain
        pixels = pixels + rng.normal(0, rng.uniform(8, 30), (*pixels.shape[:2], 1)).astype(np.float32)
    out = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    out.putalpha(alpha)
    pen = 0.62 <= look < 0.74
    return _outlined(rng, out) if pen or rng.random() < (0.75 if look < 0.4 else 0.25) else out
