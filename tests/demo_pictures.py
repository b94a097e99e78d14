"""Pictures for the demo's tests, of which only what is on them matters."""

import pytest
from PIL import Image

from demo import sprites
from demo.pictures import Picture
from demo.render import Box

needs_art = pytest.mark.skipif(
    not sprites.sprites_path().exists(), reason="no art in the cache: `python -m demo.art` fetches and draws it"
)


def picture(skill: str, boxes: list[Box], background: str | None = "white", **facts) -> Picture:
    return Picture(Image.new("RGB", (64, 64)), skill, [("What is this?", "?")], boxes, background, **facts)


def thing(name: str, x: int, y: int, color: str | None = None) -> Box:
    """A thing of 18 pixels in a cell of the grid."""
    left, top = x * 21.3 + 1.6, y * 21.3 + 1.6
    return Box(name, color, left, top, left + 18, top + 18, (color,) if color else ())
