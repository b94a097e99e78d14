"""Questions in people's own words ask what is meant, and their answers are true of the picture.

Run with: python -m pytest tests/test_demo_spoken.py
"""

import ast
import re
import string
from pathlib import Path

import numpy as np
import pytest

from demo import (
    albums,
    art,
    facts,
    finer,
    follow_ups,
    free_chats,
    further,
    phrasebook,
    render,
    small_talk,
    spoken,
    sprites,
    synonyms,
    talks,
)
from demo.pictures import (
    LEARNED,
    LEVEL,
    MIX,
    SMALL,
    Picture,
    pair_picture,
    sample_picture,
    scene_picture,
    twins_picture,
)
from demo.render import Box
from demo.untold import CANNOT_TELL, composed
from demo.wording import plural
from tests.demo_pictures import needs_art, picture, thing

CAT = picture("naming", [Box("cat", "orange", 8, 8, 58, 58, ("orange",))], "green")
SCENE = picture("scene", [thing("cat", 0, 0, "orange"), thing("banana", 1, 1, "yellow"), thing("bus", 2, 2)], "pink")
APPLES = picture("counting", [thing("apple", x, 0, "red") for x in range(3)], "blue")
MIXED = picture("counting", [thing("apple", 0, 0, "red"), thing("apple", 1, 0, "red"), thing("dog", 2, 2)])
SHAPES = picture("shapes", [thing("star", 0, 1, "blue"), thing("circle", 1, 1, "red"), thing("cross", 2, 1, "blue")])
DUO = picture("scene", [thing("dog", 0, 0), thing("cat", 2, 1)], "pink")
WORD = picture("reading", [Box("H", "red", 2, 20, 20, 44)], text="HEN")
NUMBER = picture("reading", [Box("4", "red", 2, 20, 20, 44)], text="474")
SAFARI = picture("scene", [thing("elephant", 0, 0), thing("mouse", 2, 1)], "pink")
DOZEN = picture("reading", [Box("1", "red", 2, 20, 20, 44)], text="12")
CORNER = picture("naming", [Box("eagle", "brown", 44, 2, 62, 20, ("brown",))], "green")
BIRDS = picture("counting", [thing("owl", 0, 0), thing("owl", 1, 0), thing("parrot", 2, 2, "red"), thing("key", 0, 2)])
DRINKS = picture("scene", [thing("milk", 0, 0, "white"), thing("hammer", 2, 2, "gray")], "pink")
TWINS = picture(
    "shapes",
    [thing("rectangle", 1, 0, "black"), thing("rectangle", 1, 2, "white"), thing("star", 0, 1, "white")],
    "pink",
)


def calls_of_say() -> dict[str, set[str]]:
    """The slots that the code fills, by the intent that it asks."""
    found: dict[str, set[str]] = {}
    for module in (spoken, finer, facts, follow_ups, albums, talks):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "say":
                if len(node.args) < 2:
                    continue  # a talk's own `say`
                slots = {keyword.arg for keyword in node.keywords if keyword.arg}
                slots |= {key.value for keyword in node.keywords if not keyword.arg for key in keyword.value.keys}
                intents = [part.value for part in ast.walk(node.args[1]) if isinstance(part, ast.Constant)]
                for intent in intents:
                    if isinstance(intent, str):
                        found.setdefault(intent, slots).intersection_update(slots)
    return found


def test_every_intent_is_asked_and_every_slot_filled():
    asked, book = calls_of_say(), phrasebook.phrases()
    assert set(book) <= set(asked)
    for intent, lines in book.items():
        assert len(lines) >= 10, intent
        for line in lines:
            slots = {slot for _, slot, _, _ in string.Formatter().parse(line) if slot is not None}
            assert slots <= asked[intent], (intent, line)
            assert bool(slots) == bool(asked[intent]), (intent, line)


def test_no_phrase_is_written_twice_in_an_intent():
    for intent, lines in phrasebook.phrases().items():
        plain = [re.sub(r"[^a-z0-9{} ]", "", line.lower()).strip() for line in lines]
        assert len(plain) == len(set(plain)), intent


