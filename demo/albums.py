"""What is asked about several pictures, shown together or one after the other, in people's own words.

* `picture_name(rng, views, n, ...)`: a name for one of them: by number, by time, by background, by what it shows.
* `ask(rng, album)`: a question.
"""

from dataclasses import dataclass

import numpy as np

from . import facts, synonyms
from .further import Ask, View, absent, called, color_of_it, noun, the_word
from .phrasebook import say
from .questions import _AT
from .render import by_weight, pick
from .untold import CANNOT_TELL
from .wording import COUNTABLE, a, plural, sentence, the, there_are

ORDER = ("first", "second", "third")
_NUMBERS = ("one", "two", "three")


@dataclass
class Album:
    """The pictures shown so far.

    Attributes:
        views: they themselves, in order.
        together: whether they came at once.
        spoken_of: number of the one that the last answer was about, None if there is none such.
        last: the last question about them.
        about: the one thing that the last answer spoke of.
    """

    views: list[View]
    together: bool
    spoken_of: int | None = None
    last: Ask | None = None
    about: str = ""


def picture_name(rng: np.random.Generator, album: Album, n: int, without: str = "") -> str:
    """Returns a name for a picture: by number, by time, by background, by what it shows.

    Args:
        rng: source of chance.
        album: the pictures.
        n: which one.
        without: "background" or "things" where a name by these would tell the answer.
    """
    views, last = album.views, len(album.views) - 1
    of, forms = ORDER[n], []
    pictures = ("picture", "image", "one", "pic", "photo")
    if rng.random() < 0.45:
        forms = [f"the {of} picture", f"the {of} image", f"the {of} one", f"picture {_NUMBERS[n]}", f"picture {n + 1}",
                 f"the {of}", f"picture number {_NUMBERS[n]}", f"image {n + 1}", f"the {of} of them"]  # fmt: skip
        return pick(rng, forms)
    if n == 1 and last == 2:
        forms += [f"the middle {pick(rng, pictures)}", "the middle one", "the one in between"]
    if n == last and last:
        forms += [f"the last {pick(rng, pictures)}", "the last of them"]
        if not album.together:
            forms += ["this one", "this picture", "the new one", "the new picture", "the latest picture",
                      "the current picture", "the one now", "the later picture"]  # fmt: skip
    if n == 0 and last:
        forms += ["the very first one", "the very first picture"]
        if not album.together:
            forms += ["the picture at the beginning", "the one I showed you first", "the picture I began with"]
    if n == last - 1 and not album.together:
        forms += ["the one before", "the picture before", "the previous picture", "the previous one",
                  "the picture before this one"]  # fmt: skip
        forms += ["the earlier picture", "the earlier one"] if last == 1 else []
    ground = views[n].picture.background
    alone = bool(ground) and ground != "pale" and sum(view.picture.background == ground for view in views) == 1
    if without != "background" and alone and rng.random() < 0.4:
        return pick(rng, (f"the one with the {ground} background", f"the {ground} picture", f"the {ground} one",
                          f"the picture with the {ground} background", f"the picture on {ground}"))  # fmt: skip
    only = [] if _no_things(views[n]) else views[n].unique
    only = [name for name in only if sum(name in view.named for view in views) == 1]
    if without != "things" and only and rng.random() < 0.4:
        word = the_word(pick(rng, only))
        return pick(rng, (f"the picture with {word}", f"the one with {word}", f"the picture of {word}"))
    return pick(rng, forms) if forms else f"the {of} {pick(rng, pictures)}"


def _no_things(view: View) -> bool:
    """Whether shapes or letters are what a picture shows."""
    return view.shapes or bool(view.text) or view.picture.skill == "easy_vqa"


def _which(n: int) -> str:
    return f"The {ORDER[n]} one."


def _yes(there: list[int]) -> str:
    """Whether something is in any picture, and in which, if in one."""
    return f"Yes, in the {ORDER[there[0]]} one." if len(there) == 1 else "Yes." if there else "No."


