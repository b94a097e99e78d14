"""What training asks beside the trained forms is true of the picture, and the free chats of evaluation are apart.

Run with: python -m pytest tests/test_demo_chats.py
"""

import re

import numpy as np
import pytest
from PIL import Image

from demo import art, free_chats, further, lettering, paint, render, sprites, synonyms, talks
from demo.pictures import LEARNED, MIX, SMALL, Picture, sample_picture, text_picture
from demo.render import Box
from demo.rewording import reword
from demo.untold import CANNOT_TELL
from demo.wording import plural, the

needs_art = pytest.mark.skipif(
    not sprites.sprites_path().exists(), reason="no art in the cache: `python -m demo.art` fetches and draws it"
)


def picture(skill: str, boxes: list[Box], background: str | None = "white", **facts) -> Picture:
    return Picture(Image.new("RGB", (64, 64)), skill, [("What is this?", "?")], boxes, background, **facts)


SHAPES = picture(
    "shapes", [Box("rectangle", "red", 2, 2, 18, 18), Box("star", "blue", 46, 24, 62, 40)], background="green"
)
FRUIT = picture(
    "counting",
    [Box("apple", "red", 0, 0, 20, 20, ("red",))] * 1
    + [Box("apple", "red", 22, 0, 42, 20, ("red",)), Box("banana", "yellow", 0, 40, 20, 60, ("yellow",))],
)
PAIR = picture(
    "naming",
    [Box("cat", None, 2, 20, 26, 44), Box("dog", None, 36, 20, 60, 44)],
    sides=("left", "right"),
)


def asked(of: Picture, topic: str, rounds: int = 400) -> dict[str, str]:
    rng, view, found = np.random.default_rng(0), further.View(of), {}
    for _ in range(rounds):
        if (one := further.ask(rng, view, topic)) is not None:
            assert found.setdefault(one.question, one.answer) == one.answer, "one question, two answers"
    return found


@pytest.mark.parametrize(
    ("of", "topic", "question", "answer"),
    [
        (SHAPES, "color", "What color is the square?", "The rectangle is red."),
        (SHAPES, "color", "What color is the circle?", "There is no circle."),
        (SHAPES, "where", "Where is the star?", "The star is on the right."),
        (SHAPES, "what at", "What is in the upper left?", "It is a red rectangle."),
        (SHAPES, "what at", "What is at the bottom?", "There is nothing."),
        (SHAPES, "background", "What is in the background?", "The background is green."),
        (SHAPES, "shapes", "What shapes are there?", "I see a red rectangle and a blue star."),
        (SHAPES, "read", "What does it say?", "There is no text."),
        (SHAPES, "relative", "Is the star left of the rectangle?", "No."),
        (FRUIT, "sum", "How many apples and bananas in total?", "There are 3."),
        (FRUIT, "count", "How many bananas?", "There is 1 banana."),
        (FRUIT, "color", "What color are the apples?", "The apples are red."),
        (FRUIT, "compared", "More apples or bananas?", "There are more apples."),
        (FRUIT, "shapes", "What shapes are there?", "There are no shapes."),
        (SHAPES, "at place", "Is the star on the right?", "Yes."),
        (SHAPES, "at place", "Is the star at the left?", "No, the star is on the right."),
        (SHAPES, "at place", "Is the rectangle at the top?", "Yes."),
        (SHAPES, "color at", "What color is the shape in the upper left?", "It is red."),
        (SHAPES, "same color", "Are they the same color?", "No, the rectangle is red and the star is blue."),
        (FRUIT, "kind count", "How many fruits are there?", "There are 3."),
        (FRUIT, "kind count", "How many animals are there?", "There are no animals."),
        (FRUIT, "sorts", "How many kinds of things are there?", "There are 2."),
        (PAIR, "there at", "Is there a cat on the left?", "Yes."),
        (PAIR, "there at", "Is there a dog on the left?", "No, it is a cat."),
    ],
)
def test_questions_beside_the_trained_forms_have_the_right_answer(of, topic, question, answer):
    assert asked(of, topic, 3000)[question] == answer


def test_a_star_among_things_is_not_taken_for_a_shape():
    of = picture("counting", [Box("star", None, 2, 2, 18, 18), Box("star", None, 40, 2, 58, 18)])
    assert not further.View(of).shapes
    assert asked(of, "which color") == {}
    assert asked(of, "sorts")["How many kinds of things are there?"] == "There is 1."