def test_no_phrase_is_a_question_of_the_free_chats():
    """Written without them; short ones that anybody would type are alike."""
    plain = {re.sub(r"\W+", " ", turn.question.lower()).strip() for chat in free_chats.load() for turn in chat.turns}
    written = [*phrasebook.phrases().values(), *phrasebook.read("small_talk.txt").values()]
    written += [fact.asked for fact in facts.facts().values()]
    lines = [re.sub(r"\W+", " ", line.lower()).strip() for some in written for line in some]
    alike = [line for line in lines if line in plain]
    assert len(alike) < len(lines) / 50
    assert all(len(line.split()) <= 8 for line in alike)


def asked_of(of: Picture, intent: str, monkeypatch, rounds: int = 3000, until: tuple = ()) -> set[tuple]:
    """Slots and answers of an intent in so many rounds; in more, 30 times at most, if one waited for is not there."""
    said = []

    def say(rng, intent, **slots):
        said.append((intent, slots))
        return "?"

    for module in (spoken, finer, facts):
        monkeypatch.setattr(module, "say", say)
    rng, view, found = np.random.default_rng(0), further.View(of), set()
    for n in range(30 * rounds):
        if n >= rounds and (not until or until in found):
            break
        said.clear()
        asked = spoken.ask(rng, view)
        if asked is not None and said and said[-1][0] == intent:
            found.add((*sorted(said[-1][1].items()), asked.answer))
    return found


