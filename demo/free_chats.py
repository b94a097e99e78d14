"""The hand-written free chats of `free_chats.txt`: their pictures, and how answers to them are judged.

`tuning_chats.txt` and `strangers.txt` have more of them in the same form, for whoever looks for what to train next.

The pictures are drawn here, 256 pixels square, by nothing that training draws with but the sprites and the colors;
every second chat is in an art style that training never saw. The model's own answers are what its later answers build
on.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from . import art
from .paint import COLORS
from .render import PLACES, SHAPES
from .skills import TUNING_CHATS
from .sprites import load_sprites

FILE = Path(__file__).parent / "free_chats.txt"
TUNING_FILES = tuple(FILE.with_name(f"{skill}.txt") for skill in TUNING_CHATS)
SIDE = 256
STYLES = ("openmoji", "noto", "emojione-v1", "twemoji", "openmoji", "fluent-emoji-flat", "emojione-v1", "emojione")
HONEST = re.compile(r"\b(cannot tell|do not know|can only answer|cannot see)\b")
_CELLS = {name: cell for cell, name in PLACES.items()}


@dataclass
class FreeTurn:
    """A question with the pictures shown with it, and what is accepted: any of the groups of words, or honesty."""

    scenes: list[str]
    question: str
    accepted: list[list[str]]
    honest: bool


@dataclass
class FreeChat:
    """A chat, and the style of its pictures."""

    style: str
    seed: int
    turns: list[FreeTurn] = field(default_factory=list)

    def pictures(self, turn: FreeTurn) -> list[Image.Image]:
        """Draws the pictures that are shown in a turn."""
        rng = np.random.default_rng([self.seed, self.turns.index(turn)])
        return [draw(rng, scene, self.style) for scene in turn.scenes]


def load(path: Path = FILE) -> list[FreeChat]:
    """Reads the chats."""
    chats: list[FreeChat] = []
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
        if not lines:
            continue
        chat, scenes = FreeChat(STYLES[len(chats) % len(STYLES)], 28_000_000 + len(chats)), []
        for line in lines:
            if line.startswith("["):
                scenes.append(line.strip("[] "))
                continue
            question, *accepted = (part.strip() for part in line.split("|"))
            words = [entry.split("&") for entry in accepted if entry != "~"]
            groups = [[word.strip() for word in group] for group in words]
            chat.turns.append(FreeTurn(scenes, question, groups, "~" in accepted))
            scenes = []
        chats.append(chat)
    return chats


def accepts(turn: FreeTurn, answer: str) -> bool:
    """Says whether an answer is right, or honest where honesty is accepted."""
    if turn.honest and HONEST.search(answer.lower()):
        return True
    words = re.sub(r"[^a-z0-9]+", " ", answer.lower()).split()
    said = f" {' '.join(words)} "
    return any(all(f" {word} " in said for word in group) for group in turn.accepted)


# ---------------------------------------------------------------------------------------------- pictures


def _center(place: str, rng: np.random.Generator) -> tuple[float, float]:
    column, row = _CELLS[place]
    return tuple((cell + 0.5) * SIDE / 3 + rng.uniform(-8, 8) for cell in (column, row))


def _shape(draw_on: ImageDraw.ImageDraw, shape: str, color: str, x: float, y: float, size: float) -> None:
    half = size / 2
    fill = COLORS[color]
    if shape == "circle":
        draw_on.ellipse((x - half, y - half, x + half, y + half), fill=fill)
    elif shape == "rectangle":
        draw_on.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    elif shape == "triangle":
        draw_on.polygon([(x, y - half), (x + half, y + half), (x - half, y + half)], fill=fill)
    elif shape == "star":
        turns = [np.pi * n / 5 - np.pi / 2 for n in range(10)]
        radii = [half, half * 0.4] * 5
        draw_on.polygon([(x + r * np.cos(t), y + r * np.sin(t)) for t, r in zip(turns, radii, strict=True)], fill=fill)
    else:
        arm = size / 6
        draw_on.rectangle((x - arm, y - half, x + arm, y + half), fill=fill)
        draw_on.rectangle((x - half, y - arm, x + half, y + arm), fill=fill)


def _write(picture: Image.Image, rng: np.random.Generator, text: str, small: bool, ink: str) -> None:
    font = font_manager.findfont("DejaVu Sans" if rng.random() < 0.5 else "DejaVu Serif")
    size = 64 if small else min(110, int(330 / max(len(text), 2)))
    written = ImageFont.truetype(font, size)
    left, top, right, bottom = written.getbbox(text)
    spare = (SIDE - (right - left), SIDE - (bottom - top))
    at = [rng.uniform(0.25, 0.75) * space - offset for space, offset in zip(spare, (left, top), strict=True)]
    ImageDraw.Draw(picture).text(tuple(at), text, font=written, fill=COLORS[ink])


def _sprite(thing: str, style: str, size: int) -> Image.Image:
    sprites = load_sprites()
    drawn = sprites[style].get(thing) or sprites["openmoji"][thing]
    return Image.fromarray(drawn[0]).resize((size, size), Image.Resampling.BICUBIC)


def draw(rng: np.random.Generator, scene: str, style: str) -> Image.Image:
    """Draws a scene as `free_chats.txt` describes it: "ground: thing place, color shape place, thing xN, "TEXT" small".

    Args:
        rng: source of chance.
        scene: the description.
        style: art style of the things; one that it lacks is drawn as OpenMoji has it.

    Returns:
        RGB, 256 pixels square.

    Raises:
        ValueError: the description names something unknown.
    """
    ground, _, rest = scene.partition(":")
    picture = Image.new("RGB", (SIDE, SIDE), COLORS[ground.strip()])
    if written := re.match(r'\s*"([^"]*)"\s*(small)?', rest):
        ink = "white" if ground.strip() == "black" else "black"
        _write(picture, rng, written[1], bool(written[2]), ink)
        return picture
    entries = []
    for entry in rest.split(","):
        name, count, place = entry.strip(), 1, ""
        if many := re.search(r" x(\d)$", name):
            name, count = name[: many.start()], int(many[1])
        for known in sorted(_CELLS, key=len, reverse=True):
            if name.endswith(f" {known}"):
                name, place = name[: -len(known) - 1], known
                break
        entries += [(name, place)] * count
    free = [list(_CELLS)[n] for n in rng.permutation(9)]
    alone = len(entries) == 1 and not entries[0][1]
    for name, place in entries:
        color, _, shape = name.rpartition(" ")
        if color in COLORS and shape in SHAPES:
            _shape(ImageDraw.Draw(picture), shape, color, *_center(place or "middle", rng), rng.uniform(62, 78))
            continue
        if name not in art.KIND_OF:
            raise ValueError(f"no such thing as {name!r} in {scene!r}")
        if alone:
            size = int(rng.integers(150, 215))
            x, y = (SIDE / 2 + rng.uniform(-15, 15) for _ in "xy")
        else:
            size = int(rng.integers(72, 84)) if len(entries) > 2 else int(rng.integers(96, 118))
            x, y = _center(place or free.pop(), rng)
            near = 0.75 if place else 0.92  # two things side by side have half of the picture each
            x, y = (SIDE / 2 + (v - SIDE / 2) * near for v in (x, y))
        sprite = _sprite(name, style, size)
        picture.paste(sprite, (int(x - size / 2), int(y - size / 2)), sprite)
    return picture
