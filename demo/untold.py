"""Questions that a picture raises and does not answer, whatever it shows."""

import numpy as np

from .render import pick

CANNOT_TELL = "I cannot tell."
_ABOUT = (  # {0}: it, he, the cat
    "How old is {0}?", "How heavy is {0}?", "How tall is {0}?", "How much does {0} weigh?", "How much does {0} cost?",
    "How fast is {0}?", "How fast can {0} go?", "How long does {0} live?", "What is the name of {0}?",
    "What does {0} like?", "What does {0} smell like?", "What is {0} doing?", "What is {0} thinking?", "Who made {0}?",
    "Who owns {0}?", "Who drew {0}?", "Where does {0} come from?", "Where is {0} going?", "When was {0} made?",
    "Why is {0} there?", "Why is {0} here?", "Is {0} happy?", "Is {0} sad?", "Is {0} angry?", "Is {0} hungry?",
    "Is {0} asleep?", "Is {0} dangerous?", "Is {0} heavy?", "Is {0} expensive?", "Is {0} old?", "Is {0} new?",
    "Is {0} warm?", "Is {0} soft?", "Is {0} tasty?", "Is {0} male or female?", "Is {0} a boy or a girl?",
    "Is {0} yours?", "Is {0} real?", "Is {0} broken?", "Is {0} moving?",
    "Can {0} bite?", "Can {0} talk?", "Do you like {0}?", "Does {0} have a name?", "Does {0} bite?",
    "Does {0} have a tail?", "Does {0} have teeth?", "How does {0} work?", "What brand is {0}?",
    "What breed is {0}?", "What species is {0}?", "Is {0} a pet?", "Is {0} fresh?", "Is {0} smiling?",
    "Which way is {0} looking?", "Which way does {0} face?", "What is inside of {0}?", "Can I buy {0}?",
    "Does {0} look nice?", "Is {0} pretty?", "Is {0} cute?", "Is {0} clean?", "Is {0} ripe?",
)  # fmt: skip
_PARTS = (
    "eyes", "ears", "windows", "doors", "teeth", "wings", "arms", "feet", "fingers", "leaves",
    "seeds", "buttons", "sides", "corners", "stripes", "spots", "horns", "tails", "seats", "keys", "strings", "people",
    "points", "paws", "toes", "lights", "petals",
)  # fmt: skip
_PART_FORMS = (
    "How many {1} does {0} have?", "How many {1} has {0} got?", "How many {1} are on {0}?", "Does {0} have {1}?",
    "What color are the {1} of {0}?", "Count the {1} of {0}.", "How big are the {1} of {0}?",
)  # fmt: skip
_BARE_PARTS = ("How many {1}?", "And how many {1}?", "How many {1} can you count on it?", "What about the {1}?")
_ABOUT_PICTURE = (
    "Where was this taken?", "When was this taken?", "Where is this place?", "What time of day is it?",
    "What is the weather like?", "Is it day or night?", "Is it cold there?", "Is it warm there?",
    "Who drew this?", "Who made this picture?", "Who took this picture?", "How old is the picture?",
    "What year is it from?", "What season is it?", "What country is this?", "What city is that?",
    "Why did they draw it?", "What happens next?", "What happened here?", "What is the story here?",
    "What is this picture about?", "What is the title?", "How big is the picture?", "Is this a nice picture?",
    "Do you like the picture?", "What does it mean?", "What font is that?", "What is behind the camera?",
    "Are there people here?", "How many people live there?", "What is the mood?", "What is outside of the picture?",
    "Who is the artist?", "How much is the picture worth?", "What was there before?", "How far away is it?",
)  # fmt: skip


def untold(rng: np.random.Generator, subject: str) -> tuple[str, str]:
    """Returns such a question and its honest answer.

    Args:
        rng: source of chance.
        subject: what it may be about: "it", "the cat".
    """
    choice = rng.random()
    if choice < 0.5:
        question = pick(rng, _ABOUT).format(subject)
    elif choice < 0.75:
        question = pick(rng, _PART_FORMS).format(subject, pick(rng, _PARTS))
    elif choice < 0.82:
        question = pick(rng, _BARE_PARTS).format(subject, pick(rng, _PARTS))
    else:
        question = pick(rng, _ABOUT_PICTURE)
    return question, CANNOT_TELL