@pytest.mark.parametrize(
    ("of", "intent", "slots", "answer"),
    [
        (CAT, "what", {}, "It is a cat."),
        (CAT, "claim one", {"a": "a cat"}, "Yes, it is a cat."),
        (CAT, "sort of thing", {}, "It is an animal."),
        (CAT, "anything else", {}, "No."),
        (SCENE, "besides", {"the": "the cat"}, "I see a banana and a bus."),
        (SHAPES, "color the", {"the": "the triangle"}, "There is no triangle."),
        (CAT, "color it", {}, "It is orange."),
        (CAT, "where it", {}, "It is in the middle."),
        (CAT, "edible", {}, "No, it is a cat."),
        (CAT, "exists", {"a": "a cat"}, "Yes, I see a cat."),
        (CAT, "is background", {"color": "green"}, "Yes."),
        (CAT, "is background", {"color": "red"}, "No, it is green."),
        (SCENE, "what several", {}, "I see a banana, a bus and a cat."),
        (SCENE, "where the", {"the": "the cat"}, "The cat is in the top left."),
        (SCENE, "what at", {"place": "in the center"}, "It is a banana."),
        (SCENE, "what at", {"place": "in the upper right"}, "There is nothing."),
        (SCENE, "empty at", {"place": "in the upper right"}, "Yes."),
        (SCENE, "anything at", {"place": "in the center"}, "Yes."),
        (SCENE, "between", {"the": "the cat", "the2": "the bus"}, "It is a banana."),
        (SCENE, "what left of", {"side": "left of", "the": "the banana"}, "It is a cat."),
        (SCENE, "is left of", {"side": "above", "the": "the bus", "the2": "the cat"}, "No."),
        (SCENE, "which side", {"the": "the bus"}, "It is on the right."),
        (SCENE, "at place", {"place": "at the center", "the": "the bus"}, "No, the bus is in the bottom right."),
        (SCENE, "all same", {}, "No."),
        (APPLES, "take away", {"n": "two"}, "There is 1 left."),
        (APPLES, "all same", {}, "Yes."),
        (APPLES, "color they", {}, "They are red."),
        (APPLES, "count claim", {"n things": "three apples"}, "Yes."),
        (APPLES, "count claim", {"n things": "2 apples"}, "No, there are 3 apples."),
        (MIXED, "total", {}, "There are 3."),
        (MIXED, "sum", {"things": "apples", "others": "dogs"}, "There are 3."),
        (MIXED, "more of", {"things": "dogs", "others": "apples"}, "There are more apples."),
        (APPLES, "what and how many", {}, "There are 3 apples."),
        (MIXED, "total claim", {"n": "five"}, "No, there are 3."),
        (MIXED, "more than", {"n": "1", "things": "apples"}, "Yes."),
        (MIXED, "more than", {"n": "2", "things": "apples"}, "No."),
        (MIXED, "as many", {"things": "apples", "others": "dogs"}, "No."),
        (CAT, "ground same", {}, "No, it is orange."),
        (CAT, "is at", {"place": "at the center"}, "Yes."),
        (WORD, "start with", {"letter": "H"}, "Yes."),
        (WORD, "end with", {"letter": "E"}, "No."),
        (WORD, "letter after", {"letter": "H"}, "It is E."),
        (SHAPES, "which is color", {"color": "red"}, "The circle is red."),
        (SHAPES, "same color", {"the": "the star", "the2": "the cross"}, "Yes."),
        (SHAPES, "same shape", {}, "No."),
        (SHAPES, "colors", {}, "I see red and blue."),
        (WORD, "read", {}, "It says HEN."),
        (WORD, "has letter", {"letter": "E"}, "Yes."),
        (WORD, "letter at", {"nth": "middle", "unit": "letter"}, "It is E."),
        (WORD, "letter count", {"units": "letters", "unit": "letter"}, "There are 3 letters."),
        (WORD, "text color", {}, "It is red."),
        (SCENE, "any text", {}, "There is no text."),
        (CORNER, "has trait", {"does": "can fly"}, "Yes, it is an eagle."),
        (CORNER, "has trait", {"does": "is a drink"}, "No, it is an eagle."),
        (DRINKS, "which has trait", {"does": "is for drinking"}, "It is milk."),
        (DRINKS, "any trait", {"does": "has wheels"}, "No."),
        (CAT, "claim not", {"a": "a cat"}, "Yes, it is a cat."),
        (BIRDS, "of kind", {"kinds": "birds", "things": "owls"}, "There are 2 owls."),
        (BIRDS, "of kind not", {"kinds": "animals", "things": "owls"}, "There is 1."),
        (MIXED, "of them", {"things": "apples"}, "There are 2 apples."),
        (BIRDS, "kind count", {"kind": "bird", "kinds": "birds"}, "There are 3."),
        (MIXED, "once", {"kind": "thing"}, "It is a dog."),
        (MIXED, "more than once", {"kind": "thing"}, "There are 2 apples."),
        (MIXED, "n times", {"kind": "thing", "n": "two"}, "There are 2 apples."),
        (MIXED, "most of", {"kind": "thing", "kinds": "things"}, "There are more apples."),
        (MIXED, "least of", {"kind": "thing", "kinds": "things"}, "There are fewer dogs."),
        (MIXED, "are fewer", {"things": "dogs", "others": "apples"}, "Yes."),
        (MIXED, "are more", {"things": "dogs", "others": "apples"}, "No."),
        (MIXED, "difference", {"things": "apples", "others": "dogs"}, "There is 1 more."),
        (APPLES, "fewer than", {"n": "3", "things": "apples"}, "No."),
        (APPLES, "at least", {"n": "3", "things": "apples"}, "Yes."),
        (MIXED, "which is not", {"a": "an apple", "thing": "thing"}, "It is a dog."),
        (DUO, "n kinds", {"n": "2", "kinds": "animals"}, "I see a cat and a dog."),
        (MIXED, "rest", {"things": "apples"}, "There is a dog."),
        (SCENE, "extreme", {"most": "the leftmost"}, "It is a cat."),
        (SCENE, "extreme", {"most": "lowest down"}, "It is a bus."),
        (SCENE, "in order", {"way": "from right to left", "things": "things"}, "I see a bus, a banana and a cat."),
        (
            SHAPES,
            "in order",
            {"way": "from left to right", "things": "shapes"},
            "I see a blue star, a red circle and a blue cross.",
        ),
        (SCENE, "is higher", {"the": "the bus", "than": "higher", "the2": "the cat"}, "No."),
        (SCENE, "which is higher", {"the": "the bus", "than": "lower", "the2": "the cat"}, "It is a bus."),
        (SCENE, "which corner", {"the": "the bus"}, "The bus is in the bottom right."),
        (CORNER, "corner it", {}, "It is in the top right."),
        (SCENE, "opposite", {"the": "the cat"}, "It is a bus."),
        (SCENE, "opposite", {"the": "the bus"}, "It is a cat."),
        (CORNER, "opposite", {"the": "the eagle"}, "There is nothing."),
        (SCENE, "in a corner", {"the": "the banana"}, "No, the banana is in the middle."),
        (CORNER, "in a corner", {"the": "the eagle"}, "Yes."),
        (CORNER, "either place", {"one": "left", "two": "right"}, "It is in the top right."),
        (SHAPES, "color exists", {"color": "red"}, "Yes."),
        (DRINKS, "both colors", {}, "The hammer is gray and the milk is white."),
        (SHAPES, "color at", {"place": "at the center", "thing": "shape"}, "It is red."),
        (CAT, "around", {"the": "the cat"}, "The background is green."),
        (TWINS, "where the", {"the": "the black one"}, "The black rectangle is at the top."),
        (TWINS, "form colored", {"color": "black"}, "It is a black rectangle."),
        (TWINS, "is left of", {"the": "the black one", "side": "above", "the2": "the white rectangle"}, "Yes."),
        (TWINS, "at place", {"the": "the white star", "place": "at the top"}, "No, the star is on the left."),
        (WORD, "begins with which", {"unit": "letter"}, "It is H."),
        (WORD, "ends with which", {"unit": "letter"}, "It is N."),
        (WORD, "letter before", {"letter": "N", "unit": "letter"}, "It is E."),
        (WORD, "letter between", {"letter": "H", "letter2": "N", "unit": "letter"}, "It is E."),
        (WORD, "length claim", {"n": "four", "units": "letters"}, "No, there are 3 letters."),
        (NUMBER, "which twice", {"unit": "digit"}, "It is 4."),
        (NUMBER, "number bigger", {"n": "470"}, "Yes."),
        (NUMBER, "even or odd", {}, "It is even."),
        (NUMBER, "text or picture", {}, "It is a number."),
        (WORD, "letter times", {"letter": "E"}, "There is 1."),
        (WORD, "vowel count", {}, "There is 1."),
        (WORD, "is vowel", {"nth": "middle"}, "It is a vowel."),
        (WORD, "alphabet next", {"nth": "first"}, "It is I."),
        (WORD, "backwards", {}, "No."),
        (WORD, "reversed", {}, "N, E, H."),
        (WORD, "same letter ends", {}, "No."),
        (DOZEN, "number plus", {"n": "9"}, "It is 21."),
        (DOZEN, "number minus", {"n": "3"}, "It is 9."),
        (DOZEN, "number double", {}, "It is 24."),
        (DOZEN, "digit sum", {}, "It is 3."),
        (CAT, "fact claim", {"does": "say meow", "third": "says meow"}, "Yes, it is a cat."),
        (CAT, "fact claim", {"does": "have 2 legs", "third": "has 2 legs"}, "No, it is a cat."),
        (DUO, "fact which", {"third": "says woof"}, "It is a dog."),
        (CAT, "fact larger", {"a": "an elephant"}, "No, it is a cat."),
        (CAT, "fact larger", {"a": "a bee"}, "Yes, it is a cat."),
        (SAFARI, "fact which larger", {}, "It is an elephant."),
        (SAFARI, "fact which smaller", {}, "It is a mouse."),
    ],
)
def test_an_intent_is_answered_from_the_picture(of, intent, slots, answer, monkeypatch):
    expected = (*sorted(slots.items()), answer)
    found = asked_of(of, intent, monkeypatch, 6000, until=expected)
    assert expected in found
    assert len({said for *those, said in found if tuple(those) == tuple(sorted(slots.items()))}) == 1


