"""Turns chats into training batches of fixed shape.

A row of `ROW` tokens holds a picture and as many questions about it as fit. Questions are independent: each sees the
picture and itself, never its neighbors, exactly as if it were asked alone, so the picture is encoded once for all of
them. Which token sees which is written as segments: a token of segment s with parent p sees earlier tokens of s and p.
The token sequences are those of the chat template and the processor (tests compare them).
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from . import art, chats
from .pictures import MIXTURE, Picture, sample_picture
from .targets import targets_of
from .tokenizer import IMAGE_SOFT_TOKEN, IMAGE_TOKENS, TEXT_VOCAB

ROW = 96
IMAGE_ID = TEXT_VOCAB
IMAGE_TEXT = "\n\n<start_of_image>" + IMAGE_SOFT_TOKEN * IMAGE_TOKENS + "<end_of_image>\n\n"
FAR = 300  # questions are now and then moved this far from their picture, as in a long chat
IGNORE = -100


class Encoder:
    """Token ids of text, remembered: the same sentences come again and again."""

    def __init__(self, tokenizer):
        self._encode = functools.lru_cache(maxsize=200_000)(
            lambda text: tokenizer(text, add_special_tokens=False).input_ids
        )

    def __call__(self, text: str) -> list[int]:
        return self._encode(text)


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


def pixels(images: list[Image.Image]) -> np.ndarray:
    """What the image processor makes of pictures of the model's size: float32 [N, 3, 64, 64] in -1..1."""
    stacked = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
    return stacked.astype(np.float32) / 127.5 - 1


class Words:
    """Which words the answers about a picture contain: what the tower learns before it can be asked.

    A rare word weighs more than a common one (the logarithm of its inverse frequency so far).
    """

    def __init__(self, encode: Encoder):
        self.encode = encode
        self.pictures = 100.0
        self.frequency = np.ones(TEXT_VOCAB)
        self.none = np.zeros(TEXT_VOCAB, np.float32)

    def __call__(self, picture: Picture) -> np.ndarray:
        """Returns weights float32 [TEXT_VOCAB] that sum to 1."""
        told = [answer for _, answer in picture.questions if not answer.startswith("It is not")]
        tokens = sorted({token for answer in told for token in self.encode(answer)})
        self.pictures += 1
        self.frequency[tokens] += 1
        weights = np.zeros(TEXT_VOCAB, np.float32)
        weights[tokens] = np.log(self.pictures / self.frequency[tokens])
        return weights / max(weights.sum(), 1e-6)


def _stacked(pictures: list[Picture | None]) -> dict[str, torch.Tensor]:
    """The targets of several pictures: int64 [N, n] by name."""
    each = [targets_of(picture.boxes if picture else []) for picture in pictures]
    return {name: torch.from_numpy(np.stack([targets[name] for targets in each])) for name in each[0]}


