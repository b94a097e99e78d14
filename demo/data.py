"""Turns pictures and chats about them into training batches of fixed shape.

Drawing a picture costs more than a hundred words about it, so each is asked a lot. A row of `ROW` tokens holds a
picture with questions about it, and a chat. The questions are independent: each sees the picture and itself, never its
neighbors, exactly as if it were asked alone. Further rows hold longer chats, about up to three pictures of the batch.
Which token sees which is written as segments: a token of segment s with parent p sees earlier tokens of s and p. The
token sequences are those of the chat template and the processor (tests compare them).
"""

import functools
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from . import art, chats, further, small_talk, spoken, talks
from .pictures import ALIKE, LEARNED, LEVEL, LONG, MIX, SMALL, Picture, sample_picture
from .rewording import reword
from .targets import targets_of
from .tokenizer import IMAGE_SOFT_TOKEN, IMAGE_TOKENS, TEXT_VOCAB

ROW = 208
ASKED = 128  # tokens of a row that questions about its picture may take; a chat gets the rest
IMAGE_ID = TEXT_VOCAB
IMAGE_TEXT = "\n\n<start_of_image>" + IMAGE_SOFT_TOKEN * IMAGE_TOKENS + "<end_of_image>\n\n"
FAR = 300  # questions are now and then moved this far from their picture, as in a long chat
IGNORE = -100
WORD = re.compile(r"\n+|<[a-z_]+>| ?[^ \n<]+| |<")  # line breaks, marks of turns and pictures, words


class Encoder:
    """Token ids of text, word by word: no merge of the demo's tokenizer goes beyond a word and the space before it."""

    def __init__(self, tokenizer):
        backend = tokenizer.backend_tokenizer  # a tenth of the time that the tokenizer takes for a short text
        self._word = functools.lru_cache(maxsize=200_000)(
            lambda word: backend.encode(word, add_special_tokens=False).ids
        )
        self._text = functools.lru_cache(maxsize=200_000)(
            lambda text: [token for word in WORD.findall(text) for token in self._word(word)]
        )

    def __call__(self, text: str) -> list[int]:
        return self._text(text)


@dataclass
class Piece:
    """Tokens that see each other causally. `answer[i]` says whether token i is to be learned."""

    ids: list[int]
    answer: list[bool]


def turn_pieces(encode: Encoder, opening: str, question: str, answer: str) -> Piece:
    """One question and its answer, up to and including the answer's `<end_of_turn>`."""
    asked = encode(f"{opening}{question}<end_of_turn>\n<start_of_turn>model\n")
    told = encode(f"{answer}<end_of_turn>")
    return Piece(asked + told, [False] * len(asked) + [True] * len(told))


def _opening(system: str) -> str:
    """How the first turn of a chat begins; it reads the system prompt out."""
    return "<start_of_turn>user\n" + (f"{system}\n\n" if system else "")


def chat_piece(encode: Encoder, chat: chats.Chat, picture_last: bool = False) -> Piece:
    """A whole chat as one piece, beginning with `<bos>`."""
    whole = Piece(encode("<bos>"), [False])
    for n, (pictures, question, answer) in enumerate(chat.turns):
        shown = IMAGE_TEXT * len(pictures)
        text = question + shown if picture_last else shown + question
        opening = "\n<start_of_turn>user\n" if n else _opening(chat.system)
        piece = turn_pieces(encode, opening, text, answer)
        whole = Piece(whole.ids + piece.ids, whole.answer + piece.answer)
    return whole


class Row:
    """A row being filled."""

    def __init__(self):
        self.ids: list[int] = []
        self.target: list[int] = []
        self.segment: list[int] = []
        self.parent: list[int] = []
        self.position: list[int] = []

    def fits(self, piece: Piece) -> bool:
        return len(self.ids) + len(piece.ids) <= ROW

    def add(self, piece: Piece, segment: int, parent: int, start: int) -> None:
        n = len(piece.ids)
        self.ids += piece.ids
        self.target += [piece.ids[i + 1] if i + 1 < n and piece.answer[i + 1] else IGNORE for i in range(n)]
        self.segment += [segment] * n
        self.parent += [parent] * n
        self.position += range(start, start + n)


def stacked(images: list[Image.Image]) -> np.ndarray:
    """Pictures of the model's size as one array, uint8 [N, 3, 64, 64]."""
    return np.ascontiguousarray(np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2))


