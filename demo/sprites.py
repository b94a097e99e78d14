"""The things of `art` as arrays: fetched from npm and drawn once, then kept in the cache.

`load_sprites()`: `{style: {thing: [sprite, ...]}}`; a sprite is uint8 [96, 96, 4], RGBA, straight alpha. One of a
single color is black, and white where it encloses nothing.
"""

import functools
import hashlib
import io
import json
import pickle
import re
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from .art import (
    FONT_STYLES,
    HELD_OUT_STYLE,
    ICON_STYLES,
    ICONS_OF,
    INKED_STYLE,
    INKED_STYLES,
    MONOCHROME_STYLES,
    OTHER_THINGS,
    PAINTED_STYLE,
    SECOND_HELD_OUT_STYLE,
    TRAIN_STYLES,
)
from .places import CACHE

STYLES = TRAIN_STYLES | ICON_STYLES | HELD_OUT_STYLE | SECOND_HELD_OUT_STYLE
SPRITE = 96  # pixels; three steps of halving down to the smallest size that scenes use
INK = 0.018, 0.036  # of a drawing's width: the lines around what is filled


def _fetch(style: str, version: str) -> Path:
    """Downloads one npm package into the cache; returns the path of its archive."""
    scope = "expo-google-fonts" if style in FONT_STYLES else "iconify-json"
    archive = CACHE / "art" / f"{scope}-{style}-{version}.tgz"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"@{scope}/{style}@{version}"], cwd=archive.parent, check=True)
    return archive


@dataclass
class _Icon:
    """An SVG body, and the rectangle of it that is shown: left, top, width, height."""

    body: str
    box: tuple[float, float, float, float]

    def draw(self, ink: float = 0.0) -> Image.Image:
        """RGBA, twice as large as a sprite; with black lines around all that is filled, `ink` of its width wide."""
        import resvg_py  # only the first run draws; later ones read the cache

        left, top, width, height = self.box
        line = ink * width
        box = f"{left - line} {top - line} {width + 2 * line} {height + 2 * line}"
        body = self.body
        if line:
            body = f'<g stroke="black" stroke-width="{line}" stroke-linejoin="round" stroke-linecap="round">{body}</g>'
        svg = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"'
            f' width="{SPRITE * 2}" height="{SPRITE * 2}" color="black">{body}</svg>'
        )
        return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")


def _icons(style: str, version: str) -> dict[str, list[_Icon]]:
    """The icons of one style, by thing; a thing that the style lacks is left out."""
    with tarfile.open(_fetch(style, version)) as archive:
        pack = json.load(archive.extractfile("package/icons.json"))
    by_name = {key.replace("-", ""): icon for key, icon in pack["icons"].items()}
    for alias, target in pack.get("aliases", {}).items():
        if set(target) == {"parent"} and target["parent"] in pack["icons"]:
            by_name.setdefault(alias.replace("-", ""), pack["icons"][target["parent"]])
    for key, icon in pack["icons"].items():  # some packs number the drawings of one name: "cactus-1", "cactus-2"
        by_name.setdefault(re.sub("-[12]$", "", key).replace("-", ""), icon)
    found = {}
    for thing, keys in ICONS_OF.items():
        known = []  # a pack may know one drawing by two of the names
        for key in _icon_names(keys, thing) if style in ICON_STYLES else keys:
            icon = by_name.get(key.replace("-", "").replace(" ", ""))
            if icon is None or icon["body"] in known or key.startswith(OTHER_THINGS.get(style, ())):
                continue
            known.append(icon["body"])
            width, height = icon.get("width", pack["width"]), icon.get("height", pack["height"])
            box = icon.get("left", 0), icon.get("top", 0), width, height
            found.setdefault(thing, []).append(_Icon(icon["body"], box))
    return found


def _draw_style(style: str, version: str) -> dict[str, list[np.ndarray]]:
    """Draws every thing of one style."""
    finish = _filled if style in MONOCHROME_STYLES else np.asarray
    return _sprites(_icons(style, version), lambda icon: icon.draw(), finish)


def _ink(styles: dict[str, str]) -> dict[str, list[np.ndarray]]:
    """Draws the things of colored styles with black lines around all that has a color, as comics and stickers do."""
    rng, sprites = np.random.default_rng(1), {}
    for style, version in styles.items():
        inked = _sprites(_icons(style, version), lambda icon: icon.draw(rng.uniform(*INK)), np.asarray)
        for thing, found in inked.items():
            sprites.setdefault(thing, []).extend(found)
    return sprites


def _sprites(icons: dict[str, list[_Icon]], draw: Callable, finish: Callable) -> dict[str, list[np.ndarray]]:
    """The icons as sprites; an empty drawing is left out."""
    sprites = {}
    for thing, found in icons.items():
        for icon in found:
            if (sprite := _cropped(draw(icon))) is not None:
                sprites.setdefault(thing, []).append(finish(sprite))
    return sprites