def test_what_is_known_is_said_beside_that_the_picture_does_not_tell():
    rng, told = np.random.default_rng(0), set()
    for _ in range(400):
        if (asked := facts._open(rng, further.View(CAT))) is not None:
            told.add(asked.answer)
    assert {"I cannot tell.", "I cannot tell, but a cat says meow.", "I cannot tell, but a cat has 4 legs."} <= told
    assert all(answer.startswith("I cannot tell") for answer in told)


def test_no_fact_is_asked_of_what_might_share_it():
    """A dog and a cat have four legs both: which of them has is no question."""
    rng = np.random.default_rng(0)
    questions = [facts._which(rng, further.View(DUO)) for _ in range(3000)]
    for asked in filter(None, questions):
        assert not re.search("4 legs|fur", asked.question)


def test_no_fact_is_denied_that_somebody_might_defend(monkeypatch):
    monkeypatch.setattr(facts, "say", lambda rng, intent, does, third: third)
    rng, told = np.random.default_rng(0), {True: set(), False: set()}
    for _ in range(8000):
        if (asked := facts._claim(rng, further.View(CAT))) is not None:
            told[asked.answer.startswith("Yes")].add(asked.question)
    assert {"says meow", "has 4 legs", "lives in houses"} <= told[True]
    assert {"says moo", "has 2 legs", "lives in the sea"} <= told[False]
    assert not told[False] & {"lives on a farm", "lives in gardens", "eats fish", "eats insects"}