class Words:
    """Which words the answers about a picture contain: what the tower learns before it can be asked.

    A rare word weighs more than a common one (the logarithm of its inverse frequency so far).
    """

    def __init__(self, encode: Encoder):
        self.encode = encode
        self.pictures = 100.0
        self.frequency = np.ones(TEXT_VOCAB)

    def __call__(self, picture: Picture) -> np.ndarray:
        """Returns weights float32 [TEXT_VOCAB] that sum to 1."""
        told = [answer for _, answer in picture.questions if not answer.startswith("It is not")]
        tokens = sorted({token for answer in told for token in self.encode(answer)})
        self.pictures += 1
        self.frequency[tokens] += 1
        weights = np.zeros(TEXT_VOCAB, np.float32)
        weights[tokens] = np.log(self.pictures / self.frequency[tokens])
        return weights / max(weights.sum(), 1e-6)


def _targets(pictures: list[Picture]) -> dict[str, torch.Tensor]:
    """The targets of several pictures: int64 [N, n] by name."""
    each = [targets_of(picture.boxes) for picture in pictures]
    return {name: torch.from_numpy(np.stack([targets[name] for targets in each])) for name in each[0]}


def _shown_together(rng: np.random.Generator, drawn: list[Picture], count: int) -> list[Picture]:
    """Some of the pictures, every other one akin to the first: people show what can be compared."""
    first, *rest = (drawn[i] for i in rng.permutation(len(drawn)))
    some, kinds = [first], first.kinds - {"thing"}
    for _ in range(count - 1):
        choice, akin = rng.random(), []
        if choice < 0.55:
            akin = [one for one in rest if one.names & first.names] if choice < 0.3 else []
            akin = akin or [one for one in rest if one.kinds & kinds]
        some.append(akin[0] if akin else rest[0])
        rest = [one for one in rest if one is not some[-1]]
    return [some[i] for i in rng.permutation(len(some))]