# ---------------------------------------------------------------------------------------------- put together

_ROLES = (
    "farmer", "king", "queen", "child", "painter", "owner", "baker", "gardener", "player", "driver", "doctor",
    "girl", "boy", "man", "woman", "neighbor", "family", "artist", "photographer", "cook", "waiter", "sailor", "pirate",
    "hunter", "company", "shop", "policeman", "grandmother", "uncle", "friend", "singer", "pilot", "writer", "student",
    "person", "customer", "thief", "princess", "captain", "scientist", "designer", "factory", "dealer", "guest",
)  # fmt: skip
_DOINGS = (  # what is done to a thing: now, then, has been
    ("make", "made", "made"), ("buy", "bought", "bought"), ("sell", "sold", "sold"), ("find", "found", "found"),
    ("lose", "lost", "lost"), ("build", "built", "built"), ("own", "owned", "owned"), ("use", "used", "used"),
    ("want", "wanted", "wanted"), ("call", "called", "called"), ("feed", "fed", "fed"), ("wash", "washed", "washed"),
    ("cut", "cut", "cut"), ("cook", "cooked", "cooked"), ("catch", "caught", "caught"), ("steal", "stole", "stolen"),
    ("hide", "hid", "hidden"), ("bring", "brought", "brought"), ("take", "took", "taken"), ("send", "sent", "sent"),
    ("order", "ordered", "ordered"), ("choose", "chose", "chosen"), ("see", "saw", "seen"), ("love", "loved", "loved"),
    ("invent", "invented", "invented"), ("design", "designed", "designed"), ("open", "opened", "opened"),
    ("touch", "touched", "touched"), ("repair", "repaired", "repaired"), ("paint", "painted", "painted"),
    ("draw", "drew", "drawn"), ("write", "wrote", "written"), ("put", "put", "put"), ("plant", "planted", "planted"),
    ("hold", "held", "held"), ("need", "needed", "needed"), ("break", "broke", "broken"), ("give", "gave", "given"),
    ("clean", "cleaned", "cleaned"), ("drive", "drove", "driven"), ("play", "played", "played"), ("watch", "watched",
    "watched"), ("photograph", "photographed", "photographed"), ("name", "named", "named"), ("meet", "met", "met"),
)  # fmt: skip
_GOINGS = (  # what a thing does by itself
    "sleep", "eat", "leave", "arrive", "come back", "go home", "stop", "start", "die", "grow", "move", "run away",
    "wake up", "fall down", "win", "sing", "break", "melt", "land", "sail", "drive off", "hatch", "drink", "jump",
    "burn", "turn around", "stand up", "change", "get bigger", "get cold", "dry", "ring", "explode", "fly away", "bite",
    "look at you", "open", "close", "rest", "travel", "wait", "live", "play", "work", "end up",
)  # fmt: skip
_PLACES = (
    "shop", "restaurant", "city", "country", "street", "garden", "zoo", "house", "market", "park", "village", "museum",
    "school", "factory", "farm", "kitchen", "harbor", "forest", "room", "bakery", "hotel", "book", "film", "drawer",
)  # fmt: skip
_TIMES = (
    "today", "yesterday", "tomorrow", "last night", "tonight", "this morning", "next week", "last year", "in winter",
    "on Sundays", "after this", "before that", "in a minute", "soon", "later", "at night", "for lunch", "ten years ago",
)  # fmt: skip
_MEASURES = ("heavy", "old", "tall", "fast", "expensive", "loud", "warm", "strong", "deep", "hard", "far away",
             "clever", "dangerous", "rare", "useful", "fresh", "thick", "clean", "long in real life")  # fmt: skip
_FEELINGS = ("happy", "sad", "tired", "hungry", "angry", "afraid", "bored", "proud", "thirsty", "lonely", "in love",
             "cold", "nervous", "married", "busy", "content with its life", "in a good mood", "friendly")  # fmt: skip
_MATTERS = ("friends", "parents", "plans", "a favorite food", "a hobby", "a secret", "a job", "a price tag",
            "brothers or sisters", "a home", "an owner", "enemies", "a birthday", "a passport", "children")  # fmt: skip