def test_the_table_of_facts_is_complete():
    table = facts.facts()
    assert set(facts.sizes()) == set(art.THINGS)
    assert set(facts.sizes().values()) <= set(range(1, 10))
    for name, fact in table.items():
        assert set(fact.of) <= set(art.THINGS), name
        assert fact.does.count("{x}") == fact.third.count("{x}") == 1, name
        assert len(fact.asked) >= 45, name
        assert all(known and all(known) for known in fact.of.values()), name


def test_small_talk_has_an_answer_for_each_intent_and_is_told_apart():
    book = phrasebook.read("small_talk.txt")
    assert set(book) == set(small_talk.ANSWERS)
    lines = [re.sub(r"\W+", " ", line.lower()).strip() for some in book.values() for line in some]
    assert len(lines) == len(set(lines)) > 1000
    rng, said = np.random.default_rng(0), set()
    for _ in range(2000):
        said |= {small_talk.greeting(rng)[1], small_talk.aside(rng)[1]}
        said |= {answer for _, _, answer in small_talk.without_picture(rng).turns}
    assert said >= set(small_talk.ANSWERS.values())


def test_remarks_ask_nothing_and_name_nothing_that_is_drawn():
    found = phrasebook.read("remarks.txt")
    assert len(found["before"]) > 800
    assert len(found["after"]) > 400
    drawn = {*art.THINGS, *map(plural, art.THINGS)}
    usual = {"book", "eye", "phone", "glasses", "bird", "train", "watch", "ring", "star", "bell", "fish", "eyes"}
    for line in [*found["before"], *found["after"]]:
        words = set(re.findall("[a-z]+", line.lower()))
        assert not words & (drawn - usual), line
        assert not words & set(render.COLORS), line


def test_of_several_pictures_each_is_told_apart(monkeypatch):
    said, found = [], set()

    def say(rng, intent, **slots):
        said.append((intent, *sorted(slots.items())))
        return "?"

    monkeypatch.setattr(spoken, "say", say)
    monkeypatch.setattr(spoken.synonyms, "THINGS", {})
    going = talks._Talk(np.random.default_rng(0), [APPLES, MIXED])
    going.shown = 2
    for _ in range(4000):
        said.clear()
        asked = going.several()
        if asked is not None and asked.answer:
            found.add((*said[-1], asked.answer))
    first, second = ("pic", "the first picture"), ("pic", "picture 2")
    assert {
        ("pic what", first, "I see 3 apples."),
        ("pic background", first, "The background is blue."),
        ("which pic background", ("color", "white"), "The second one."),
        ("pics count", "There are 2 pictures."),
        ("pics same background", "No."),
        ("any pic", ("a", "a dog"), "Yes, in the second one."),
        ("pic exists", ("a", "a dog"), first, "No."),
        ("pic exists", ("a", "a dog"), second, "Yes."),
        ("which pic", ("a", "a dog"), "The second one."),
        ("background of", ("the", "the dog"), "The background is white."),
        ("which pic more", ("things", "apples"), "The first one."),
        ("pic count", second, ("things", "apples"), "There are 2 apples."),
        ("pics sum", ("things", "apples"), "There are 5."),
    } <= found
    answers = {}
    for *asked, answer in found:
        assert answers.setdefault(tuple(asked), answer) == answer, "one question, two answers"


def test_it_is_what_was_spoken_of():
    rng, view = np.random.default_rng(0), further.View(SCENE)
    answers = {asked.answer for _ in range(400) if (asked := spoken.ask_of_it(rng, view, "banana", ""))}
    assert {"It is yellow.", "It is in the middle.", "Yes.", "It is a cat.", "It is a bus.", CANNOT_TELL} <= answers


@needs_art
def test_what_is_said_of_random_pictures_is_true():
    rng, checked = np.random.default_rng(3), 0
    for _ in range(300):
        of = sample_picture(rng, art.LEARNED_FROM, LEARNED, MIX, SMALL)
        names = [box.what for box in of.boxes] if not of.text else []
        for question, answer in spoken.about(rng, of, 8):
            if found := re.fullmatch(r"There (?:is|are) (\d) (\w.*)\.", answer):
                for name in {*names}:
                    if found[2] in (name, plural(name)):
                        assert names.count(name) == int(found[1]), (question, answer, names)
                        checked += 1
            elif found := re.fullmatch(r"The background is (\w+)\.", answer):
                assert found[1] == (of.background or "colorful")
            elif found := re.fullmatch(r"It says (\w+)\.", answer):
                assert found[1] == of.text
                checked += 1
    assert checked > 100


