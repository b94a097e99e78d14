"""What the vision tower learns to tell about a picture beside words: a drawn picture knows what is where.

* `SLOTS`: facts of the whole picture, `{name: (places, classes)}`.
* `PATCHES`: facts of each of the 64 patches, `{name: classes}`.
* `targets_of()`: the right classes of a picture.

Patches come in the order of the soft tokens that they are pooled into: the four patches of the first 2x2 square of the
picture, then those of the next. So a head can tell them from the pooled features, which are all that the text model
gets to see.
"""

from collections import Counter

import numpy as np

from . import art, render

UNKNOWN = -100  # what `torch.nn.functional.cross_entropy` ignores
PATCH, SIDE = 8, 8  # pixels of a patch, patches of a side
LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
WHATS = [*art.THINGS, *render.SHAPES, *LETTERS]
COLORS = list(render.COLORS)

# none is the class after the last, and where there are classes for numbers, 0
SLOTS = {"letters": (7, len(LETTERS) + 1), "total": (1, 7)}  # what is written, letter by letter; how many things
PATCHES = {
    "what": len(WHATS) + 1,  # which thing, shape or letter
    "color": len(COLORS) + 1,  # its color
    "center": 2,  # whether the middle of one lies here
    "all": 8,  # how many there are in the picture of anything
    "alike": 8,  # ... of that name
    "twins": 8,  # ... and of that color
    "place": len(render.PLACES) + 1,  # which cell of the 3x3 grid its middle lies in
    "order": 8,  # which letter of the word it is
    "left": len(LETTERS) + 1,  # the letter in its left half: a thin one is less than a patch wide
    "right": len(LETTERS) + 1,
}
NONE = {
    "what": len(WHATS),
    "color": len(COLORS),
    "center": 0,
    "all": 0,
    "alike": 0,
    "twins": 0,
    "place": len(render.PLACES),
    "order": 0,
    "left": len(LETTERS),
    "right": len(LETTERS),
}
_WHAT = {what: n for n, what in enumerate(WHATS)}
_PLACE = {place: n for n, place in enumerate(render.PLACES.values())}


def targets_of(boxes: list[render.Box]) -> dict[str, np.ndarray]:
    """Returns the classes of every slot and patch of a picture.

    Args:
        boxes: what is where; empty when that is not known.

    Returns:
        int64 [places] for each of `SLOTS` and int64 [64] for each of `PATCHES`; -100 where unknown.
    """
    found = {name: np.full(places, UNKNOWN) for name, (places, _) in SLOTS.items()}
    grids = {name: np.full((SIDE, SIDE), NONE[name] if boxes else UNKNOWN) for name in PATCHES}
    if boxes:
        written = len(boxes[0].what) == 1
        if written:
            found["letters"][:] = len(LETTERS)
            found["letters"][: len(boxes)] = [LETTERS.index(box.what) for box in boxes]
        else:
            found["total"][:] = len(boxes)
    alike, twins = Counter(box.what for box in boxes), Counter(box[:2] for box in boxes)
    for n, box in sorted(enumerate(boxes), key=lambda entry: entry[1].left - entry[1].right):  # a thin one stays seen
        rows, columns = _patches(box.top, box.bottom), _patches(box.left, box.right)
        grids["what"][rows, columns] = _WHAT[box.what]
        grids["color"][rows, columns] = COLORS.index(box.color) if box.color else UNKNOWN
        grids["all"][rows, columns] = len(boxes)
        grids["alike"][rows, columns], grids["twins"][rows, columns] = alike[box.what], twins[box[:2]]
        x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        grids["center"][_patch(y), _patch(x)] = 1
        grids["place"][rows, columns] = _PLACE[render.place_of(x / render.SIZE, y / render.SIZE)]
        if written:
            grids["order"][rows, columns] = n + 1
            for name, middle in (("left", PATCH / 4), ("right", PATCH * 3 / 4)):
                across = np.arange(SIDE) * PATCH + middle
                grids[name][rows, (box.left <= across) & (across < box.right)] = LETTERS.index(box.what)
    return found | {name: _in_order_of_soft_tokens(grid) for name, grid in grids.items()}


def _patch(place: float) -> int:
    """The patch that a place lies in, along one side."""
    return min(max(int(place // PATCH), 0), SIDE - 1)


def _patches(start: float, stop: float) -> slice:
    """The patches whose middles lie between two places; the nearest one if none does."""
    first, last = round(start / PATCH), round(stop / PATCH)
    middle = _patch((start + stop) / 2)
    return slice(max(first, 0), min(last, SIDE)) if last > first else slice(middle, middle + 1)


def _in_order_of_soft_tokens(grid: np.ndarray) -> np.ndarray:
    return grid.reshape(SIDE // 2, 2, SIDE // 2, 2).transpose(0, 2, 1, 3).reshape(-1)