def test_other_words_ask_the_same():
    rng = np.random.default_rng(0)
    asks = ("Does it say STOP?", "How many apples are there?", "What color is the cat?", "Is there a dog?", "Spell it.")
    for question, kept in zip(asks, ("STOP", "apples", "cat", "dog", "pell it"), strict=True):
        found = {reword(rng, question) for _ in range(2000)}
        assert len(found) > 100
        told = sum(kept in one for one in found) / len(found)
        assert told == 1 if kept.isupper() else told > 0.7, "but for a slip in a letter now and then"
    found = {reword(rng, "What color is the cat?") for _ in range(3000)}
    assert {"Do you know what color the cat is?", "what color is the cat", "Which color is the cat?"} <= found
    found = {reword(rng, "How many birds do you see?") for _ in range(3000)}
    assert "Can you tell me how many birds you see?" in found
    assert "How many birds can you spot?" in found


def test_what_a_picture_cannot_tell_is_not_told():
    of = picture("naming", [Box("turtle", "green", 10, 10, 50, 50, ("green",))])
    found = asked(of, "untold", 3000)
    assert len(found) > 300
    assert set(found.values()) == {CANNOT_TELL}
    assert any(re.fullmatch("How many eyes does (it|the turtle) have[?]", question) for question in found)
    assert asked(of, "color", 2000)["What color is it?"] == "It is green."


@needs_art
def test_every_question_has_one_answer_that_the_picture_bears_out():
    """Numbers, colors and yes or no, against the boxes, over pictures of every kind."""
    rng, checked = np.random.default_rng(6), 0
    for _ in range(400):
        of = sample_picture(rng, tuple(art.TRAIN_STYLES), LEARNED, MIX, SMALL)
        names = [box.what for box in of.boxes] if not of.text else []
        for question, answer in further.about(rng, of, 8):
            if found := re.fullmatch(r"There (?:is|are) (\d) (.*)\.", answer):
                nouns = {name: {name, plural(name)} for name in {*names}}
                if counted := [name for name, forms in nouns.items() if found[2] in forms]:
                    assert names.count(counted[0]) == int(found[1]), (question, answer, names)
                    checked += 1
            elif found := re.fullmatch(r"There are no (.*)\.", answer):
                assert found[1] not in {plural(name) for name in names}
            elif (found := re.fullmatch(r"The (.*) is (\w+)\.", answer)) and found[2] in paint.COLORS:
                if found[1] == "background":
                    assert of.background == found[2]
                else:
                    meant = {box.color for box in of.boxes if the(box.what) == f"the {found[1]}"}
                    assert found[2] in meant or of.text, (question, answer)
                    checked += 1
    assert checked > 150


@needs_art
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_talk_shows_its_pictures_once_and_in_order(count):
    rng = np.random.default_rng(count)
    for _ in range(150):
        shown = [sample_picture(rng, tuple(art.TRAIN_STYLES), LEARNED, MIX, SMALL) for _ in range(count)]
        chat = talks.talk(rng, shown, 6)
        images = [id(image) for turn in chat.turns for image in turn[0]]
        assert images == [id(entry.image) for entry in shown]
        assert 2 <= len(chat.turns) <= 7
        for n, (_, question, answer) in enumerate(chat.turns):
            assert question
            assert answer
            if answer.startswith("The second one") or "in the second picture" in question:
                assert sum(len(turn[0]) for turn in chat.turns[: n + 1]) >= 2


def test_a_picture_is_found_by_what_it_shows():
    rng = np.random.default_rng(9)
    one, two = (picture("naming", [Box(name, None, 5, 5, 60, 60)]) for name in ("cat", "bus"))
    said = {}
    for _ in range(2000):
        said |= {question: answer for _, question, answer in talks.talk(rng, [one, two], 6).turns}
    assert said["Which picture shows a bus?"] == "The second one."
    assert said["How many pictures are there?"] == "There are 2 pictures."
    assert said["What is in the first picture?"] == "It is a cat."


def test_synonyms_name_one_thing_each():
    every = [word for words in synonyms.THINGS.values() for word in words]
    assert len(every) == len(set(every))
    assert not set(every) & set(art.THINGS)
    assert set(synonyms.THINGS) <= set(art.THINGS)
    assert set(synonyms.SHAPES) == set(render.SHAPES)
    assert set(synonyms.PLACES) == set(render.PLACES.values())


@pytest.mark.parametrize(("name", "rgb"), paint.COLORS.items())
def test_colors_are_called_by_their_names(name, rgb):
    plain = Image.new("RGBA", (8, 8), (*rgb, 255))
    assert paint.colors_of(plain) == (name,)


def test_lines_do_not_count_as_a_color_and_halves_do():
    drawing = np.zeros((10, 10, 4), np.uint8)
    drawing[..., 3] = 255
    drawing[:4, :, :3] = paint.COLORS["red"]
    drawing[4:7, :, :3] = paint.COLORS["white"]
    assert paint.colors_of(Image.fromarray(drawing)) == ("red", "white")
    drawing[4:7, :, :3] = paint.COLORS["red"]
    assert paint.colors_of(Image.fromarray(drawing)) == ("red",)