@needs_art
def test_each_thing_of_a_scene_has_a_place_of_its_own():
    rng = np.random.default_rng(0)
    for _ in range(200):
        of = scene_picture(rng, tuple(art.TRAIN_STYLES))
        cells = [render.place_of((b.left + b.right) / 128, (b.top + b.bottom) / 128) for b in of.boxes]
        assert 1 <= len(cells) <= 5
        assert len(cells) == len(set(cells))
        assert all(b.left >= 0 and b.top >= 0 and b.right <= 64 and b.bottom <= 64 for b in of.boxes)
        if len(of.boxes) == 2:
            one, two = of.boxes
            assert one.right <= two.left + 4 or two.right <= one.left + 4 or (
                one.bottom <= two.top + 4 or two.bottom <= one.top + 4
            )  # fmt: skip


def test_lines_are_painted_in_with_the_colors_behind_them():
    y, x = np.mgrid[:96, :96]
    far = np.hypot(x - 48, y - 48)
    lines = np.zeros((96, 96, 4), np.uint8)
    lines[far < 40] = (255, 255, 255, 255)
    lines[(far >= 36) & (far < 40)] = (0, 0, 0, 255)
    lines[(abs(x - 48) < 2) & (far < 40)] = (0, 0, 0, 255)  # two halves
    colored = np.zeros((96, 96, 4), np.uint8)
    colored[far < 44] = (200, 30, 30, 255)
    colored[(far < 44) & (x > 48)] = (30, 30, 200, 255)
    painted = sprites._painted(np.random.default_rng(1), lines, colored)
    assert tuple(painted[48, 30]) == (200, 30, 30, 255)
    assert tuple(painted[48, 66]) == (30, 30, 200, 255)
    assert painted[48, 48, :3].max() < 90
    assert painted[0, 0, 3] == 0
    lines[far < 38] = (0, 0, 0, 255)
    assert sprites._painted(np.random.default_rng(1), lines, colored) is None, "a silhouette encloses nothing"


@needs_art
def test_training_alone_draws_what_is_painted_and_of_no_held_out_style():
    assert art.PAINTED_STYLE in art.LEARNED_FROM
    assert art.PAINTED_STYLE not in art.TRAIN_STYLES
    drawn = sprites.load_sprites()
    assert len(drawn[art.PAINTED_STYLE]) > 180
    held_out = {**art.HELD_OUT_STYLE, **art.SECOND_HELD_OUT_STYLE}
    painted = sprites._paint({name: things for name, things in drawn.items() if name not in held_out})
    assert all(
        np.array_equal(a, b) for t in ("cat", "bus") for a, b in zip(painted[t], drawn["painted"][t], strict=True)
    )


@needs_art
def test_inked_drawings_are_the_trained_ones_with_dark_lines():
    assert art.INKED_STYLE in art.LEARNED_FROM
    assert set(art.INKED_STYLES) <= set(art.TRAIN_STYLES) - art.MONOCHROME_STYLES
    drawn = sprites.load_sprites()
    assert set(drawn[art.INKED_STYLE]) == set(art.THINGS)
    for name in ("pear", "pig", "key"):
        plain = [sprite for style in art.INKED_STYLES for sprite in drawn[style].get(name, ())]
        for before, after in zip(plain, drawn[art.INKED_STYLE][name], strict=True):
            black, solid = (
                [((sprite[..., 3] > 200) & (sprite[..., :3].max(-1) < most)).mean() for sprite in (before, after)]
                for most in (40, 256)
            )
            assert black[1] > black[0] + 0.05
            assert abs(solid[1] - solid[0]) < 0.15


OWL = picture("naming", [Box("owl", "brown", 8, 8, 58, 58, ("brown",))], "green")


def test_a_thing_is_of_its_wider_kind_too(monkeypatch):
    assert further.kinds_of("owl") == ["animal", "bird"]
    assert ((("a_kind", "a bird"), ("kind", "bird")), "Yes, it is an owl.") in {
        (tuple(found[:-1]), found[-1]) for found in asked_of(OWL, "is kind", monkeypatch, 12000)
    }
    chosen = asked_of(OWL, "either kind", monkeypatch, 12000)
    assert chosen
    for *slots, answer in chosen:
        asked = {dict(slots)["kind"], dict(slots)["other"]}
        assert len(asked & {"animal", "bird"}) == 1
        assert answer in ("It is an animal.", "It is a bird.")