class PictureBatches(torch.utils.data.IterableDataset):
    """An endless stream of pictures with the words of the answers about them.

    Args:
        tokenizer: the demo's tokenizer.
        pictures: how many in a batch.
        seed: names the stream.
        mixture: how often each kind of picture comes, see `MIXTURE`.
    """

    def __init__(self, tokenizer, pictures: int, seed: int, mixture: dict[str, float] = MIXTURE):
        self.tokenizer = tokenizer
        self.pictures, self.seed, self.mixture = pictures, seed, mixture

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yields batches.

        Yields:
            pixels: bfloat16 [N, 3, 64, 64]. words: float32 [N, TEXT_VOCAB]. The targets of each picture, see
            `targets_of`: int64 [N, n].
        """
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, 1000 + (worker.id if worker else 0)])
        words = Words(Encoder(self.tokenizer))
        styles = art.LEARNED_FROM
        while True:
            drawn = [sample_picture(rng, styles, self.mixture) for _ in range(self.pictures)]
            yield {
                "pixels": torch.from_numpy(pixels([picture.image for picture in drawn])).bfloat16(),
                "words": torch.from_numpy(np.stack([words(picture) for picture in drawn])),
            } | _stacked(drawn)


class Batches(torch.utils.data.IterableDataset):
    """An endless stream of batches, see `__iter__`.

    Args:
        tokenizer: the demo's tokenizer.
        rows: rows per batch; a batch has `rows * 9 // 8` pictures and room for `rows * 32` answer tokens.
        seed: names the stream.
        mixture: how often each kind of picture comes, see `MIXTURE`.
    """

    def __init__(self, tokenizer, rows: int, seed: int, mixture: dict[str, float] = MIXTURE):
        self.encode = Encoder(tokenizer)
        self.words = Words(self.encode)
        self.rows, self.seed, self.mixture = rows, seed, mixture
        self.pictures, self.answers = rows * 9 // 8, rows * 32
        self.styles = art.LEARNED_FROM

    def _row(self, rng: np.random.Generator, images: list[Image.Image], shown: list, budget: int) -> Row:
        """Fills a row; adds at most `budget` pictures to `images`, and to `shown` what each is, None if unknown."""
        encode, row, segment, picture = self.encode, Row(), 0, None
        choice = rng.random()
        if choice < 0.10 and budget >= 2:
            chat = chats.two_pictures(rng, self.styles)
        elif choice < 0.24:
            picture = sample_picture(rng, self.styles, self.mixture)
            chat = chats.follow_up(rng, picture, int(rng.integers(1, 6)))
        elif choice < 0.26:
            chat = chats.without_picture(rng)
        else:
            chat = None
        if chat is not None:
            chat.system = chats.system_prompt(rng)
            while not row.fits(piece := chat_piece(encode, chat, picture_last=rng.random() < 0.2)):
                chat.turns.pop()
            images += [image for turn in chat.turns for image in turn[0]]
            row.add(piece, segment, segment, 0)
        else:
            picture = sample_picture(rng, self.styles, self.mixture)
            images.append(picture.image)
            prefix = encode("<bos>" + _opening(chats.system_prompt(rng)) + IMAGE_TEXT)
            row.add(Piece(prefix, [False] * len(prefix)), 0, 0, 0)
            for question, answer in picture.questions:
                if rng.random() < 0.03:
                    question, answer = chats.aside(rng)
                piece = turn_pieces(encode, "", chats.casual(rng, question), answer)
                if row.fits(piece):
                    segment += 1
                    far = int(rng.integers(FAR)) if rng.random() < 0.12 else 0
                    row.add(piece, segment, 0, len(prefix) + far)
        shown += [picture] * (len(images) - len(shown))
        while len(row.ids) < ROW - 24:  # what is left over goes to chats without a picture
            piece = chat_piece(encode, chats.without_picture(rng))
            if not row.fits(piece):
                break
            segment += 1
            row.add(piece, segment, segment, 0)
        return row

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Yields batches of B rows, N pictures and A answer tokens.

        Yields:
            ids, segment, parent, position, picture: int64 [B, ROW]; picture is 0 for text and 1 + n * 16 + k for soft
            token k of picture n. pixels: bfloat16 [N, 3, 64, 64]. words: float32 [N, TEXT_VOCAB], zero where unknown.
            The targets of each picture, see `targets_of`: int64 [N, n].
            where: int64 [A], answer tokens in the flattened rows. target: int64 [A], the token to predict there, -100
            in places left over.
        """
        worker = torch.utils.data.get_worker_info()
        rng = np.random.default_rng([self.seed, worker.id if worker else 0])
        while True:
            fields = {
                name: np.full((self.rows, ROW), fill)
                for name, fill in (("ids", 0), ("target", IGNORE), ("segment", -1), ("parent", -1), ("position", 0))
            }
            images: list[Image.Image] = []
            shown: list[Picture | None] = []
            for n in range(self.rows):
                row = self._row(rng, images, shown, self.pictures - len(images) - (self.rows - n - 1))
                for name, array in fields.items():
                    values = getattr(row, name)
                    array[n, : len(values)] = values
            soft = fields["ids"] == IMAGE_ID
            picture = np.zeros_like(fields["ids"])
            picture[soft] = 1 + np.arange(soft.sum())
            spare = self.pictures - len(images)
            images += [Image.new("RGB", images[0].size)] * spare
            shown += [None] * spare
            target = fields.pop("target").reshape(-1)
            (where,) = np.nonzero(target != IGNORE)
            where = where[: self.answers]
            spare = self.answers - len(where)
            batch = {name: torch.from_numpy(array) for name, array in fields.items()}
            batch["picture"] = torch.from_numpy(picture)
            batch["pixels"] = torch.from_numpy(pixels(images)).bfloat16()
            words = [self.words(picture) if picture else self.words.none for picture in shown]
            batch["words"] = torch.from_numpy(np.stack(words))
            batch |= _stacked(shown)
            batch["where"] = torch.from_numpy(np.pad(where, (0, spare)))
            batch["target"] = torch.from_numpy(np.pad(target[where], (0, spare), constant_values=IGNORE))
            yield batch
