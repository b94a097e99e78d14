"""A SentencePiece `tokenizer.model` of Gemma's vocabulary, as Kaggle ships one, out of the GGUF file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from gguf import GGUFReader, TokenType
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from real270m.fetch import CACHE, gguf_path


def tokenizer_model_path() -> Path:
    """Returns the path of a SentencePiece model of Gemma's vocabulary, built from the GGUF file on the first call.

    llama.cpp's converter keeps text and score of the ordinary pieces and the bytes. Of the others it rewrites three
    things, undone here: user-defined symbols that look special become control symbols, their scores become -1000
    (SentencePiece's trainer writes 0), and in runs of spaces U+2581 becomes a plain space.

    Raises:
        Unavailable: as gguf_path.
    """
    path = CACHE / "gemma-3-270m.tokenizer.model"
    if path.exists():
        return path
    fields = GGUFReader(gguf_path()).fields
    columns = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "scores", "token_type"))
    model = ModelProto()
    for text, score, kind in zip(*columns, strict=True):
        if kind in (TokenType.NORMAL, TokenType.BYTE):
            model.pieces.add(piece=text, score=score, type=kind)
        elif text in ("<pad>", "<eos>", "<bos>"):
            model.pieces.add(piece=text, score=0, type=ModelProto.SentencePiece.CONTROL)
        elif text == "<unk>":
            model.pieces.add(piece=text, score=0, type=ModelProto.SentencePiece.UNKNOWN)
        else:
            text = text.replace(" ", "\u2581")
            model.pieces.add(piece=text, score=0, type=ModelProto.SentencePiece.USER_DEFINED)

    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.vocab_size, trainer.byte_fallback = trainer.BPE, len(model.pieces), True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = range(4)
    trainer.pad_piece, trainer.eos_piece, trainer.bos_piece = "<pad>", "<eos>", "<bos>"
    normalizer.name, normalizer.add_dummy_prefix, normalizer.remove_extra_whitespaces = "identity", False, False

    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        whole = Path(scratch) / path.name
        whole.write_bytes(model.SerializeToString())
        os.replace(whole, path)
    return path
