"""Draws the pictures: emoji and shapes on varied backgrounds, 64 pixels square; numbers and words: `lettering`.

Every `draw_*` function takes a `numpy.random.Generator` and returns `(picture, facts)`: a PIL RGB image of 64x64 and
what it shows; `facts["boxes"]` says where. All colors, sizes, places and distortions come from the generator, so a
seed names a picture.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from . import art, paint
from .paint import COLORS
from .sprites import load_sprites

SIZE = 64
QUICK = 40  # tries to place what is drawn for training, where time counts
OVERSAMPLE = 3  # shapes are drawn this much larger, then shrunk: smooth edges

SHAPES = ("circle", "rectangle", "triangle", "star", "cross")  # a square is a rectangle, as in easy-VQA
EASY_COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
               "black": (0, 0, 0), "gray": (128, 128, 128), "brown": (165, 42, 42), "teal": (0, 128, 128)}  # fmt: skip
PLACES = {(0, 0): "top left", (1, 0): "top", (2, 0): "top right", (0, 1): "left", (1, 1): "middle",
          (2, 1): "right", (0, 2): "bottom left", (1, 2): "bottom", (2, 2): "bottom right"}  # fmt: skip


class Box(NamedTuple):
    """Where something is in a picture, in pixels."""

    what: str  # a name of `art.THINGS` or `SHAPES`, or one character
    color: str | None  # a name of `COLORS`, None when it has no single color
    left: float
    top: float
    right: float
    bottom: float
    colors: tuple[str, ...] = ()  # of a drawing: its one or two colors, none when it has more


def pick(rng: np.random.Generator, options):
    """Returns one of the options (any sequence)."""
    return options[int(rng.integers(len(options)))]


def by_weight(weights: dict) -> Callable[[np.random.Generator], Any]:
    """Returns what picks a key of the weights, each as often as its weight says."""
    keys = list(weights)
    sums = (np.array(list(weights.values()), dtype=float) / sum(weights.values())).cumsum()
    return lambda rng: keys[min(int(np.searchsorted(sums, rng.random())), len(keys) - 1)]


def shade(rng: np.random.Generator, color: str) -> tuple[int, int, int]:
    """Returns an RGB triple near a named color."""
    return tuple(int(v) for v in np.clip(np.array(COLORS[color]) + rng.integers(-14, 15, 3), 0, 255))


def draw_background(rng: np.random.Generator, plain: float = 0.55) -> tuple[Image.Image, str | None]:
    """Returns a background and its color's name, None when it has no single color."""
    if rng.random() < plain:
        color = "white" if rng.random() < 0.25 else pick(rng, list(COLORS))
        return Image.new("RGB", (SIZE, SIZE), shade(rng, color)), color
    style = int(rng.integers(4))
    if style == 0:  # smooth gradient between random corner colors
        corners = rng.integers(0, 256, (2, 2, 3)).astype(np.uint8)
        return Image.fromarray(corners).resize((SIZE, SIZE), Image.Resampling.BILINEAR), None
    if style == 1:  # cloudy texture
        cells = int(rng.integers(3, 17))
        middle = rng.integers(30, 226, 3)
        noise = np.clip(middle + rng.normal(0, rng.uniform(8, 45), (cells, cells, 3)), 0, 255).astype(np.uint8)
        return Image.fromarray(noise).resize((SIZE, SIZE), Image.Resampling.BICUBIC), None
    first, second = (tuple(int(v) for v in rng.integers(0, 256, 3)) for _ in range(2))
    picture = Image.new("RGB", (SIZE, SIZE), first)
    draw = ImageDraw.Draw(picture)
    if style == 2:  # sky and ground
        draw.rectangle((0, int(rng.integers(24, 52)), SIZE, SIZE), fill=second)
    else:  # stripes
        step = int(rng.integers(6, 17))
        for start in range(-SIZE, 2 * SIZE, 2 * step):
            lean = int(rng.integers(2)) * SIZE // 2
            draw.polygon(
                [(start, 0), (start + step, 0), (start + step + lean, SIZE), (start + lean, SIZE)], fill=second
            )
    return picture, None