class Batches:
    """An endless stream of batches, see `__iter__`.

    Args:
        tokenizer: the demo's tokenizer.
        pictures: how many in a batch; it has three rows for every two of them, and room for 50 answer tokens a row.
        seed, worker: name the stream.
    """

    def __init__(self, tokenizer, pictures: int, seed: int, worker: int = 0):
        self.encode = Encoder(tokenizer)
        self.words = Words(self.encode)
        self.pictures, self.rows, self.seed, self.worker = pictures, pictures * 3 // 2, seed, worker
        self.answers = self.rows * 50

    def _questions(self, rng: np.random.Generator, picture: Picture) -> list[tuple[str, str]]:
        """Questions about a picture: in people's own words, of the trained forms, and beside these, in turns."""
        own, beside = spoken.about(rng, picture, 10), further.about(rng, picture, 4)
        kinds = (own[::2], picture.questions, own[1::2], beside)
        return [pair for some in itertools.zip_longest(*kinds) for pair in some if pair]

    def _ask(self, rng: np.random.Generator, row: Row, picture: Picture) -> int:
        """Puts a picture and questions about it into an empty row; returns the last segment used."""
        encode, segment = self.encode, 0
        prefix = encode("<bos>" + _opening(chats.system_prompt(rng)) + IMAGE_TEXT)
        row.add(Piece(prefix, [False] * len(prefix)), 0, 0, 0)
        for question, answer in self._questions(rng, picture):
            if rng.random() < 0.03:
                question, answer = small_talk.aside(rng)
            piece = turn_pieces(encode, "", reword(rng, chats.casual(rng, question)), answer)
            if len(row.ids) + len(piece.ids) <= ASKED:
                segment += 1
                far = int(rng.integers(FAR)) if rng.random() < 0.12 else 0
                row.add(piece, segment, 0, len(prefix) + far)
        return segment

    def _chat(self, rng: np.random.Generator, drawn: list[Picture], space: int) -> chats.Chat:
        """A chat about some of the pictures."""
        choice = rng.random()
        if choice < 0.04:
            return small_talk.without_picture(rng)
        if choice < 0.10:
            picture = drawn[int(rng.integers(len(drawn)))]
            return chats.follow_up(rng, picture, int(rng.integers(1, 6)))
        if choice < 0.18:
            alone = [picture for picture in drawn if picture.skill == "naming" and len(picture.boxes) == 1]
            if len(alone) > 1:
                one, two = (alone[i] for i in rng.permutation(len(alone))[:2])
                names = one.boxes[0].what, two.boxes[0].what
                if names[0] != names[1]:
                    others = [picture for picture in drawn if picture is not one]
                    return chats.about_two(rng, names, one, two, lambda: others[int(rng.integers(len(others)))])
        count = 1 if choice < 0.62 else 2 if choice < 0.88 or space < ROW else 3
        return talks.talk(rng, _shown_together(rng, drawn, count), int(rng.integers(2, 7)))

    def _row(self, rng: np.random.Generator, drawn: list[Picture], n: int, number: dict[int, int]) -> tuple[Row, list]:
        """Fills a row, with picture n first as long as there are so many; returns the numbers of its pictures, too."""
        row, segment, shown = Row(), -1, []
        if n < len(drawn):
            segment, shown = self._ask(rng, row, drawn[n]), [n]
        chat = self._chat(rng, drawn, ROW - len(row.ids))
        chat.system = chats.system_prompt(rng)
        chat.turns = [(images, reword(rng, question), answer) for images, question, answer in chat.turns]
        last = rng.random() < 0.2
        while chat.turns and not row.fits(piece := chat_piece(self.encode, chat, picture_last=last)):
            chat.turns.pop()
        if chat.turns:
            segment += 1
            row.add(piece, segment, segment, 0)
            shown += [number[id(image)] for turn in chat.turns for image in turn[0]]
        while len(row.ids) < ROW - 24:  # what is left over goes to chats without a picture
            piece = chat_piece(self.encode, small_talk.without_picture(rng))
            if not row.fits(piece):
                break
            segment += 1
            row.add(piece, segment, segment, 0)
        return row, shown

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yields batches of B rows, N pictures and A answer tokens.

        Yields:
            ids, segment, parent, position, picture: int64 [B, ROW]; picture is 0 for text and 1 + n * 16 + k for soft
            token k of picture n. home: int64 [N * 16], where in the flattened rows a picture's soft tokens come first.
            pixels: uint8 [N, 3, 64, 64]. words: float32 [N, TEXT_VOCAB]. The targets of each picture, see
            `targets_of`: int64 [N, n].
            where: int64 [A], answer tokens in the flattened rows. target: int64 [A], the token to predict there, -100
            in places left over.
        """
        rng = np.random.default_rng([self.seed, self.worker])
        while True:
            drawn = [
                sample_picture(rng, art.LEARNED_FROM, LEARNED, MIX, SMALL, ALIKE, LEVEL, LONG)
                for _ in range(self.pictures)
            ]
            number = {id(picture.image): n for n, picture in enumerate(drawn)}
            fields = {
                name: np.full((self.rows, ROW), fill)
                for name, fill in (("ids", 0), ("target", IGNORE), ("segment", -1), ("parent", -1), ("position", 0))
            }
            picture = np.zeros_like(fields["ids"])
            for n in range(self.rows):
                row, shown = self._row(rng, drawn, n, number)
                for name, array in fields.items():
                    values = getattr(row, name)
                    array[n, : len(values)] = values
                soft = [1 + index * IMAGE_TOKENS + k for index in shown for k in range(IMAGE_TOKENS)]
                picture[n, fields["ids"][n] == IMAGE_ID] = soft
            target = fields.pop("target").reshape(-1)
            (where,) = np.nonzero(target != IGNORE)
            where = np.sort(rng.permutation(where)[: self.answers])
            spare = self.answers - len(where)
            batch = {name: torch.from_numpy(array) for name, array in fields.items()}
            batch["picture"] = torch.from_numpy(picture)
            batch["home"] = torch.from_numpy(np.unique(picture, return_index=True)[1][1:].copy())
            batch["pixels"] = torch.from_numpy(stacked([entry.image for entry in drawn]))
            batch["words"] = torch.from_numpy(np.stack([self.words(entry) for entry in drawn]))
            batch |= _targets(drawn)
            batch["where"] = torch.from_numpy(np.pad(where, (0, spare)))
            batch["target"] = torch.from_numpy(np.pad(target[where], (0, spare), constant_values=IGNORE))
            yield batch