def test_nobody_says_there_is_no_bird_where_an_owl_is():
    rng, view = np.random.default_rng(0), further.View(OWL)
    missing = {further.absent(rng, view) for _ in range(5000)}
    assert "parrot" in missing
    assert not missing & {"bird", "owl"}


@pytest.mark.parametrize(
    ("name", "trait", "expected"),
    [
        ("owl", "fly", True),
        ("penguin", "fly", None),
        ("hammer", "fly", False),
        ("shark", "swim", True),
        ("dog", "swim", None),
        ("coffee", "drink", True),
        ("cake", "food", True),
        ("cow", "food", None),
        ("bus", "roll", True),
        ("violin", "strings", True),
    ],
)
def test_what_everybody_knows_is_asked_and_what_is_doubted_is_not(name, trait, expected):
    assert finer.has_trait(name, trait) is expected


def test_traits_are_of_things_that_there_are():
    for ways, having, doubtful in synonyms.TRAITS.values():
        assert len(ways) >= 3
        assert {*having, *doubtful} <= set(art.THINGS)


def test_a_question_put_together_is_one_that_no_picture_answers():
    rng = np.random.default_rng(0)
    asked = {composed(rng, "the cat") for _ in range(3000)}
    assert len(asked) > 1900
    assert not [question for question in asked if re.match(r"(what color|where is|how many cats|is there)\b", question)]
    plural_ = {composed(rng, "the ducks", alone=False) for _ in range(2000)}
    assert not [question for question in plural_ if re.search(r"\b(does|is|was|has) the ducks\b", question)]
    told = [question for question in asked if "the cat" not in question]
    assert len(told) < len(asked) / 10


def test_a_color_names_a_shape_only_where_no_other_has_it():
    told = finer._told_by_color(further.View(TWINS))
    assert set(told) == {"black one", "black rectangle", "white rectangle", "white star"}
    assert told["black one"].color == "black"
    assert not finer._told_by_color(further.View(SCENE))


def test_twins_are_all_described_and_none_twice():
    assert further.describe(further.View(TWINS)) == "I see a black rectangle, a white rectangle and a white star."
    assert "which is color" not in intents_of(TWINS), "white is the color of two"
    assert "which is color" in intents_of(SHAPES), "red is that of one"
    rng, alike = np.random.default_rng(0), 0
    for _ in range(200):
        of = twins_picture(rng)
        looks = [box[:2] for box in of.boxes]
        assert 2 <= len(looks) == len(set(looks)) <= 4
        forms, colors = {what for what, _ in looks}, {color for _, color in looks}
        assert min(len(forms), len(colors)) < len(looks)
        alike += len(forms) < len(looks)
        assert of.background not in colors
    assert 60 < alike < 190


def intents_of(of: Picture) -> set[str]:
    rng, view, said = np.random.default_rng(0), further.View(of), set()
    with pytest.MonkeyPatch.context() as patch:
        for module in (spoken, finer):
            patch.setattr(module, "say", lambda rng, intent, **slots: said.add(intent) or "?")
        for _ in range(4000):
            spoken.ask(rng, view)
    return said


@needs_art
def test_things_of_a_kind_meet_in_training_and_not_in_the_exam():
    def kinds(alike: float) -> float:
        rng, shared = np.random.default_rng(0), 0
        for _ in range(150):
            names = {box.what for box in scene_picture(rng, tuple(art.TRAIN_STYLES), alike=alike).boxes}
            kinds = [art.KIND_OF[name] for name in names if art.KIND_OF[name] not in ("thing", "animal")]
            shared += len(kinds) > len(set(kinds))
        return shared / 150

    assert kinds(0.9) > 0.4 > 0.15 > kinds(0.0)


@needs_art
def test_two_things_side_by_side_stand_level_in_training():
    rng, slopes = np.random.default_rng(0), []
    for _ in range(150):
        of = pair_picture(rng, tuple(art.TRAIN_STYLES), level=LEVEL)
        one, two = of.boxes
        across = 3 if of.sides[0] == "left" else 2
        slopes.append(abs(one[across] - two[across]))
        assert two[across] >= 0
        assert two[across + 2] <= 64
    assert 8 < max(slopes) <= LEVEL