def disturb(rng: np.random.Generator, picture: Image.Image, chance: float = 0.35) -> Image.Image:
    """Blurs, adds noise, or changes brightness and contrast of a finished picture, now and then."""
    if rng.random() >= chance:
        return picture
    if rng.random() < 0.25:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.9)))
    pixels = np.asarray(picture, dtype=np.float32)
    if rng.random() < 0.7:
        pixels = pixels + rng.normal(0, rng.uniform(2, 14), pixels.shape).astype(np.float32)
    if rng.random() < 0.4:
        pixels = (pixels - 128) * rng.uniform(0.8, 1.15) + 128 + rng.uniform(-18, 18)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


# ---------------------------------------------------------------------------------------------- emoji


@functools.cache
def _pyramid() -> dict[str, dict[str, list[list[Image.Image]]]]:
    """Every sprite as PIL images of 96, 48 and 24 pixels, so that shrinking is cheap and clean."""
    return {
        style: {
            thing: [[Image.fromarray(s).resize((n, n), Image.Resampling.BOX) for n in (96, 48, 24)] for s in sprites]
            for thing, sprites in things.items()
        }
        for style, things in load_sprites().items()
    }


def warm_up() -> None:
    """Loads the sprites, so that processes forked from here on share them."""
    _pyramid()


def _ink_edges(rng: np.random.Generator, rgb: np.ndarray) -> np.ndarray:
    """Draws dark lines where colors meet, as line art has them; now and then fills the rest with one color."""
    edges = np.asarray(Image.fromarray(rgb).convert("L").filter(ImageFilter.FIND_EDGES), dtype=np.float32)
    line = np.clip(edges * (rng.uniform(2, 6) / 255), 0, 1)[..., None]
    fill = rng.integers(150, 256, 3) if rng.random() < 0.2 else rgb
    return fill * (1 - line)


def _recolor(rng: np.random.Generator, sprite: Image.Image, style: str) -> Image.Image:
    """Changes a sprite's colors: hue, saturation, contrast; sometimes gray, posterized, inked or outlined."""
    pixels = np.asarray(sprite, dtype=np.float32)
    rgb, alpha = pixels[..., :3], pixels[..., 3]
    if style in art.MONOCHROME_STYLES:
        paper = rgb[..., :1] / 255
        ink, fill = rng.integers(0, 256, (2, 3)).astype(np.float32)
        if rng.random() < 0.4:  # filled with another color; dark lines around light ones most often
            rgb = (ink * 0.4) * (1 - paper) + (255 - fill * 0.6) * paper
        else:
            rgb, alpha = np.broadcast_to(ink, rgb.shape), alpha * (1 - paper[..., 0])
    elif rng.random() < 0.7:
        saturation = 0.0 if rng.random() < 0.1 else rng.uniform(0.5, 1.5)
        gray = rgb.mean(-1, keepdims=True)
        mix = np.eye(3) + rng.normal(0, 0.10, (3, 3))
        rgb = (gray + (rgb - gray) * saturation) @ (mix / mix.sum(1, keepdims=True)).T.astype(np.float32)
        rgb = (rgb - 128) * rng.uniform(0.75, 1.25) + 128 + rng.uniform(-25, 25)
        if rng.random() < 0.15:
            levels = int(rng.integers(2, 5))
            rgb = np.round(rgb / 255 * levels) * (255 / levels)
    rgb = np.clip(rgb, 0, 255)
    if style not in art.MONOCHROME_STYLES and rng.random() < 0.25:
        rgb = _ink_edges(rng, rgb.astype(np.uint8))
    out = Image.fromarray(np.dstack([rgb, alpha]).astype(np.uint8))
    if rng.random() < 0.3 and out.width >= 20:  # an outline drawn around it, as many art styles have
        wide = out.getchannel("A").filter(ImageFilter.MaxFilter(3))
        line = Image.new("RGBA", out.size, ((0, 0, 0) if rng.random() < 0.75 else (255, 255, 255)) + (0,))
        line.putalpha(wide)
        line.alpha_composite(out)
        out = line
    return out


