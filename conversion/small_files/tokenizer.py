"""Gemma 3's tokenizer and processor files, made from Kaggle's SentencePiece `tokenizer.model` without the Hub.

    write_tokenizer_files      tokenizer.model -> every file AutoTokenizer and AutoProcessor need, in one folder
    write_tokenizer_of         likewise, from the pieces themselves
    build_tokenizer            pieces -> the same tokenizer as a `tokenizers.Tokenizer`
    read_sentencepiece         tokenizer.model -> its pieces, checked to be of Gemma's kind

SentencePiece's BPE joins, again and again, the neighbors whose joint piece has the highest score. Hugging Face's BPE
follows a ranked list of merges instead: for every piece all ways to cut it into two pieces, best scores first.
"""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.errors import BadInput
from conversion.folders.files import write_text

PAD, EOS, BOS, UNK = "<pad>", "<eos>", "<bos>", "<unk>"
TURN_TOKENS = ("<start_of_turn>", "<end_of_turn>")
BOI, EOI = "<start_of_image>", "<end_of_image>"
IMAGE = "<image_soft_token>"  # stands for one row of image features; SentencePiece does not know it
SPACE = "\u2581"  # what SentencePiece writes for a space
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


class Kind(IntEnum):
    """`ModelProto.SentencePiece.Type` of sentencepiece_model.proto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its place in the list is its token id."""

    text: str
    score: float
    kind: Kind


def write_tokenizer_files(
    sentencepiece_path: Path,
    output: Path,
    *,
    variant: str,
    multimodal: bool,
    config: Gemma3Config | Gemma3TextConfig,
) -> list[Path]:
    """Writes the tokenizer's and, for multimodal models, the processor's files.

    Args:
        sentencepiece_path: Kaggle's `tokenizer.model`.
        output: An existing folder; files of the same names are overwritten.
        variant: `it` writes the chat template too, `pt` does not: a base model has no turns.
        multimodal: Adds the image token, preprocessor_config.json and processor_config.json. A text-only model has no
            embedding row for the image token, so there it is left out.
        config: The model's configuration: image size, tokens per image, context length; its token ids are checked.

    Returns:
        The paths written.

    Raises:
        BadInput: The file is damaged or not a Gemma tokenizer, or it does not fit the configuration.
    """
    if variant not in ("it", "pt"):
        raise ValueError(f"variant is {variant!r}, expected 'it' (instruction-tuned) or 'pt' (pre-trained)")
    pieces = read_sentencepiece(sentencepiece_path)
    template = CHAT_TEMPLATE.read_text(encoding="utf-8") if variant == "it" else None
    return write_tokenizer_of(pieces, output, config, str(sentencepiece_path), multimodal=multimodal, template=template)


def write_tokenizer_of(
    pieces: list[Piece],
    output: Path,
    config: Gemma3Config | Gemma3TextConfig,
    source: str,
    *,
    multimodal: bool,
    merges: list[tuple[str, str]] | None = None,
    template: str | None = None,
) -> list[Path]:
    """Writes the tokenizer's and, for multimodal models, the processor's files.

    Args:
        pieces: the vocabulary, without the image token.
        output: an existing folder; files of the same names are overwritten.
        config: the model's configuration; its token ids are checked.
        source: what messages call the origin of the pieces.
        multimodal: as for `write_tokenizer_files`.
        merges: what joins with what, best first; None where the scores of the pieces tell.
        template: the chat template, None for a base model.

    Returns:
        The paths written.

    Raises:
        BadInput: the pieces do not fit the configuration.
    """
    _check_fits(pieces, config, multimodal, source)
    written = [output / "tokenizer.json"]
    build_tokenizer(pieces, multimodal=multimodal, merges=merges).save(str(written[0]), pretty=False)
    written.append(_write_json(output / "tokenizer_config.json", _tokenizer_config(config, multimodal)))
    if multimodal:
        written += write_processor_files(output, config)
    if template is not None:
        written.append(output / CHAT_TEMPLATE.name)
        write_text(written[-1], template)
    return written


