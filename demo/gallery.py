"""The pictures of `examples/`, the questions about them, and the model's answers."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from . import lettering, render
from .asking import answer, load_checkpoint
from .exam import Question
from .places import ROOT

FOLDER = ROOT / "examples"
SCALE = 4  # shown four times as large as the model sees them
STYLES = ("noto",)  # Apache-2.0 art


def draw() -> dict[str, Image.Image]:
    """Returns the example pictures by name, 64x64; seeds chosen for their looks, before any model was asked."""

    def seed(number: int) -> np.random.Generator:
        return np.random.default_rng(number)

    shapes = [("red", "circle"), ("blue", "triangle"), ("yellow", "star")]
    drawn = {
        "turtle": render.draw_thing(seed(4), "turtle", STYLES, train=False),
        "rocket": render.draw_thing(seed(8), "rocket", STYLES, train=False),
        "cat-and-bus": render.draw_pair(seed(0), ("cat", "bus"), STYLES),
        "apples": render.draw_counted_things(seed(2), {"apple": 3, "banana": 2}, STYLES),
        "shapes": render.draw_shapes(seed(10), shapes, "white", grid=True),
        "number": lettering.draw_text(seed(5), "2048"),
        "word": lettering.draw_text(seed(8), "STOP"),
        "easy-vqa": render.draw_lone_shape(seed(2), "teal", "triangle"),
    }
    return {name: picture for name, (picture, _) in drawn.items()}


QUESTIONS = [
    ("turtle", "What animal is it?"),
    ("rocket", "What is this?"),
    ("cat-and-bus", "What is on the left?"),
    ("apples", "How many apples are there?"),
    ("shapes", "Where is the yellow star?"),
    ("number", "What number is this?"),
    ("word", "What does it say?"),
    ("easy-vqa", "what color is the shape?"),
]


def grid(pictures: dict[str, Image.Image], lines: list[tuple[str, str, str]]) -> Image.Image:
    """Returns one picture of all questions with the model's answers."""
    from matplotlib import font_manager
    from PIL import ImageDraw, ImageFont

    side, text = render.SIZE * 3, 44
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 11)
    sheet = Image.new("RGB", (4 * (side + 12) + 12, (len(lines) + 3) // 4 * (side + text + 12) + 12), "white")
    pen = ImageDraw.Draw(sheet)
    for n, (name, question, said) in enumerate(lines):
        x, y = 12 + n % 4 * (side + 12), 12 + n // 4 * (side + text + 12)
        sheet.paste(pictures[name].resize((side, side), Image.Resampling.BICUBIC), (x, y))
        pen.text((x, y + side + 4), question, font=font, fill="#555555")
        pen.text((x, y + side + 20), said, font=font, fill="black")
    return sheet


def write(repo: Path) -> None:
    """Writes the pictures and a converted repository's answers to `examples/`, and both as `demo/grid.png`."""
    FOLDER.mkdir(exist_ok=True)
    for name, picture in draw().items():
        size = (render.SIZE * SCALE, render.SIZE * SCALE)
        picture.resize(size, Image.Resampling.BICUBIC).save(FOLDER / f"{name}.png", optimize=True)
    pictures = {name: Image.open(FOLDER / f"{name}.png").convert("RGB") for name, _ in QUESTIONS}

    torch.set_num_threads(2)
    model, processor = load_checkpoint(repo)
    asked = [Question([([pictures[name]], question, "")]) for name, question in QUESTIONS]
    said = answer(model, processor, asked)
    lines = [(name, question, text) for (name, question), text in zip(QUESTIONS, said, strict=True)]
    record = [{"picture": f"{name}.png", "question": question, "answer": text} for name, question, text in lines]
    (FOLDER / "answers.json").write_text(json.dumps(record, indent=2) + "\n")
    grid(pictures, lines).save(ROOT / "demo" / "grid.png", optimize=True)
    for name, question, text in lines:
        print(f"{name}: {question} {text}")