def test_another_style_keeps_size_and_form():
    rng = np.random.default_rng(0)
    disc = np.zeros((40, 40, 4), np.uint8)
    y, x = np.mgrid[:40, :40]
    disc[(y - 20) ** 2 + (x - 20) ** 2 < 200] = (200, 60, 60, 255)
    looks = set()
    for _ in range(100):
        out = paint.restyle(rng, Image.fromarray(disc))
        assert out.size == (40, 40)
        assert out.mode == "RGBA"
        covered = np.asarray(out)[..., 3] > 128
        assert covered[20, 20]
        assert not covered[0, 0]
        looks.add(out.tobytes())
    assert len(looks) > 70


def test_small_letters_are_as_small_as_promised_and_in_the_picture():
    rng = np.random.default_rng(0)
    heights = []
    for _ in range(200):
        _, facts = lettering.draw_text(rng, "HEN", small=1.0)
        boxes = facts["boxes"]
        heights.append(boxes[0].bottom - boxes[0].top)
        assert all(-1 <= box.left < box.right <= render.SIZE + 1 for box in boxes)
        assert all(-1 <= box.top < box.bottom <= render.SIZE + 1 for box in boxes)
    assert min(heights) < render.SIZE / 6
    assert max(heights) > render.SIZE / 4
    assert text_picture(rng, ["HEN"], made_up=0.0, small=1.0).text in {"HEN", *map(str, range(10_000))}


# ---------------------------------------------------------------------------------------------- evaluation's free chats


def test_there_are_two_hundred_free_chats_of_several_turns():
    found = free_chats.load()
    assert len(found) == 200
    assert all(2 <= len(chat.turns) <= 6 for chat in found)
    assert max(sum(len(turn.scenes) for turn in chat.turns) for chat in found) == 3
    assert all(turn.accepted or turn.honest for chat in found for turn in chat.turns)
    assert all(turn.question for chat in found for turn in chat.turns)


def test_tuning_chats_are_others():
    files = (free_chats.FILE, *free_chats.TUNING_FILES)
    assert [len(free_chats.load(file)) for file in files] == [200, 140, 240]
    exam, *tuning = (
        {turn.question.lower().strip("?.! ") for chat in free_chats.load(file) for turn in chat.turns} for file in files
    )
    assert all(len(exam & asked) < len(asked) / 10 for asked in tuning)


@needs_art
@pytest.mark.parametrize("ground", render.COLORS)
def test_letters_of_a_free_chat_can_be_told_from_the_ground(ground):
    drawn = np.asarray(free_chats.draw(np.random.default_rng(0), f'{ground}: "SUN"', "noto").convert("L"), np.int32)
    assert np.ptp(drawn) > 50


@pytest.mark.timeout(900)  # the first to want the art, which takes some minutes where it was never drawn
@pytest.mark.parametrize("file", [free_chats.FILE, *free_chats.TUNING_FILES])
def test_free_chats_are_drawn_and_named_as_they_say(file):
    for chat in free_chats.load(file):
        for turn in chat.turns:
            drawn = chat.pictures(turn)
            assert [entry.size for entry in drawn] == [(256, 256)] * len(turn.scenes)
            assert [entry.tobytes() for entry in drawn] == [entry.tobytes() for entry in chat.pictures(turn)]


@needs_art
@pytest.mark.parametrize(("place", "column", "row"), [("", 1, 1), (" top right", 2, 0), (" left", 0, 1)])
def test_a_lone_thing_lies_where_its_chat_says(place, column, row):
    picture = free_chats.draw(np.random.default_rng(0), f"white: cat{place}", "noto")
    ys, xs = np.nonzero(np.asarray(picture).min(-1) < 200)
    assert (int(xs.mean() * 3 / picture.width), int(ys.mean() * 3 / picture.height)) == (column, row)


def test_free_chats_know_right_wrong_and_honest_answers():
    turn = free_chats.FreeTurn([], "What shapes?", [["circle", "star"], ["nothing"]], honest=False)
    assert free_chats.accepts(turn, "I see a blue star and a red circle.")
    assert not free_chats.accepts(turn, "I see a blue star.")
    assert not free_chats.accepts(turn, "I cannot tell.")
    legs = free_chats.FreeTurn([], "How many legs?", [["4"]], honest=True)
    assert free_chats.accepts(legs, "I cannot tell.")
    assert free_chats.accepts(legs, "There are 4.")
    assert not free_chats.accepts(legs, "There are 14.")
    assert not free_chats.accepts(legs, "There is 1 turtle.")


def test_training_reads_no_free_chats():
    """Their file and the judge are known to what asks a model, and to nothing that draws or trains."""
    folder = free_chats.FILE.parent
    names = ("free_chats", "tuning_chats", "strangers")
    readers = {path.name for path in folder.glob("*.py") if any(n in path.read_text(encoding="utf-8") for n in names)}
    assert {"free_chats.py", "asking.py"} <= readers <= {"free_chats.py", "asking.py", "skills.py", "__init__.py"}