def write_processor_files(output: Path, config: Gemma3Config) -> list[Path]:
    """Writes what AutoProcessor needs beside the tokenizer; existing files are overwritten. Returns the paths."""
    processor = {"image_seq_length": config.mm_tokens_per_image, "processor_class": "Gemma3Processor"}
    return [
        _write_json(output / "preprocessor_config.json", _preprocessor_config(config)),
        _write_json(output / "processor_config.json", processor),
    ]


def _write_json(path: Path, content: dict) -> Path:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
    return path


def build_tokenizer(pieces: list[Piece], *, multimodal: bool, merges: list[tuple[str, str]] | None = None) -> Tokenizer:
    """Builds Gemma 3's tokenizer; ids are the places in `pieces`, the image token takes the first id after them."""
    vocab = {piece.text: index for index, piece in enumerate(pieces)}
    merges = _merges(pieces, vocab) if merges is None else merges
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token=UNK, fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    # No space is left to split at after the normalizer; transformers' own Gemma class states it, so the files agree.
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, vocab[BOS])]
    )
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens(_added_tokens(pieces, multimodal))
    return tokenizer


def _added_tokens(pieces: list[Piece], multimodal: bool) -> list[AddedToken]:
    """Tokens that are cut out of the text before BPE sees it, as SentencePiece does with its user-defined symbols.

    Special ones are those that `skip_special_tokens` drops. SentencePiece itself never reads a control symbol (<bos>,
    ...) in a text; Hugging Face's tokenizers do, and the published Gemma tokenizer is no exception.
    """
    special = {*TURN_TOKENS, BOI, EOI, IMAGE}
    tokens = [
        AddedToken(piece.text, normalized=False, special=piece.kind != Kind.USER_DEFINED or piece.text in special)
        for piece in pieces
        if piece.kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
    ]
    if multimodal:
        tokens.append(AddedToken(IMAGE, normalized=False, special=True))
    return tokens


