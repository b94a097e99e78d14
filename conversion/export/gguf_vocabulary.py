"""The tokenizer of a converted repo as a GGUF file holds it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import gguf

from conversion.errors import BadInput

BYTE_TOKENS = frozenset(f"<0x{byte:02X}>" for byte in range(256))
# What transformers alone knows of Jinja; a comment takes its place.
GENERATION_MARK = re.compile(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}")


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer in llama.cpp's words: SentencePiece's, which joins the neighbors whose joint has the best score.

    Attributes:
        tokens: texts by id.
        scores: of each token; only their order matters.
        kinds: gguf.TokenType of each token.
        special: ids of `bos`, `eos`, `unk`, `pad` and `eot`.
        chat_template: Jinja source, or None.
    """

    tokens: list[str]
    scores: list[float]
    kinds: list[int]
    special: dict[str, int]
    chat_template: str | None

    @classmethod
    def of(cls, repo: Path) -> Vocabulary:
        """Reads tokenizer.json and the chat template of a repo's folder.

        Raises:
            BadInput: there is none, or it is not of Gemma's kind.
        """
        path, template = repo / "tokenizer.json", repo / "chat_template.jinja"
        if not path.is_file():
            raise BadInput(f"{path}: missing; a GGUF file holds its tokenizer, so give --tokenizer when converting")
        values = json.loads(path.read_text(encoding="utf-8"))
        model, added = values["model"], {token["id"]: token for token in values["added_tokens"]}
        if model["type"] != "BPE" or not model["byte_fallback"]:
            raise BadInput(f"{path}: expected BPE with byte fallback as Gemma 3 has it, found {model['type']}")
        ids = model["vocab"] | {token["content"]: token["id"] for token in added.values()}
        # The image token has no row of its own; llama.cpp puts image features in its place by itself.
        if ids.get("<image_soft_token>") == len(ids) - 1:
            del ids["<image_soft_token>"]
        tokens = sorted(ids, key=ids.get)
        if [ids[token] for token in tokens] != list(range(len(tokens))):
            raise BadInput(f"{path}: token ids have gaps, so they are not rows of an embedding")
        joints = dict.fromkeys("".join(merge) for merge in model["merges"])  # best first, each once
        rank = {joint: -float(place) for place, joint in enumerate(joints)}

        def kind(token: str) -> gguf.TokenType:
            if token == model["unk_token"]:
                return gguf.TokenType.UNKNOWN
            if ids[token] in added:
                return gguf.TokenType.CONTROL if added[ids[token]]["special"] else gguf.TokenType.USER_DEFINED
            return gguf.TokenType.BYTE if token in BYTE_TOKENS else gguf.TokenType.NORMAL

        kinds = [kind(token) for token in tokens]
        user_defined = gguf.TokenType.USER_DEFINED
        names = {"bos": "<bos>", "eos": "<eos>", "unk": "<unk>", "pad": "<pad>", "eot": "<end_of_turn>"}
        return cls(
            # llama.cpp looks for user-defined tokens before it turns spaces into U+2581.
            [t.replace("\u2581", " ") if k == user_defined else t for t, k in zip(tokens, kinds, strict=True)],
            [rank.get(token, -float(len(rank))) for token in tokens],
            kinds,
            {name: ids[token] for name, token in names.items() if token in ids},
            GENERATION_MARK.sub(r"{#\1 \2#}", template.read_text(encoding="utf-8")) if template.is_file() else None,
        )

    def metadata(self) -> dict[str, object]:
        """Its part of a file's metadata, in the words of `write_gguf`."""
        metadata = {
            "tokenizer_model": "llama",
            "tokenizer_pre": "default",
            "token_list": self.tokens,
            "token_scores": self.scores,
            "token_types": self.kinds,
            **{f"{name}_token_id": token for name, token in self.special.items()},
            "add_bos_token": True,
            "add_eos_token": False,
            "add_space_prefix": False,
        }
        return metadata if self.chat_template is None else metadata | {"chat_template": self.chat_template}
