"""Free chats: questions of every skill in any order, over several turns and up to three pictures.

`talk(rng, pictures, turns)`: such a chat. "it" is what the last answer spoke of, a short question goes on with the last
one, and a question that names no picture is about the one shown last.
"""

import numpy as np

from . import albums, follow_ups, small_talk, spoken
from .albums import ORDER
from .chats import UNKNOWN, Chat, casual
from .further import Ask, View, absent, ask, called, color_of_it, describe, the_word
from .pictures import Picture
from .questions import _AT
from .render import pick
from .wording import COUNTABLE, a, plural, sentence, the, there_are

_NUMBERS = ("one", "two", "three")


class _Talk:
    """A chat as it goes on."""

    def __init__(self, rng: np.random.Generator, pictures: list[Picture]):
        self.rng = rng
        self.chat = Chat()
        self.views = [View(picture) for picture in pictures]
        self.shown = 0
        self.last: Ask | None = None  # the last question about the picture shown last
        self.asked: list[Ask] = []  # all about it so far
        self.album: albums.Album | None = None

    def _chance(self, share: float) -> bool:
        return self.rng.random() < share

    def say(self, question: str, answer: str, images: tuple = ()) -> None:
        self.chat.turns.append((list(images), casual(self.rng, question), answer))

    def tell(self, asked: Ask | None, images: tuple = (), of_one: bool = True) -> bool:
        """Adds a question, if there is one; `of_one`: about the picture shown last, not about several."""
        if asked is None or not asked.answer:
            return False
        self.say(asked.question, asked.answer, images)
        if not of_one:
            return True
        self.last = asked
        self.asked.append(asked)
        if self.album is not None:
            self.album.spoken_of, self.album.last, self.album.about = self.shown - 1, None, asked.about
        return True

    @property
    def view(self) -> View:
        return self.views[self.shown - 1]

    # ------------------------------------------------------------------ about the picture shown last

    def trained(self) -> Ask | None:
        """One of the forms of `questions`."""
        question, answer = pick(self.rng, self.view.picture.questions)
        return Ask(question, answer, about=self.view.single)

    def fresh(self, alone: bool) -> Ask | None:
        if self._chance(0.6):
            return spoken.ask(self.rng, self.view)
        asked = ask(self.rng, self.view)
        return None if asked is None or (alone and asked.question.startswith("And ")) else asked

    def short(self) -> Ask | None:
        """Goes on with the last question: "And the star?"."""
        if self.last is None or not self.last.short or not self.last.topic:
            return None
        asked = ask(self.rng, self.view, self.last.topic)
        if asked is None or not asked.short or asked.answer == self.last.answer:
            return None
        asked.question = asked.short if self._chance(0.35) else follow_ups.go_on(self.rng, asked.short)
        return asked

    def follow(self) -> Ask | None:
        """Leans on the last questions about this picture."""
        if self.last is None or not self.asked or self.asked[-1] is not self.last:
            return None
        return follow_ups.follow(self.rng, self.view, self.asked)

    def pronoun(self) -> Ask | None:
        """Asks about what the last answer spoke of."""
        view, rng = self.view, self.rng
        if self.last is None or self.last.about not in view.unique or view.picture.skill == "easy_vqa":
            return None
        if view.single or self._chance(0.7):
            return spoken.ask_of_it(rng, view, self.last.about, self.last.topic)
        name, topic = self.last.about, self.last.topic
        if topic not in ("where", "what at") and self._chance(0.5) and (place := view.place(name)):
            forms = ("Where is it?", "And where is it?", "Where?", "Where exactly?")
            return Ask(pick(rng, forms), f"It is {_AT[place]}.", about=name)
        if topic in ("color", "is color", "which color"):
            return None
        forms = ("What color is it?", "And what color is it?", "Which color does it have?", "What is its color?",
                 "What color?", "And its color?", "In what color?")  # fmt: skip
        return Ask(pick(rng, forms), color_of_it(view, name), about=name)

    def together(self) -> Ask | None:
        if self.last is None or self.last.topic != "count" or len(self.view.counts) < 2:
            return None
        forms = ("And together?", "And in total?", "How many is that together?", "And all together?")
        return Ask(pick(self.rng, forms), f"There are {len(self.view.boxes)}.")

    # ------------------------------------------------------------------ about several pictures

    def _called(self, n: int) -> str:
        """A name for a picture."""
        order = "last" if n == len(self.views) - 1 == self.shown - 1 and self._chance(0.2) else ORDER[n]
        forms = (f"the {order} picture", f"the {order} image", f"the {order} one", f"picture {_NUMBERS[n]}",
                 f"the {order} picture", f"picture {n + 1}")  # fmt: skip
        return pick(self.rng, forms)

    def numbered(self) -> Ask | None:
        """Asks about one of the pictures by its number."""
        rng = self.rng
        n = int(rng.integers(self.shown))
        view, called = self.views[n], self._called(n)
        if self._chance(0.5):
            forms = (f"What is in {called}?", f"What does {called} show?", f"What do you see in {called}?",
                     f"And what is in {called}?", f"Describe {called}.", f"What was in {called}?",
                     f"Tell me what is in {called}.", f"What can you see in {called}?")  # fmt: skip
            return Ask(pick(rng, forms), describe(view))
        asked = ask(rng, view)
        if asked is None or not asked.named or "picture" in asked.question or "image" in asked.question:
            return None
        question, mark = asked.question[:-1], asked.question[-1]
        if question.startswith(("And ", "I ")) or mark not in "?.":
            return None
        if self._chance(0.25):
            question = f"In {called}, {question[0].lower()}{question[1:]}{mark}"
        else:
            question = f"{question} in {called}{mark}"
        return Ask(question, asked.answer)

    def several(self) -> Ask | None:
        """Asks about several pictures in people's own words."""
        rng, views = self.rng, self.views[: self.shown]
        n = int(rng.integers(self.shown))
        view, pic = views[n], self._called(n)
        choice = rng.random()
        if choice < 0.28:
            return Ask(spoken.say(rng, "pic what", pic=pic), spoken.tell(view))
        if choice < 0.4:
            grounds = [view.picture.background for view in views]
            ground = grounds[n]
            if choice < 0.34 or not ground or grounds.count(ground) > 1 or len(views) < 2:
                said = f"The background is {ground or 'colorful'}."
                return Ask(spoken.say(rng, "pic background", pic=pic), said) if view.known else None
            return Ask(spoken.say(rng, "which pic background", color=ground), f"The {ORDER[n]} one.")
        if len(views) < 2:
            return None
        if choice < 0.45:
            return Ask(spoken.say(rng, "pics count"), f"There are {len(views)} pictures.")
        if choice < 0.52:
            if not all(view.single and not view.shapes for view in views):
                return None
            told = [f"the {order} is {a(view.single)}" for order, view in zip(ORDER, views, strict=False)]
            return Ask(spoken.say(rng, "pics what"), sentence(", ".join(told[:-1]) + " and " + told[-1]))
        if choice < 0.57:
            if not all(view.single for view in views) or len(views) > 2:
                return None
            return Ask(spoken.say(rng, "pics same"), "Yes." if views[0].single == views[1].single else "No.")
        if choice < 0.61 and len(views) == 2:
            one, other = (view.picture.background for view in views)
            same = "Yes." if one == other else "No."
            return Ask(spoken.say(rng, "pics same background"), same) if one and other else None
        names = sorted({name for view in views for name in view.named})
        if not names:
            return None
        name = absent(rng, view) if choice < 0.75 and self._chance(0.4) else pick(rng, names)
        word = called(rng, view, name, alone=False)
        where = [order for order, view in zip(ORDER, views, strict=False) if name in view.named]
        if choice < 0.65:
            answer = f"Yes, in the {where[0]} one." if len(where) == 1 else "" if where else "No."
            return Ask(spoken.say(rng, "any pic", a=a(word)), answer)
        if choice < 0.75:
            return Ask(spoken.say(rng, "pic exists", a=a(word), pic=pic), "Yes." if name in view.named else "No.")
        if choice < 0.85 and len(where) == 1:
            if self._chance(0.3):
                (of,) = (view for view in views if name in view.named)
                said = f"The background is {of.picture.background or 'colorful'}."
                return Ask(spoken.say(rng, "background of", the=the_word(word)), said)
            return Ask(spoken.say(rng, "which pic", a=a(word)), f"The {where[0]} one.")
        if name not in COUNTABLE:
            return None
        if choice < 0.88:
            most = sorted(range(len(views)), key=lambda n: -views[n].counts[name])
            if views[most[0]].counts[name] == views[most[1]].counts[name]:
                return None
            return Ask(spoken.say(rng, "which pic more", things=plural(word)), f"The {ORDER[most[0]]} one.")
        if choice < 0.94:
            n = view.counts[name]
            said = there_are(n, name) if n else f"There are no {plural(name)}."
            return Ask(spoken.say(rng, "pic count", things=plural(word), pic=pic), said)
        total = sum(view.counts[name] for view in views)
        said = f"There {'is' if total == 1 else 'are'} {total}."
        return Ask(spoken.say(rng, "pics sum", things=plural(word)), said)

    def which(self) -> Ask | None:
        """Asks which of the pictures shows something, how many there are, and what they show."""
        rng, views = self.rng, self.views[: self.shown]
        if len(views) < 2:
            return None
        choice = rng.random()
        if choice < 0.12:
            forms = ("How many pictures are there?", "How many pictures do you see?", "How many images are there?")
            return Ask(pick(rng, forms), f"There are {len(views)} pictures.")
        if choice < 0.35:
            if not all(view.picture.skill == "naming" and view.single for view in views):
                return None
            told = [f"the {order} is {a(view.single)}" for order, view in zip(ORDER, views, strict=False)]
            forms = ("What do the pictures show?", "What is in the pictures?", "What are these?", "Describe all.",
                     "What do you see in the pictures?")  # fmt: skip
            return Ask(pick(rng, forms), sentence(", ".join(told[:-1]) + " and " + told[-1]))
        if choice < 0.45:
            if not all(view.single for view in views) or len(views) > 2:
                return None
            forms = ("Are they the same?", "Do both show the same?", "Is it the same in both pictures?")
            return Ask(pick(rng, forms), "Yes." if views[0].single == views[1].single else "No.")
        names = {name for view in views for name in view.named}
        if not names:
            return None
        name = pick(rng, sorted(names))
        where = [order for order, view in zip(ORDER, views, strict=False) if name in view.named]
        if len(where) != 1:
            return None
        if choice < 0.6:
            forms = (f"Is there {a(name)} in one of the pictures?", f"Does any picture show {a(name)}?",
                     f"Do you see {a(name)} in any of them?")  # fmt: skip
            return Ask(pick(rng, forms), f"Yes, in the {where[0]} one.")
        forms = (f"Which picture shows {a(name)}?", f"In which picture is {the(name)}?", f"Which one shows {a(name)}?",
                 f"Where do you see {a(name)}, in the first or the second picture?", f"Which picture has {a(name)}?",
                 f"Which of the pictures shows {the(name)}?", f"In which one is {the(name)}?")  # fmt: skip
        return Ask(pick(rng, forms), f"The {where[0]} one.")

    def of_several(self) -> Ask | None:
        choice = self.rng.random()
        if self.album is not None and choice < 0.68:
            return albums.ask(self.rng, self.album, spoken.tell)
        asked = self.several() if choice < 0.87 else self.which() if choice < 0.92 else self.numbered()
        if asked is not None and asked.answer and self.album is not None:
            self.album.last, self.album.about = None, ""
            self.album.spoken_of = self._answered(asked.answer)
        return asked

    def _answered(self, answer: str) -> int | None:
        """Which picture an answer names."""
        named = [n for n, order in enumerate(ORDER) if f" {order} one." in answer]
        return named[0] if len(named) == 1 else None

    # ------------------------------------------------------------------ turns

    def show(self, count: int) -> None:
        """Shows the next pictures with a question."""
        several = count > 1
        self.shown += count
        images = tuple(view.picture.image for view in self.views[self.shown - count : self.shown])
        self.last, self.asked = None, []
        if self.shown > 1:
            self.album = albums.Album(self.views[: self.shown], together=several)
        for _ in range(12):
            if several:
                asked = self.of_several()
            elif self.shown > 1 and self._chance(0.3):
                forms = ("And this?", "And this one?", "What about this one?", "And what is this?", "And here?")
                this = pick(self.rng, forms) if self._chance(0.4) else spoken.say(self.rng, "and this")
                asked = Ask(this, spoken.tell(self.view), about=self.view.single)
            elif self._chance(0.25):
                asked = self.trained()
            else:
                asked = self.fresh(alone=True)
            if self.tell(asked, images, of_one=not several):
                return
        self.tell(Ask(*self.view.picture.questions[0]), images)

    def turn(self, together: bool) -> None:
        """Adds one more question."""
        rng = self.rng
        for _ in range(12):
            choice = rng.random()
            if choice < 0.06:
                return self.say(*small_talk.aside(rng))
            if choice < 0.07:
                return self.say(spoken.say(rng, "do it"), UNKNOWN)
            if choice < 0.08 and self.chat.turns:
                return self.say(spoken.say(rng, "repeat"), self.chat.turns[-1][2])
            if choice < 0.12 and self.chat.turns and not self.chat.turns[-1][2].startswith("Yes"):
                sure = pick(rng, ("Are you sure?", "Really?", "Is that right?"))
                sure = sure if self._chance(0.4) else spoken.say(rng, "sure")
                return self.say(sure, "Yes. " + self.chat.turns[-1][2])
            if self.shown > 1 and (together or choice < 0.45):
                asked = self.of_several()
                if asked is not None and asked.answer:
                    self.last = None
                    return self.say(asked.question, asked.answer)
                continue
            asked = (
                self.trained() if choice < 0.17
                else (self.short() or self.together()) if choice < 0.33
                else self.pronoun() if choice < 0.51
                else self.follow() if choice < 0.68
                else self.fresh(alone=False)
            )  # fmt: skip
            if (
                asked is not None
                and not (self.chat.turns and asked.question == self.chat.turns[-1][1])
                and self.tell(asked)
            ):
                return None
        return None


def talk(rng: np.random.Generator, pictures: list[Picture], turns: int) -> Chat:
    """Returns a chat about one to three pictures, shown together or one after the other.

    Args:
        rng: source of chance.
        pictures: what is shown.
        turns: how many questions; a few less where there is nothing more to ask.
    """
    going = _Talk(rng, pictures)
    if rng.random() < 0.06:
        going.say(*small_talk.greeting(rng))
    together = len(pictures) > 1 and rng.random() < 0.4
    going.show(len(pictures) if together else 1)
    for n in range(1, turns):
        left = turns - n
        waiting = len(pictures) - going.shown
        if waiting and (left <= waiting or rng.random() < 0.45):
            going.show(1)
        else:
            going.turn(together)
    return going.chat