def _other(rng, album, tell):
    if len(album.views) != 2 or album.spoken_of is None:
        return None
    other = 1 - album.spoken_of
    return Ask(say(rng, "other pic"), tell(album.views[other]), about=album.views[other].single), other


def _common(rng, album, tell):
    one, two = album.views[0], album.views[-1]
    if len(album.views) != 2 or not one.named or not two.named or one.shapes != two.shapes:
        return None
    both = [name for name in one.named if name in two.named]
    if len(both) > 1 or "easy_vqa" in (one.picture.skill, two.picture.skill):
        return None
    return Ask(say(rng, "pics common"), f"It is {a(both[0])}." if both else "There is nothing."), None


def _most(rng, album, tell):
    numbers = [len(view.boxes) for view in album.views]
    n = int(np.argmax(numbers))
    if numbers.count(numbers[n]) > 1 or any(view.text for view in album.views):
        return None
    return Ask(say(rng, "which pic most"), _which(n)), n


def _kind(rng, album) -> str:
    """A kind to ask for that nobody doubts of anything that is there; empty if there is none."""
    if any(_no_things(view) or not view.named for view in album.views):
        return ""
    kinds = list(synonyms.KINDS)
    there = [kind for kind in kinds for view in album.views if view.kinds(kind)]
    kind = pick(rng, there if there and rng.random() < 0.7 else kinds)
    doubtful = set(synonyms.DOUBTFUL.get(kind, ()))
    return "" if any(view.named.keys() & doubtful for view in album.views) else kind


def _kinds(rng, album, tell):
    if not (kind := _kind(rng, album)):
        return None
    views, slots = album.views, {"a_kind": a(kind), "kinds": synonyms.KINDS[kind]}
    where = [n for n, view in enumerate(views) if view.kinds(kind)]
    choice = rng.random()
    if choice < 0.25:
        return Ask(say(rng, "pics kind each", **{"a_kind": slots["a_kind"], "kinds": slots["kinds"]}),
                   "Yes." if len(where) == len(views) else "No."), None  # fmt: skip
    if choice < 0.5:
        return Ask(say(rng, "pics kind any", **{"a_kind": slots["a_kind"], "kinds": slots["kinds"]}), _yes(where)), (
            where[0] if len(where) == 1 else None)  # fmt: skip
    if choice < 0.7:
        if len(where) != 1:
            return None
        return Ask(say(rng, "which pic kind", a_kind=slots["a_kind"]), _which(where[0])), where[0]
    if choice < 0.85:
        n = sum(view.counts[name] for view in views for name in view.kinds(kind))
        said = f"There {'is' if n == 1 else 'are'} {n}." if n else f"There are no {synonyms.KINDS[kind]}."
        return Ask(say(rng, "pics kind sum", kinds=slots["kinds"]), said), None
    every = all(len(view.kinds(kind)) == len(view.named) for view in views)
    return Ask(say(rng, "pics all kind", kinds=slots["kinds"]), "Yes." if every else "No."), None


def _total(rng, album, tell):
    if any(view.text or not view.boxes for view in album.views):
        return None
    n = sum(len(view.boxes) for view in album.views)
    return Ask(say(rng, "pics total"), f"There are {n}."), None


def _it(rng, album, tell):
    """Whether what was just spoken of is in another picture, too; where it was there."""
    views, name = album.views, album.about
    if album.spoken_of is None or not name or name not in views[album.spoken_of].named:
        return None
    others = [n for n in range(len(views)) if n != album.spoken_of]
    n = pick(rng, others)
    view = views[n]
    if view.shapes != views[album.spoken_of].shapes or view.picture.skill == "easy_vqa":
        return None
    if name in view.unique and (place := view.place(name)) and (album.spoken_of, n) == (1, 0) and not album.together:
        return Ask(say(rng, "it before"), f"It is {_AT[place]}."), n
    pic = picture_name(rng, album, n, without="things")
    return Ask(say(rng, "pic it", pic=pic), "Yes." if name in view.named else "No."), None


