"""What is asked next leans on what was said before, about one picture or several, and its answer is true.

Run with: python -m pytest tests/test_demo_talks.py
"""

import itertools

import numpy as np
import pytest

from demo import albums, data, follow_ups, free_chats, further, spoken, talks
from demo.chats import UNKNOWN
from demo.further import Ask
from demo.pictures import Picture
from demo.render import Box
from demo.untold import CANNOT_TELL
from tests.demo_pictures import needs_art, picture, thing

PAIR = picture("scene", [thing("cat", 0, 0, "orange"), thing("bus", 2, 1, "red")], "pink")
CACTUS = picture("naming", [Box("cactus", "green", 8, 8, 58, 58, ("green",))], "blue")
FRUIT = picture("counting", [*(thing("apple", x, 0, "red") for x in range(3)), thing("banana", 1, 2, "yellow")], "blue")


def following(of: Picture, *asked: Ask, rounds: int = 400) -> set[tuple[str, str]]:
    """The intents that follow on some questions, and their answers."""
    rng, view, found, said = np.random.default_rng(0), further.View(of), set(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow_ups, "say", lambda rng, intent, **slots: said.append(intent) or "?")
        for _ in range(rounds):
            if (one := follow_ups.follow(rng, view, list(asked))) is not None:
                found.add((said[-1], one.answer))
    return found


@pytest.mark.parametrize(
    ("of", "asked", "intent", "answer"),
    [
        (CACTUS, [Ask("Plant or animal?", "It is a plant.", about="cactus")], "which exactly", "It is a cactus."),
        (FRUIT, [Ask("How many fruits?", "There are 4.")], "which exactly many", None),
        (PAIR, [Ask("Is there an animal?", "Yes.", about="cat")], "which exactly", "It is a cat."),
        (CACTUS, [Ask("Is it red?", "No, it is green.", "is color", about="cactus")], "what then of", "It is green."),
        (CACTUS, [Ask("Is the background red?", "No, it is blue.", then="The background is blue.")], "what then",
         "The background is blue."),
        (PAIR, [Ask("Where is the cat?", "The cat is in the top left.", "where", about="cat")], "other bare",
         "It is on the right."),
        (PAIR, [Ask("What color is the cat?", "The cat is orange.", "color", about="cat")], "other bare", "It is red."),
        (PAIR, [Ask("What is in the top left?", "It is a cat.", "what at", about="cat")], "other bare", "It is a bus."),
        (FRUIT, [Ask("What is there most of?", "There are more apples.")], "how many those", "There are 3 apples."),
        (FRUIT, [Ask("How many?", "There are 3 apples.")], "color they", "They are red."),
        (FRUIT, [Ask("?", "There are 3 apples."), Ask("?", "There is 1 banana.")], "both numbers", "There are 4."),
        (FRUIT, [Ask("?", "There are 3 apples."), Ask("?", "There are no pears.")], "number difference",
         "There are 3 more."),
    ],
)  # fmt: skip
def test_a_question_leans_on_the_ones_before(of, asked, intent, answer):
    found = {told for name, told in following(of, *asked) if name == intent}
    assert found == ({answer} if answer else set())


def test_nothing_follows_where_the_turn_before_leads_nowhere():
    assert not following(CACTUS, Ask("What is it?", "It is a cactus.")) - {("how many those", "There is 1 cactus.")}
    assert not following(CACTUS, Ask("Where is it?", "It is in the middle.", "where", about="cactus"))
    assert not following(FRUIT, Ask("?", "There is no circle."), Ask("?", "There are 3 apples.", several="apple")) & {
        ("both numbers", "There are 3.")
    }


def test_a_short_question_keeps_what_it_asks_about():
    rng = np.random.default_rng(0)
    for short, words in (("And the star?", "the star"), ("What about apples?", "apples"), ("And red?", "red")):
        asked = {follow_ups.go_on(rng, short) for _ in range(200)}
        assert len(asked) > 20
        assert all(words in question.lower() for question in asked)
        assert not [question for question in asked if "And And" in question or "about what about" in question.lower()]


def asked_of_album(views: list[Picture], together: bool, rounds: int = 6000) -> dict[tuple, set[str]]:
    """Answers by intent and slots, over chats about some pictures."""
    rng, found, said = np.random.default_rng(0), {}, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(albums, "say", lambda rng, intent, **slots: said.append((intent, slots)) or "?")
        patch.setattr(albums, "picture_name", lambda rng, album, n, without="": f"<{n}>")
        patch.setattr(albums, "called", lambda rng, view, name, alone=True: name)
        album = albums.Album([further.View(one) for one in views], together)
        for _ in range(rounds):
            last = album.last
            before = (album.spoken_of, f"{last.topic} {last.several}".strip() if last else "", album.about)
            one = albums.ask(rng, album, spoken.tell)
            if one is not None:
                intent, slots = said[-1]
                leans = before if intent in ("other pic", "pic it", "it before", "go on") else ()
                found.setdefault((intent, *sorted(slots.items()), *leans), set()).add(one.answer)
    assert all(len(answers) == 1 for answers in found.values()), "one question, two answers"
    return {asked: answers.pop() for asked, answers in found.items()}