def _merges(pieces: list[Piece], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """All (left, right) whose joint is a piece, best first: by the joint's score, then the longest.

    The order among equals is that of transformers' Gemma converter, so the list equals the published one entry by
    entry.
    """
    ranked = []
    for piece in pieces:
        text = piece.text
        cuts = [(text[:i], text[i:]) for i in range(1, len(text)) if text[:i] in vocab and text[i:] in vocab]
        cuts.sort(key=lambda cut: (vocab[cut[0]], vocab[cut[1]]))
        ranked += [(piece.score, len(left), len(right), left, right) for left, right in cuts]
    ranked.sort(key=lambda merge: merge[:3], reverse=True)  # stable: what is equal keeps the vocabulary's order
    return [merge[3:] for merge in ranked]


def _check_fits(pieces: list[Piece], config: Gemma3Config | Gemma3TextConfig, multimodal: bool, source: str) -> None:
    ids = {piece.text: index for index, piece in enumerate(pieces)}
    if multimodal:
        ids.setdefault(IMAGE, len(pieces))
    missing = [token for token in (PAD, EOS, BOS, UNK, *TURN_TOKENS, BOI, EOI) if token not in ids]
    if missing:
        raise BadInput(f"{source}: has no {', '.join(missing)}, so it is not Gemma 3's; take the one of the checkpoint")
    rows = config.get_text_config().vocab_size
    if len(ids) > rows:
        raise BadInput(f"{source}: {len(ids)} tokens for {rows} embedding rows; take the tokenizer of the checkpoint")
    if not multimodal:
        return
    for token, name in ((BOI, "boi_token_index"), (EOI, "eoi_token_index"), (IMAGE, "image_token_index")):
        found, expected = ids[token], getattr(config, name)
        if found != expected:
            raise BadInput(
                f"{source}: {token} is token {found}, expected {expected} ({name} of the model's config); "
                "take the tokenizer of the checkpoint"
            )


def _tokenizer_config(config: Gemma3Config | Gemma3TextConfig, multimodal: bool) -> dict:
    content = {
        "tokenizer_class": "GemmaTokenizer",
        "model_max_length": config.get_text_config().max_position_embeddings,
        "padding_side": "left",  # generation goes on at the right
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "unk_token": UNK,
        "clean_up_tokenization_spaces": False,
        "spaces_between_special_tokens": False,
    }
    if multimodal:
        # Gemma3Processor reads these as attributes: transformers 4 takes them from the top level, 5 from the mapping.
        image_tokens = {"boi_token": BOI, "eoi_token": EOI, "image_token": IMAGE}
        content |= image_tokens | {"extra_special_tokens": image_tokens, "processor_class": "Gemma3Processor"}
    return content


def _preprocessor_config(config: Gemma3Config) -> dict:
    side = config.vision_config.image_size
    return {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "image_seq_length": config.mm_tokens_per_image,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,  # to -1..1
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_pan_and_scan": None,  # the caller's choice; None is off
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_ratio_to_activate": None,
    }


def read_sentencepiece(path: Path) -> list[Piece]:
    """Reads the pieces of a SentencePiece model, in the order of their ids.

    The format is protobuf; message and field numbers are those of sentencepiece_model.proto (ModelProto).

    Raises:
        BadInput: The file is damaged, or a setting is not Gemma's, so that ids would come out wrong.
    """
    try:
        pieces, settings = _parse(memoryview(path.read_bytes()))
    except (EOFError, KeyError, TypeError, ValueError, struct.error) as error:
        raise BadInput(f"{path}: not a SentencePiece model, or cut short or damaged; download it again") from error
    for name, (found, expected) in settings.items():
        if found != expected:
            raise BadInput(f"{path}: {name} is {found}, expected {expected} as in Gemma 3's tokenizer.model")
    repeated = [text for text, count in Counter(piece.text for piece in pieces).items() if count > 1]
    if repeated:
        raise BadInput(f"{path}: damaged, the piece {repeated[0]!r} comes more than once; download it again")
    missing = {f"<0x{byte:02X}>" for byte in range(256)} - {piece.text for piece in pieces if piece.kind == Kind.BYTE}
    if missing:
        raise BadInput(f"{path}: damaged, the byte piece {min(missing)} is missing; download it again")
    return pieces


def _parse(model: memoryview) -> tuple[list[Piece], dict[str, tuple[int, int]]]:
    """Returns the pieces, and for each setting that matters (the file's value or the format's default, Gemma's)."""
    fields = list(_fields(model))
    pieces = [_piece(message) for number, message in fields if number == 1]
    trainer, normalizer = (dict(_fields(dict(fields)[number])) for number in (2, 3))
    return pieces, {
        "trainer_spec.model_type (2 is BPE)": (trainer.get(3, 1), 2),
        "trainer_spec.byte_fallback": (trainer.get(35, 0), 1),
        "length of normalizer_spec.precompiled_charsmap": (len(normalizer.get(2, b"")), 0),
        "normalizer_spec.add_dummy_prefix": (normalizer.get(3, 1), 0),
        "normalizer_spec.remove_extra_whitespaces": (normalizer.get(4, 1), 0),
        "normalizer_spec.escape_whitespaces": (normalizer.get(5, 1), 1),
    }


def _piece(message: memoryview) -> Piece:
    fields = dict(_fields(message))
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return Piece(str(fields[1], "utf-8"), score, Kind(fields.get(3, Kind.NORMAL)))


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields (field number, value) of a protobuf message; a varint as int, every other value as its bytes.

    The encoding: https://protobuf.dev/programming-guides/encoding/.
    """
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire_type == 2:
            size, at = _varint(message, at)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type}")
        if at + size > len(message):
            raise EOFError(f"field {number} ends at {at + size} of {len(message)} bytes")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Returns the number that starts at `at`, and where the next thing starts."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise EOFError("cut inside a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