def _the(rng, album, tell):
    """About one thing in one of the pictures: whether it is there, its place, its color."""
    views = album.views
    n = int(rng.integers(len(views)))
    view = views[n]
    if not view.named or view.picture.skill == "easy_vqa":
        return None
    pic = picture_name(rng, album, n, without="things")
    names = sorted({name for other in views for name in other.unique})
    choice = rng.random()
    if choice < 0.4 and names:
        name = pick(rng, names)
        if any(other.shapes for other in views) and not all(other.shapes for other in views):
            return None
        word = the_word(called(rng, view, name, alone=False))
        return Ask(say(rng, "pic the", the=word, pic=pic), "Yes." if name in view.named else "No."), None
    if not view.unique:
        return None
    name = pick(rng, view.unique)
    word = the_word(called(rng, view, name, alone=False))
    if choice < 0.7 and (place := view.place(name)):
        return Ask(say(rng, "pic place", the=word, pic=pic), sentence(f"{the(name)} is {_AT[place]}"), about=name), n
    if not view.colors(name):
        return None
    told = color_of_it(view, name).replace("It is", sentence(f"{the(name)} is")[:-1], 1)
    return Ask(say(rng, "pic color", the=word, pic=pic), told, about=name), n


def _text(rng, album, tell):
    where = [n for n, view in enumerate(album.views) if view.text]
    if not where:
        return None
    n = pick(rng, where)
    text, choice = album.views[n].text, rng.random()
    if choice < 0.3:
        return (Ask(say(rng, "which pic text"), _which(n)), n) if len(where) == 1 else None
    if choice < 0.6:
        return Ask(say(rng, "pic text", pic=picture_name(rng, album, n)), f"It says {text}."), n
    if len(where) > 1:
        return None
    if choice < 0.8:
        return Ask(say(rng, "text again"), f"It says {text}."), n
    unit, noun_ = ("digit", "number") if text.isdigit() else ("letter", "word")
    return Ask(say(rng, "text length again", units=unit + "s", noun=noun_), there_are(len(text), unit)), n


def _texts(rng, album, tell):
    """Which of two texts is longer; what both say."""
    texts = [view.text for view in album.views]
    if len(texts) != 2 or not all(texts):
        return None
    if rng.random() < 0.5:
        n = int(len(texts[1]) > len(texts[0]))
        return None if len(texts[0]) == len(texts[1]) else (Ask(say(rng, "pic longer text"), _which(n)), n)
    return Ask(say(rng, "pics say"), f"The first says {texts[0]} and the second says {texts[1]}."), None


def _fact(rng, album, tell):
    """Of which picture's thing something is true."""
    names = [view.single for view in album.views]
    if not all(names) or len(set(names)) != len(names) or any(_no_things(view) for view in album.views):
        return None
    if (found := facts.told_apart(rng, names)) is None:
        return None
    name, third = found
    return Ask(say(rng, "which pic fact", third=third), _which(names.index(name)), about=name), names.index(name)


def _two(rng, album, tell):
    views = album.views
    if any(_no_things(view) or not view.named for view in views):
        return None
    names = sorted({name for view in views for name in view.named})
    names = [pick(rng, names) if rng.random() < 0.5 else absent(rng, views[0]), absent(rng, views[-1])]
    names = names if rng.random() < 0.5 else names[::-1]
    if names[0] == names[1]:
        return None
    where = [n for n, view in enumerate(views) if view.named.keys() & set(names)]
    one, two = (a(called(rng, views[0], name, alone=False)) for name in names)
    return Ask(say(rng, "pics two any", a=one, b=two), _yes(where)), where[0] if len(where) == 1 else None