def test_several_pictures_are_compared():
    found = asked_of_album([FRUIT, PAIR], together=True)
    expected = {
        ("pics common",): "There is nothing.",
        ("which pic most",): "The first one.",
        ("pics kind each", ("a_kind", "a fruit"), ("kinds", "fruits")): "No.",
        ("pics kind any", ("a_kind", "an animal"), ("kinds", "animals")): "Yes, in the second one.",
        ("which pic kind", ("a_kind", "a vehicle")): "The second one.",
        ("pics kind sum", ("kinds", "fruits")): "There are 4.",
        ("pics all kind", ("kinds", "fruits")): "No.",
        ("pics total",): "There are 6.",
        ("pic the", ("pic", "<0>"), ("the", "the bus")): "No.",
        ("pic place", ("pic", "<1>"), ("the", "the bus")): "The bus is on the right.",
        ("pic color", ("pic", "<1>"), ("the", "the cat")): "The cat is orange.",
        ("pic what", ("pic", "<0>")): "I see 3 apples and 1 banana.",
        ("pic background", ("pic", "<1>")): "The background is pink.",
        ("pic count", ("pic", "<1>"), ("things", "apples")): "There are no apples.",
        ("untold two",): CANNOT_TELL,
        ("other pic", 0, "pic background", ""): "I see a bus and a cat.",
        ("go on", ("x", "in <1>"), 0, "pic background", ""): "The background is pink.",
        ("go on", ("x", "in <1>"), 0, "pic what", ""): "I see a bus and a cat.",
    }
    assert {asked: found.get(asked) for asked in expected} == expected


def test_the_later_picture_is_compared_with_the_one_before():
    word = picture("reading", [Box("H", "red", 2, 20, 20, 44)], text="HEN")
    cat, again = (
        picture("naming", [Box("cat", None, 24, y, 44, y + 16)], ground) for y, ground in ((2, "red"), (46, "blue"))
    )
    found = asked_of_album([cat, again], together=False)
    assert found["same again",] == "Yes."
    assert found["twice", ("a", "a cat")] == "Yes."
    assert found["pics common",] == "It is a cat."
    assert found["it before", 1, "", "cat"] == "It is at the top."
    assert found["pic it", ("pic", "<1>"), 0, "", "cat"] == "Yes."
    found = asked_of_album([CACTUS, cat], together=False)
    assert found["same again",] == found["twice", ("a", "a cat")] == "No."
    found = asked_of_album([word, cat], together=False)
    assert found["which pic text",] == "The first one."
    assert found["text again",] == "It says HEN."
    assert found["text length again", ("noun", "word"), ("units", "letters")] == "There are 3 letters."
    assert found["pic text", ("pic", "<0>")] == "It says HEN."
    short = picture("reading", [Box("4", "red", 2, 20, 20, 44)], text="47")
    found = asked_of_album([word, short], together=True)
    assert found["pic longer text",] == "The first one."
    assert found["pics say",] == "The first says HEN and the second says 47."
    found = asked_of_album([CACTUS, cat], together=False, rounds=20_000)
    assert found["which pic fact", ("third", "says meow")] == "The second one."
    assert asked_of_album([CACTUS, PAIR], together=False).get(("what is new",)) is None, "two are new"
    both = picture("scene", [thing("cactus", 0, 0, "green"), thing("bus", 2, 1, "red")])
    assert asked_of_album([CACTUS, both], together=False)["what is new",] == "It is a bus."


def test_a_picture_is_named_by_what_is_its_own():
    rng = np.random.default_rng(0)
    album = albums.Album([further.View(CACTUS), further.View(FRUIT), further.View(PAIR)], together=False)
    names = [{albums.picture_name(rng, album, n) for _ in range(600)} for n in range(3)]
    assert "the one with the pink background" in names[2]
    assert "the picture with the cactus" in names[0]
    assert not {name for name in names[0] | names[1] if "blue" in name}, "blue are two"
    assert not names[0] & names[1] | names[1] & names[2] | names[0] & names[2]
    hidden = {albums.picture_name(rng, album, 2, without="background") for _ in range(600)}
    assert not {name for name in hidden if "pink" in name}
    assert not {albums.picture_name(rng, album, 0, without="things") for _ in range(600)} & {
        "the picture with the cactus"
    }


def test_pictures_of_one_chat_are_often_akin():
    rng, akin = np.random.default_rng(0), 0
    drawn = [
        picture("naming", [Box(name, None, 5, 5, 60, 60)]) for name in ("cat", "dog", "bus", "apple", "pear", "violin")
    ]
    for _ in range(300):
        one, two = data._shown_together(rng, drawn, 2)
        assert one is not two
        names = {one.boxes[0].what, two.boxes[0].what}
        akin += names in ({"cat", "dog"}, {"apple", "pear"})
    assert 90 < akin < 220


def test_an_answer_is_repeated_and_what_cannot_be_done_is_not_promised():
    rng, said = np.random.default_rng(0), {"repeat": 0, "do it": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spoken, "say", lambda rng, intent, **slots: f"<{intent}>")
        patch.setattr(talks, "casual", lambda rng, question: question)
        for _ in range(400):
            turns = talks.talk(rng, [FRUIT], 6).turns
            for before, (_, question, answer) in itertools.pairwise(turns):
                if question == "<repeat>":
                    assert answer == before[2]
                if question == "<do it>":
                    assert answer == UNKNOWN
                if question[1:-1] in said:
                    said[question[1:-1]] += 1
    assert min(said.values()) > 5


@needs_art
def test_writing_on_black_is_to_be_seen():
    for ground, light in (("black", True), ("yellow", False)):
        drawn = np.asarray(free_chats.draw(np.random.default_rng(0), f'{ground}: "HELLO"', "noto"))
        assert (drawn.min(-1) > 200).any() == light
        assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 1
