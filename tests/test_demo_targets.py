"""What the tower of the demo is to tell: classes at the right patches, in the order of the soft tokens.

Run with: python -m pytest tests/test_demo_targets.py
"""

import numpy as np
import pytest
import torch

from demo import art, render, targets
from demo.model import TowerHead, build_model
from demo.pictures import text_picture
from demo.render import Box


def as_grid(target: np.ndarray) -> np.ndarray:
    """From the order of soft tokens back to rows and columns of patches, [8, 8]."""
    return target.reshape(4, 4, 2, 2).transpose(0, 2, 1, 3).reshape(8, 8)


def test_a_box_covers_its_patches_and_no_others():
    found = targets.targets_of([Box("turtle", None, 16, 8, 40, 24), Box("star", "red", 47, 50, 63, 63)])
    what, color, center = (as_grid(found[name]) for name in ("what", "color", "center"))
    turtle, star, none = targets.WHATS.index("turtle"), targets.WHATS.index("star", 190), len(targets.WHATS)
    assert (what[1:3, 2:5] == turtle).all()
    assert (what[6:8, 6:8] == star).all()
    assert (what == none).sum() == 64 - 6 - 4
    assert (color[1:3, 2:5] == targets.UNKNOWN).all()
    assert (color[6:8, 6:8] == targets.COLORS.index("red")).all()
    assert [tuple(place) for place in np.argwhere(center == 1)] == [(2, 3), (7, 6)]
    assert found["total"].tolist() == [2]
    assert (found["letters"] == targets.UNKNOWN).all()


def test_each_tells_how_many_there_are_of_its_kind():
    places = [(0, 0), (24, 0), (48, 0), (0, 48)]
    kinds = [("circle", "red"), ("circle", "red"), ("circle", "blue"), ("cross", "red")]
    found = targets.targets_of([Box(*kind, x, y, x + 16, y + 16) for kind, (x, y) in zip(kinds, places, strict=True)])
    alike, twins = as_grid(found["alike"]), as_grid(found["twins"])
    assert [alike[0, 0], alike[0, 3], alike[0, 6], alike[6, 0]] == [3, 3, 3, 1]
    assert [twins[0, 0], twins[0, 3], twins[0, 6], twins[6, 0]] == [2, 2, 1, 1]
    assert set(as_grid(found["all"]).flatten().tolist()) == {0, 4}
    assert (alike == 0).sum() == (twins == 0).sum() == 64 - 16


def test_letters_are_told_in_their_order_and_each_in_its_place():
    boxes = [Box("O", "black", 4, 20, 24, 40), Box("K", "black", 24, 20, 44, 40)]
    found = targets.targets_of(boxes)
    assert [(targets.LETTERS + " ")[n] for n in found["letters"]] == [*"OK", *" " * 5]
    assert found["total"].tolist() == [targets.UNKNOWN]
    row = as_grid(found["what"])[3]
    assert row[1] == targets.WHATS.index("O")
    assert row[4] == targets.WHATS.index("K")


def test_a_thin_letter_is_not_hidden_by_its_neighbors():
    boxes = [Box("K", "black", 2, 20, 17, 44), Box("I", "black", 17, 20, 22, 44), Box("T", "black", 22, 20, 38, 44)]
    found = targets.targets_of(boxes)
    told = [targets.WHATS[n] if n < len(targets.WHATS) else "" for n in as_grid(found["what"])[3]]
    assert told == ["K", "K", "I", "T", "T", "", "", ""]
    assert as_grid(found["order"])[3].tolist() == [1, 1, 2, 3, 3, 0, 0, 0]
    halves = np.stack([as_grid(found[name])[3] for name in ("left", "right")], 1).flatten()
    assert "".join((targets.LETTERS + "-")[n] for n in halves) == "KKKKITTTT-------"


def test_each_tells_the_cell_that_its_middle_lies_in():
    boxes = [Box("circle", "red", 0, 0, 20, 20), Box("cross", "blue", 44, 23, 62, 41)]
    place = as_grid(targets.targets_of(boxes)["place"])
    names = list(render.PLACES.values())
    assert (place[0:2, 0:2] == names.index("top left")).all()
    assert (place[3:5, 6:8] == names.index("right")).all()
    assert (place == targets.NONE["place"]).sum() == 64 - 4 - 4


def test_what_is_smaller_than_a_patch_has_one_patch():
    found = targets.targets_of([Box("circle", "blue", 33, 41, 38, 46)])
    assert [tuple(place) for place in np.argwhere(as_grid(found["color"]) < 12)] == [(5, 4)]


def test_an_unknown_picture_teaches_nothing():
    assert all((target == targets.UNKNOWN).all() for target in targets.targets_of([]).values())


def test_things_and_shapes_of_one_name_are_one_class():
    """The star among the things and the star among the shapes: no picture holds both."""
    assert len({*targets.WHATS}) == len(targets.WHATS) - 1
    assert art.THINGS.count("star") == 1


def test_patches_are_told_from_the_soft_token_that_they_become():
    """Whatever changes in one patch changes the four patches of its soft token, and no other, in the head's answer."""
    torch.manual_seed(0)
    head = TowerHead(256, 192)
    features = torch.randn(1, 64, 256)
    changed = features.clone()
    changed[0, 5 * 8 + 2] += torch.randn(256)  # row 5, column 2
    with torch.no_grad():
        before, after = (head(f)[2]["center"][0, :, 0].numpy() for f in (features, changed))
    differs = as_grid(before != after)
    assert differs[4:6, 2:4].all()
    assert differs.sum() == 4

    pool = build_model().model.multi_modal_projector.avg_pool
    grid = torch.arange(64.0).reshape(1, 1, 8, 8)
    ours = targets._in_order_of_soft_tokens(grid[0, 0].numpy()).reshape(16, 4).mean(1)
    assert ours == pytest.approx(pool(grid).flatten().numpy())


def test_every_target_is_a_class_of_its_head():
    rng = np.random.default_rng(0)
    lengths = set()
    for _ in range(300):
        picture = text_picture(rng, small=0.5, long=0.7)
        lengths.add(len(picture.text))
        found = targets.targets_of(picture.boxes)
        for name, classes in {**targets.PATCHES, **{slot: of for slot, (_, of) in targets.SLOTS.items()}}.items():
            assert found[name].max() < classes, (name, picture.text)
        assert [(targets.LETTERS + " ")[n] for n in found["letters"]] == list(picture.text.ljust(7))
    assert {5, 6, 7} <= lengths