def _again(rng, album, tell):
    """Whether the last picture shows what the one before it did."""
    one, two = album.views[-2], album.views[-1]
    if not (one.single and two.single) or _no_things(one) or _no_things(two):
        return None
    if rng.random() < 0.5 and not album.together and len(album.views) == 2:
        return Ask(say(rng, "same again"), "Yes." if one.single == two.single else "No."), None
    if len(album.views) != 2:
        return None
    word = a(called(rng, two, pick(rng, [one.single, two.single]), alone=False))
    return Ask(say(rng, "twice", a=word), "Yes." if one.single == two.single else "No."), None


def _new(rng, album, tell):
    one, two = album.views[-2], album.views[-1]
    easy = "easy_vqa" in (one.picture.skill, two.picture.skill)
    if album.together or not one.named or one.shapes != two.shapes or easy:
        return None
    fresh = [name for name in two.named if name not in one.named]
    if len(fresh) != 1 or len(two.named) < 2:
        return None
    n = two.counts[fresh[0]]
    return Ask(say(rng, "what is new"), f"It is {noun(two, fresh[0])}." if n == 1 else there_are(n, fresh[0])), None


def _named(rng, album, tell):
    """What is in a picture, its background, how many of something, whether something is there."""
    n = int(rng.integers(len(album.views)))
    view, choice = album.views[n], rng.random()
    if not view.known:
        return None
    if choice < 0.35:
        pic = picture_name(rng, album, n, "things")
        return Ask(say(rng, "pic what", pic=pic), tell(view), "pic what", about=view.single), n
    if choice < 0.65:
        pic = picture_name(rng, album, n, "background")
        return Ask(say(rng, "pic background", pic=pic), _ground(view), "pic background"), n
    names = sorted({name for other in album.views for name in other.named if name in COUNTABLE})
    if not names:
        return None
    name = pick(rng, names)
    things = plural(called(rng, view, name, alone=False))
    asked = say(rng, "pic count", things=things, pic=picture_name(rng, album, n, "things"))
    return Ask(asked, _counted(view, name), "pic count", several=name), n


def _ground(view: View) -> str:
    return f"The background is {view.picture.background or 'colorful'}."


def _counted(view: View, name: str) -> str:
    return there_are(view.counts[name], name) if view.counts[name] else f"There are no {plural(name)}."


def _short(rng, album, tell):
    """The last question once more, of another picture: "And in the first?"."""
    last = album.last
    if last is None or last.topic not in ("pic what", "pic background", "pic count") or album.spoken_of is None:
        return None
    n = pick(rng, [n for n in range(len(album.views)) if n != album.spoken_of])
    view = album.views[n]
    without = "background" if last.topic == "pic background" else "things"
    pic = picture_name(rng, album, n, without)
    answer = {"pic what": lambda: tell(view), "pic background": lambda: _ground(view),
              "pic count": lambda: _counted(view, last.several)}[last.topic]()  # fmt: skip
    if not view.known:
        return None
    within = pick(rng, ("in ", "in ", "")) + pic
    return Ask(say(rng, "go on", x=within), answer, last.topic, several=last.several), n


def _untold(rng, album, tell):
    return (Ask(say(rng, "untold two"), CANNOT_TELL), None) if len(album.views) == 2 else None


_some = by_weight({
    _other: 5, _common: 3, _most: 3, _kinds: 9, _total: 2, _it: 4, _the: 5, _text: 4, _texts: 4, _fact: 8,
    _two: 1, _again: 4, _new: 3,
    _named: 9, _short: 7, _untold: 3,
})  # fmt: skip


def ask(rng: np.random.Generator, album: Album, tell) -> Ask | None:
    """Returns a question about the pictures, and notes what it is about; None where they do not allow the one drawn.

    Args:
        rng: source of chance.
        album: at least two pictures.
        tell: says what is in a view.
    """
    found = _some(rng)(rng, album, tell)
    if found is None or not found[0].answer:
        return None
    asked, n = found
    album.last, album.spoken_of, album.about = asked, n, asked.about
    return asked
