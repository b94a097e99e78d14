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
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .art import (
    HELD_OUT_STYLE,
    ICON_STYLES,
    ICONS_OF,
    MONOCHROME_STYLES,
    OTHER_THINGS,
    SECOND_HELD_OUT_STYLE,
    TRAIN_STYLES,
)
from .places import CACHE

STYLES = TRAIN_STYLES | ICON_STYLES | HELD_OUT_STYLE | SECOND_HELD_OUT_STYLE
SPRITE = 96  # pixels; three steps of halving down to the smallest size that scenes use


def _fetch(style: str, version: str) -> Path:
    """Downloads one npm package into the cache; returns the path of its archive."""
    archive = CACHE / "art" / f"iconify-json-{style}-{version}.tgz"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", f"@iconify-json/{style}@{version}"], cwd=archive.parent, check=True)
    return archive


def _draw_style(style: str, version: str) -> dict[str, list[np.ndarray]]:
    """Draws every thing of one style; a thing that the style lacks is left out."""
    import resvg_py  # only the first run draws; later ones read the cache

    with tarfile.open(_fetch(style, version)) as archive:
        pack = json.load(archive.extractfile("package/icons.json"))
    by_name = {key.replace("-", ""): icon for key, icon in pack["icons"].items()}
    for alias, target in pack.get("aliases", {}).items():
        if set(target) == {"parent"} and target["parent"] in pack["icons"]:
            by_name.setdefault(alias.replace("-", ""), pack["icons"][target["parent"]])
    for key, icon in pack["icons"].items():  # some packs number the drawings of one name: "cactus-1", "cactus-2"
        by_name.setdefault(re.sub("-[12]$", "", key).replace("-", ""), icon)
    sprites = {}
    for thing, keys in ICONS_OF.items():
        drawn = []  # a pack may know one drawing by two of the names
        for key in _icon_names(keys, thing) if style in ICON_STYLES else keys:
            icon = by_name.get(key.replace("-", "").replace(" ", ""))
            if icon is None or icon["body"] in drawn or key.startswith(OTHER_THINGS.get(style, ())):
                continue
            drawn.append(icon["body"])
            width, height = icon.get("width", pack["width"]), icon.get("height", pack["height"])
            box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}"'
                f' width="{SPRITE * 2}" height="{SPRITE * 2}" color="black">{icon["body"]}</svg>'
            )
            picture = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
            box = picture.getchannel("A").point(lambda a: 255 * (a > 8)).getbbox()
            if box is None:
                continue
            side = max(box[2] - box[0], box[3] - box[1])
            square = Image.new("RGBA", (side, side))
            square.paste(picture.crop(box), ((side - box[2] + box[0]) // 2, (side - box[3] + box[1]) // 2))
            sprite = square.resize((SPRITE, SPRITE), Image.Resampling.BOX)
            sprites.setdefault(thing, []).append(_filled(sprite) if style in MONOCHROME_STYLES else np.asarray(sprite))
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


def sprites_path() -> Path:
    """Returns where the drawn sprites are cached; other styles or things have another name."""
    recipe = repr((STYLES, ICONS_OF, OTHER_THINGS)).encode()
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
        partial = cached.with_suffix(".partial")
        partial.write_bytes(pickle.dumps(drawn, protocol=pickle.HIGHEST_PROTOCOL))
        partial.rename(cached)
    return pickle.loads(cached.read_bytes())