def _cropped(picture: Image.Image) -> Image.Image | None:
    """A drawing as large as a sprite can hold it; None where there is nothing."""
    box = picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
    if box is None:
        return None
    side = max(box[2] - box[0], box[3] - box[1])
    square = Image.new("RGBA", (side, side))
    square.paste(picture.crop(box), ((side - box[2] + box[0]) // 2, (side - box[3] + box[1]) // 2))
    return square.resize((SPRITE, SPRITE), Image.Resampling.BOX)


def _draw_font(style: str, version: str) -> dict[str, list[np.ndarray]]:
    """Draws every thing that a font of emoji has, in thin and in bold lines; Noto's pack knows their characters."""
    with tarfile.open(_fetch("noto", TRAIN_STYLES["noto"])) as archive:
        characters = json.load(archive.extractfile("package/chars.json"))
    character_of = {name: chr(int(code, 16)) for code, name in characters.items() if "-" not in code}
    sprites = {}
    with tarfile.open(_fetch(style, version)) as archive:
        files = [name for name in archive.getnames() if re.search(r"_(300Light|700Bold)[.]ttf$", name)]
        fonts = [ImageFont.truetype(io.BytesIO(archive.extractfile(name).read()), SPRITE * 2) for name in sorted(files)]
    for thing, keys in ICONS_OF.items():
        for character in (character_of[key] for key in keys if key in character_of):
            for font in fonts:
                picture = Image.new("RGBA", (SPRITE * 4, SPRITE * 4))
                ImageDraw.Draw(picture).text((SPRITE // 2, SPRITE // 2), character, font=font, fill="black")
                if (sprite := _cropped(picture)) is not None:
                    sprites.setdefault(thing, []).append(_filled(sprite))
    return sprites


def _icon_names(keys: list[str], thing: str) -> list[str]:
    """The names that a pack of icons may have for a thing: those of the emoji, its own, and those of filled ones."""
    return [name + form for name in [*keys, thing] for form in ("", "-fill", "-filled", "-duotone")]


def _filled(sprite: Image.Image) -> np.ndarray:
    """Puts white behind a drawing of one color, as far as its lines enclose it."""
    around = Image.new("L", (SPRITE + 2, SPRITE + 2))
    around.paste(sprite.getchannel("A").point(lambda a: 255 * (a > 96)), (1, 1))
    ImageDraw.floodfill(around, (0, 0), 128)
    outside = np.asarray(around)[1:-1, 1:-1] == 128
    alpha = np.asarray(sprite)[..., 3]
    paper = np.where(outside, 0, 255 - alpha)  # how much of it shows through the ink
    return np.dstack([paper, paper, paper, np.where(outside, alpha, 255)]).astype(np.uint8)


PAPER = 0.2  # share of a drawing that its lines enclose at least, for it to be painted
LARGE = 12  # pixels of an enclosed part that gets a color of its own


def _painted(rng: np.random.Generator, lines: np.ndarray, colored: np.ndarray) -> np.ndarray | None:
    """Paints what the lines of a drawing enclose, each part in the color that a colored drawing has there.

    Args:
        rng: source of chance.
        lines: sprite in one color, its paper white.
        colored: sprite of the same thing in colors.

    Returns:
        A sprite of dark lines between flat colors; None for a drawing that encloses too little.
    """
    paper = lines[..., 0] / 255.0
    parts, count = ndimage.label(paper > 0.5)
    if (parts > 0).sum() < PAPER * (lines[..., 3] > 128).sum():
        return None
    rgb, solid = colored[..., :3].astype(np.float64), (colored[..., 3] > 128) & (colored[..., :3].max(-1) > 60)
    if not solid.any():
        return None
    known = rgb[solid]
    fills = np.full((count + 1, 3), 255.0)
    for part in range(1, count + 1):
        here = parts == part
        if (here & solid).sum() >= LARGE:
            fills[part] = np.median(rgb[here & solid], axis=0)
        elif here.sum() >= LARGE:
            fills[part] = known[int(rng.integers(len(known)))]
    # the soft border of a line belongs to the nearest part
    nearest = ndimage.distance_transform_edt(parts == 0, return_distances=False, return_indices=True)
    fill = fills[parts[tuple(nearest)]]
    ink = rng.integers(0, 40, 3) if rng.random() < 0.7 else known[int(rng.integers(len(known)))] * 0.4
    return np.dstack([fill * paper[..., None] + ink * (1 - paper[..., None]), lines[..., 3]]).astype(np.uint8)


def _paint(drawn: dict[str, dict[str, list[np.ndarray]]]) -> dict[str, list[np.ndarray]]:
    """Paints the line drawings that training uses with the colors of its colored packs."""
    rng = np.random.default_rng(0)
    palette = [style for style in TRAIN_STYLES if style not in MONOCHROME_STYLES]
    sprites = {}
    for style in [style for style in (TRAIN_STYLES | ICON_STYLES | FONT_STYLES) if style in MONOCHROME_STYLES]:
        for thing, found in drawn[style].items():
            for lines in found:
                colored = [sprite for name in palette for sprite in drawn[name].get(thing, ())]
                for n in rng.permutation(len(colored))[:2]:
                    painted = _painted(rng, lines, colored[n])
                    if painted is not None:
                        sprites.setdefault(thing, []).append(painted)
    return sprites


def sprites_path() -> Path:
    """Returns where the drawn sprites are cached; other styles or things have another name."""
    recipe = repr((STYLES, FONT_STYLES, ICONS_OF, OTHER_THINGS, INKED_STYLES, INK)).encode()
    return CACHE / f"sprites-{hashlib.sha256(recipe).hexdigest()[:12]}.pkl"


@functools.cache
def load_sprites() -> dict[str, dict[str, list[np.ndarray]]]:
    """Returns all sprites of all styles, drawn on the first call and cached on disk.

    Raises:
        subprocess.CalledProcessError: npm could not deliver a package; its message says why.
    """
    cached = sprites_path()
    if not cached.exists():
        drawn = {style: _draw_style(style, version) for style, version in STYLES.items()}
        drawn |= {style: _draw_font(style, version) for style, version in FONT_STYLES.items()}
        drawn[PAINTED_STYLE] = _paint(drawn)
        drawn[INKED_STYLE] = _ink({style: TRAIN_STYLES[style] for style in INKED_STYLES})
        partial = cached.with_suffix(".partial")
        partial.write_bytes(pickle.dumps(drawn, protocol=pickle.HIGHEST_PROTOCOL))
        partial.rename(cached)
    return pickle.loads(cached.read_bytes())