def sprite_of(
    rng: np.random.Generator, thing: str, size: int, styles: tuple[str, ...], distort: bool = True, mix: float = 0.0
) -> Image.Image:
    """Returns one drawing of a thing as RGBA of about `size` pixels.

    Args:
        rng: source of chance.
        thing: a name of `art.THINGS`.
        size: side of the sprite's box in pixels.
        styles: art styles to choose from; those that lack the thing are passed over.
        distort: whether to flip, turn, stretch and recolor it.
        mix: how often the distorted drawing is made over into another style, see `paint.restyle`.
    """
    pyramid = _pyramid()
    style = pick(rng, [s for s in styles if thing in pyramid[s]])
    levels = pick(rng, pyramid[style][thing])
    source = levels[2] if size <= 20 else levels[1] if size <= 44 else levels[0]
    if not distort:
        sprite = source.resize((size, size), Image.Resampling.BILINEAR)
        return _recolor(rng, sprite, style) if style in art.MONOCHROME_STYLES else sprite
    if rng.random() < 0.5:
        source = source.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.5:
        source = source.rotate(rng.uniform(-18, 18), Image.Resampling.BILINEAR)
    wide = int(np.clip(round(size * rng.uniform(0.85, 1.15)), 8, SIZE)) if rng.random() < 0.4 else size
    sprite = _recolor(rng, source.resize((wide, size), Image.Resampling.BILINEAR), style)
    return paint.restyle(rng, sprite) if mix and rng.random() < mix else sprite


def _stands_out(sprite: Image.Image, ground: Image.Image) -> bool:
    """Says whether a sprite can be told from its background at all: white on white shows nothing."""
    pixels = np.asarray(sprite, dtype=np.int32)
    around = np.asarray(ground.resize((1, 1), Image.Resampling.BOX), dtype=np.int32)[0, 0]
    return np.abs(pixels[..., :3] - around).sum(-1)[pixels[..., 3] > 128].mean() > 90


def _ground_for(
    rng: np.random.Generator, sprites: list[Image.Image], plain: float = 0.55
) -> tuple[Image.Image, str | None]:
    """Returns a background that the sprites stand out from, or after some tries the last one."""
    for _ in range(6):
        picture, color = draw_background(rng, plain)
        if all(_stands_out(sprite, picture) for sprite in sprites):
            break
    return picture, color


def _paste(picture: Image.Image, thing: str, sprite: Image.Image, x: int, y: int) -> Box:
    picture.paste(sprite, (x, y), sprite)
    colors = paint.colors_of(sprite)
    only = colors[0] if len(colors) == 1 else None
    return Box(thing, only, x, y, x + sprite.width, y + sprite.height, colors)


def place_of(x: float, y: float) -> str:
    """Names the cell of a 3x3 grid that a point (in 0..1) lies in."""
    return PLACES[min(2, int(x * 3)), min(2, int(y * 3))]


def draw_thing(rng: np.random.Generator, thing: str, styles: tuple[str, ...], train: bool = True, mix: float = 0.0):
    """One thing, large. Facts: thing, background (a color's name or None), boxes."""
    size = int(rng.integers(26, 63))
    sprite = sprite_of(rng, thing, size, styles, distort=train, mix=mix)
    picture, background = _ground_for(rng, [sprite])
    slack = (SIZE - sprite.width, SIZE - sprite.height)
    box = _paste(picture, thing, sprite, int(rng.integers(-2, slack[0] + 3)), int(rng.integers(-2, slack[1] + 3)))
    return disturb(rng, picture), {"thing": thing, "background": background, "boxes": [box]}


def draw_pair(
    rng: np.random.Generator,
    things: tuple[str, str],
    styles: tuple[str, ...],
    mix: float = 0.0,
    level: int | None = None,
):
    """Two different things, side by side or one above the other. Facts: things, sides, background, boxes.

    `level`: how many pixels one may lie higher than the other at most, or further left; any number if None.
    """
    sprites = [sprite_of(rng, thing, int(rng.integers(24, 31)), styles, mix=mix) for thing in things]
    picture, background = _ground_for(rng, sprites, plain=0.8)
    beside, boxes = rng.random() < 0.6, []
    for n, (thing, sprite) in enumerate(zip(things, sprites, strict=True)):
        size = max(sprite.size)
        along, across = n * 32 + int(rng.integers(0, max(1, 33 - size))), int(rng.integers(0, SIZE - size + 1))
        if n and level is not None:
            across = int(np.clip(across, boxes[0][2 + beside] - level, boxes[0][2 + beside] + level))
            across = min(max(across, 0), SIZE - size)
        boxes.append(_paste(picture, thing, sprite, *((along, across) if beside else (across, along))))
    sides = ("left", "right") if beside else ("top", "bottom")
    facts = {"things": things, "sides": sides, "background": background, "boxes": boxes}
    return disturb(rng, picture, 0.25), facts