def composed(rng: np.random.Generator, subject: str = "it", alone: bool = True) -> str:
    """Returns a question that no picture answers, put together from parts: "Which baker sold it last night?".

    Args:
        rng: source of chance.
        subject: what it may be about: "it", "the cat"; "them" and "the cats" with `alone` False.
        alone: whether that is one thing.
    """
    x, role, other, place, time = subject, pick(rng, _ROLES), pick(rng, _ROLES), pick(rng, _PLACES), pick(rng, _TIMES)
    now, then, been = _DOINGS[int(rng.integers(len(_DOINGS)))]
    go, who = pick(rng, _GOINGS), pick(rng, ("they", "he", "she", "somebody", f"the {role}", f"a {role}", "people"))
    does = "does" if who[:2] in ("he", "sh", "so", "th", "a ") and who != "they" else "do"
    forms = [  # about what is done to it
        f"which {role} {then} {x}?", f"which {role} will {now} {x}", f"who {then} {x} {time}?", f"who {then} {x}",
        f"who is going to {now} {x}?", f"who will {now} {x} {time}", f"where did {who} {now} {x}?",
        f"when did {who} {now} {x}", f"why did {who} {now} {x}?", f"how often {does} {who} {now} {x}?",
        f"in which {place} did {who} {now} {x}", f"at which {place} did the {role} {now} {x}?",
        f"how did {who} {now} {x}", f"has anybody {been} {x} {time}?", f"has the {role} {been} {x} yet",
        f"did {who} {now} {x} {time}?", f"what did the {role} {now} {x} for", f"what did the {role} want with {x}?",
        f"does the {role} like {x}", f"how much did {who} pay for {x}?", f"how long has the {role} {been} {x}?",
        f"whose {role} {then} {x}?", f"for whom did {who} {now} {x}", f"what does the {role} say about {x}?",
        f"to which {role} {'does' if alone else 'do'} {'they' if x == 'them' else x} belong?",
        f"which {place} {'is' if alone else 'are'} {'they' if x == 'them' else x} from",
        f"what would {who} pay for {x} in a {place}?", f"what do you think about {x}?",
        f"what would the {other} do with {x}", f"is the {role} looking for {x}?",
        f"was the {role} there when the {other} {then} {x}?",
    ]  # fmt: skip
    if alone and rng.random() < 0.55:  # about what it is like and does
        forms = [
            f"when will {x} {go}?", f"will {x} {go} {time}?", f"is {x} going to {go}", f"is {x} going to {go} {time}?",
            f"why does {x} {go}?", f"how long does {x} {go}", f"where will {x} {go} {time}?", f"did {x} {go} {time}?",
            f"where did {x} {go} {time}", f"what will {x} do {time}?", f"what did {x} do {time}",
            f"how {pick(rng, _MEASURES)} is {x}?", f"how {pick(rng, _MEASURES)} would {x} be",
            f"how {pick(rng, _MEASURES)} was {x} {time}?", f"is {x} {pick(rng, _FEELINGS)}?",
            f"is {x} {pick(rng, _FEELINGS)} {time}", f"why is {x} {pick(rng, _FEELINGS)}?",
            f"does {x} have {pick(rng, _MATTERS)}?", f"does {x} have {pick(rng, _MATTERS)} and which",
            f"what is {x} {pick(rng, ('worth', 'thinking', 'hoping for', 'afraid of', 'looking for'))}?",
            f"in which {place} was {x} {been}?", f"in which {place} does {x} live", f"was {x} {been} by the {role}?",
            f"was {x} {been} {time}", f"has {x} been {been} {time}?", f"where was {x} {been}?", f"when was {x} {been}",
            f"how often was {x} {been}?", f"what does {x} cost in a {place}?", f"how much does {x} cost {time}",
            f"how much would {x} cost me?", f"what does {x} do {time}?", f"who lives with {x}?", f"who sits in {x}",
            f"what has {x} got planned {time}?", f"how does {x} {go}?", f"which {role} is {x} waiting for",
            f"how many {pick(rng, ('kilos', 'pounds', 'euros', 'years', 'people', 'days'))} "
            f"{pick(rng, ('did', 'does', 'would'))} {x} {pick(rng, ('need', 'cost', 'weigh', 'last', 'take'))}?",
        ]  # fmt: skip
    return pick(rng, forms)
