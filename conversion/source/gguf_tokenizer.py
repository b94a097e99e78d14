"""The tokenizer that a GGUF file's metadata holds, as files of a Hugging Face repo.

llama.cpp's converter keeps text and score of ordinary pieces and of bytes, and rewrites the others: symbols that look
special become control tokens, scores become -1000, U+2581 becomes a space. That is undone here, so that the pieces are
those of SentencePiece's model. Google's QAT files have its scores and texts, but type every symbol as ordinary text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import gguf
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.errors import BadInput
from conversion.formats.gguf_reader import GgufFile
from conversion.repos.gguf_config import IMAGE, PREFIX, tokens_of
from conversion.small_files.tokenizer import (
    BOI,
    BOS,
    EOI,
    EOS,
    PAD,
    SPACE,
    TURN_TOKENS,
    UNK,
    Kind,
    Piece,
    write_tokenizer_of,
)

SYMBOLS = re.compile("|".join(map(re.escape, (*TURN_TOKENS, BOI, EOI, "<mask>", "[multimodal]"))) + r"|<unused\d+>")
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
Type = gguf.TokenType


@dataclass(frozen=True)
class GgufTokenizer:
    """A tokenizer out of metadata; `TokenizerFiles`.

    Attributes:
        path: the file.
        pieces: its vocabulary, without the image token.
        merges: what joins with what, best first; None where the scores of the pieces tell.
        mended: how many symbols were typed as ordinary text.
        template: of chats, in Jinja; None if there is none.
    """

    path: Path
    pieces: list[Piece]
    merges: list[tuple[str, str]] | None
    mended: int
    template: str | None

    @classmethod
    def of(cls, model: GgufFile) -> GgufTokenizer:
        """Reads the metadata of a file.

        Raises:
            BadInput: it holds no tokenizer of Gemma's kind.
        """
        try:
            return cls._of(model)
        except KeyError as error:
            raise BadInput(
                f"{model.path}: its metadata lacks {error}, so it has no tokenizer; give --tokenizer"
            ) from error

    @classmethod
    def _of(cls, model: GgufFile) -> GgufTokenizer:
        of = {name.removeprefix(PREFIX): value for name, value in model.metadata.items()}
        if of["model"] not in ("llama", "gpt2"):
            raise BadInput(f"{model.path}: tokenizer.ggml.model is {of['model']}, Gemma 3 has llama; give --tokenizer")
        texts = tokens_of(model)
        kinds, scores = of["token_type"][: len(texts)], of.get("scores", [0.0] * len(texts))[: len(texts)]
        if len(kinds) != len(texts) or len(scores) != len(texts):
            raise BadInput(f"{model.path}: {len(texts)} tokens, but {len(kinds)} types and {len(scores)} scores")
        if texts[-1] == IMAGE:
            texts, kinds, scores = texts[:-1], kinds[:-1], scores[:-1]
        symbols = _symbols(texts, kinds, scores)
        pieces = [
            _piece(*token, symbol=number in symbols)
            for number, token in enumerate(zip(texts, kinds, scores, strict=True))
        ]
        merges = [tuple(merge.split(" ", 1)) for merge in of["merges"]] if of["model"] == "gpt2" else None
        template = model.metadata.get("tokenizer.chat_template")
        return cls(model.path, pieces, merges, len(symbols), template)

    def __str__(self) -> str:
        return f"the metadata of {self.path}"

    def write(self, repo: Path, config: Gemma3Config | Gemma3TextConfig, variant: str) -> None:
        """Writes the files; the chat template is the file's own."""
        write_tokenizer_of(
            self.pieces,
            repo,
            config,
            str(self.path),
            multimodal=isinstance(config, Gemma3Config),
            merges=self.merges,
            template=self.template,
        )


def _symbols(texts: list[str], kinds: list[int], scores: list[float]) -> set[int]:
    """Ids of symbols that are typed as ordinary text.

    Some are known by name. If those have the score 0, as SentencePiece gives it to symbols, there are more: scores of
    ordinary pieces descend from 0 on, so a piece of score 0 that is not followed by a lower one is a symbol too.
    """
    ordinary = [
        number for number, kind in enumerate(kinds) if kind == Type.NORMAL and not BYTE.fullmatch(texts[number])
    ]
    found = {number for number in ordinary if SYMBOLS.fullmatch(texts[number])}
    if any(scores[number] == 0 for number in found) and any(scores):
        left = [number for number in ordinary if number not in found]
        followed = {number for number, after in pairwise(left) if scores[after] < 0}
        found |= {number for number in left if scores[number] == 0 and number not in followed}
    return found


def _piece(text: str, kind: int, score: float, *, symbol: bool) -> Piece:
    if text in (PAD, EOS, BOS):
        return Piece(text, 0.0, Kind.CONTROL)
    if text == UNK:
        return Piece(text, 0.0, Kind.UNKNOWN)
    if BYTE.fullmatch(text):
        return Piece(text, 0.0, Kind.BYTE)
    if kind == Type.NORMAL and not symbol:
        return Piece(text, score, Kind.NORMAL)
    return Piece(text.replace(" ", SPACE), 0.0, Kind.USER_DEFINED)