def _spots(rng: np.random.Generator, count: int, size: int, tries: int = 400) -> list[tuple[int, int]]:
    """Top left corners of boxes that do not overlap: anywhere, or after so many tries on a grid."""
    spots: list[tuple[int, int]] = []
    for _ in range(tries):
        x, y = (int(v) for v in rng.integers(0, SIZE - size + 1, 2))
        if all(abs(x - a) >= size or abs(y - b) >= size for a, b in spots):
            spots.append((x, y))
            if len(spots) == count:
                return spots
    step = SIZE // (SIZE // size)
    cells = [(x * step, y * step) for y in range(SIZE // size) for x in range(SIZE // size)]
    return [cells[i] for i in rng.permutation(len(cells))[:count]]


def draw_counted_things(rng: np.random.Generator, counts: dict[str, int], styles: tuple[str, ...], mix: float = 0.0):
    """Several things of some kinds, at most six in all. Facts: counts, background, boxes."""
    total = sum(counts.values())
    size = int(rng.integers(18, 22)) if total > 4 else int(rng.integers(21, 29))
    models = {thing: sprite_of(rng, thing, size, styles, mix=mix) for thing in counts}
    picture, background = _ground_for(rng, list(models.values()), plain=0.85)
    spots = _spots(rng, total, size, QUICK if mix else 400)
    each = [thing for thing, count in counts.items() for _ in range(count)]
    boxes = [_paste(picture, thing, models[thing], *spots.pop()) for thing in each]
    return disturb(rng, picture, 0.2), {"counts": counts, "background": background, "boxes": boxes}


def draw_scene(rng: np.random.Generator, things: list[str], styles: tuple[str, ...], mix: float = 0.0):
    """One to five different things, each in a cell of the 3x3 grid. Facts: things, background, boxes."""
    low, high = ((22, 40), (20, 31), (17, 22))[min(len(things), 3) - 1]
    size, near = int(rng.integers(low, high)), rng.uniform(0.72, 1.0)  # near: some keep off the edges
    sprites = [sprite_of(rng, thing, size, styles, mix=mix) for thing in things]
    picture, background = _ground_for(rng, sprites, plain=0.85)
    cells = [(int(c % 3), int(c // 3)) for c in rng.permutation(9)]
    if len(things) == 2 and size > near * SIZE / 3:  # too large for two cells beside each other
        cells.remove((1, 1))
        cells = [cells[0], next(cell for cell in cells[1:] if np.abs(np.subtract(cell, cells[0])).max() > 1)]
    boxes = []
    for thing, sprite, cell in zip(things, sprites, cells, strict=False):
        corner = []
        for c, side in zip(cell, sprite.size, strict=True):
            middle = SIZE / 2 + near * ((c - 1) * SIZE / 3 + rng.uniform(-3, 3))
            corner.append(int(np.clip(middle - side / 2, 0, SIZE - side)))
        boxes.append(_paste(picture, thing, sprite, *corner))
    return disturb(rng, picture, 0.2), {"things": things, "background": background, "boxes": boxes}


# ---------------------------------------------------------------------------------------------- shapes


def _shape_points(shape: str, x: float, y: float, w: float, h: float, turn: float) -> list[tuple[float, float]]:
    if shape == "triangle":
        unit = [(0, -1), (1, 1), (-1, 1)]
    elif shape == "star":
        angles = np.pi / 5 * np.arange(10) - np.pi / 2
        unit = [(np.cos(a) * r, np.sin(a) * r) for a, r in zip(angles, [1, 0.42] * 5, strict=True)]
    elif shape == "cross":
        a = 0.34
        unit = [
            (-a, -1),
            (a, -1),
            (a, -a),
            (1, -a),
            (1, a),
            (a, a),
            (a, 1),
            (-a, 1),
            (-a, a),
            (-1, a),
            (-1, -a),
            (-a, -a),
        ]
    else:
        unit = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    c, s = np.cos(turn), np.sin(turn)
    return [(x + (u * c - v * s) * w / 2, y + (u * s + v * c) * h / 2) for u, v in unit]


def draw_shapes(rng: np.random.Generator, wanted: list[tuple[str, str]], background: str | None, grid: bool):
    """Colored shapes.

    Args:
        rng: source of chance.
        wanted: (color, shape) of each.
        background: color's name, or None for a pale one as easy-VQA has it.
        grid: whether each sits in a cell of the 3x3 grid, so that its place has a name.

    Returns:
        The picture and facts: shapes, a list of (color, shape, place), and boxes.
    """
    k = OVERSAMPLE if rng.random() < 0.7 else 1  # some with hard edges
    ground = tuple(int(v) for v in rng.integers(225, 256, 3)) if background is None else shade(rng, background)
    picture = Image.new("RGB", (SIZE * k, SIZE * k), ground)
    draw = ImageDraw.Draw(picture)
    shapes, found = [], []
    if grid:
        cells = [(int(c % 3), int(c // 3)) for c in rng.permutation(9)[: len(wanted)]]
        boxes = []
        for cx, cy in cells:
            side = rng.uniform(13, 20)
            center = [(c + 0.5) * SIZE / 3 + rng.uniform(-1, 1) * max(0, 10.5 - side / 2) for c in (cx, cy)]
            boxes.append((center[0], center[1], side))
    else:
        side = int(rng.integers(13, 19)) if len(wanted) > 3 else int(rng.integers(14, 27))
        boxes = [(x + side / 2, y + side / 2, side - 1.5) for x, y in _spots(rng, len(wanted), side)]
    for (color, shape), (x, y, side) in zip(wanted, boxes, strict=True):
        w = h = side
        if shape == "rectangle" and rng.random() < 0.7:
            if rng.random() < 0.5:
                w *= rng.uniform(0.4, 1)
            else:
                h *= rng.uniform(0.4, 1)
        fill = shade(rng, color)
        box = [v * k for v in (x - w / 2, y - h / 2, x + w / 2, y + h / 2)]
        if shape == "circle":
            draw.ellipse(box, fill=fill)
        else:
            turn = rng.uniform(-0.12, 0.12) if rng.random() < 0.3 else 0.0
            draw.polygon([(px * k, py * k) for px, py in _shape_points(shape, x, y, w, h, turn)], fill=fill)
        shapes.append((color, shape, place_of(x / SIZE, y / SIZE)))
        found.append(Box(shape, color, *(v / k for v in box)))
    if k > 1:
        picture = picture.resize((SIZE, SIZE), Image.Resampling.BOX)
    return disturb(rng, picture, 0.2), {"shapes": shapes, "background": background or "pale", "boxes": found}


def draw_lone_shape(rng: np.random.Generator, color: str, shape: str):
    """One shape of any size and place on a pale ground, in the manner of easy-VQA. Facts: shapes, boxes."""
    picture = Image.new("RGB", (SIZE, SIZE), tuple(int(v) for v in rng.integers(220, 256, 3)))
    w, h = rng.uniform(5, 22, 2) if shape == "rectangle" else (rng.uniform(5, 22),) * 2
    x, y = rng.uniform(w / 2, SIZE - w / 2), rng.uniform(h / 2, SIZE - h / 2)
    fill = EASY_COLORS[color] if rng.random() < 0.8 else shade(rng, color)
    draw = ImageDraw.Draw(picture)
    box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    else:
        draw.polygon(_shape_points(shape, x, y, w, h, 0.0), fill=fill)
    place = place_of(x / SIZE, y / SIZE)
    return picture, {"shapes": [(color, shape, place)], "background": "pale", "boxes": [Box(shape, color, *box)]}
