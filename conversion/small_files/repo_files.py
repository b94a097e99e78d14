"""The small files of a repo: configuration, generation defaults, code, tokenizer, notice. (The card: model_card.py.)"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer
from transformers import Gemma3Config, Gemma3TextConfig
from transformers.dynamic_module_utils import get_relative_import_files

from conversion.errors import BadInput
from conversion.folders.files import write_text
from conversion.formats import awq
from conversion.sizes import END_OF_TURN
from conversion.small_files.provenance import PROVENANCES

CONVERTER = Path(__file__).resolve().parents[1]
MODELING_FILE = CONVERTER.parent / "modeling_gemma3_int4.py"
# The modeling file and what it imports relatively, found as transformers finds it when it copies a repo's code.
CODE_FILES = tuple(sorted({MODELING_FILE.name, *(Path(f).name for f in get_relative_import_files(MODELING_FILE))}))
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
NOTICE_TEXT = """\
Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms

The weights in this repository are a format conversion of {source}. Use of them is subject
to the Gemma Terms of Use and to the Gemma Prohibited Use Policy (ai.google.dev/gemma/prohibited_use_policy). Whoever
passes them on passes these terms on. The Python files are licensed under the Apache License 2.0.
"""


def notice(kind: str) -> str:
    """NOTICE of a converted repo, for a kind of source."""
    return NOTICE_TEXT.format(source=PROVENANCES[kind].notice)


def model_config(config: Gemma3Config | Gemma3TextConfig, dtype: str, kept: Iterable[str] = ()) -> dict:
    """config.json of a converted repo; `kept` are names of linears of the language model that are floats."""
    values = config.to_dict()
    multimodal = isinstance(config, Gemma3Config)
    name = "Gemma3ForConditionalGeneration" if multimodal else "Gemma3ForCausalLM"
    classes = {"AutoModel": "Gemma3Model" if multimodal else "Gemma3TextModel", "AutoModelForCausalLM": name}
    if multimodal:
        classes |= {"AutoModelForImageTextToText": name, "AutoModelForMultimodalLM": name}
    auto_map = {"AutoConfig": f"int4_config.{type(config).__name__}"}
    values |= {
        "architectures": [name],
        "auto_map": auto_map | {auto: f"modeling_gemma3_int4.{own}" for auto, own in classes.items()},
        "dtype": dtype,
        "quantization_config": awq.quantization_config(kept),
    }
    for part in ("text_config", "vision_config"):
        if part in values:
            values[part]["dtype"] = dtype
    text = values.get("text_config", values)
    rotary = text["rope_parameters"]["full_attention"]
    if rotary["rope_type"] != "default":  # under its older name too, where mlx-lm and transformers 4 look for it
        text["rope_scaling"] = {name: value for name, value in rotary.items() if name != "rope_theta"}
    return values


def generation_config(config: Gemma3Config | Gemma3TextConfig, variant: str, published: bool) -> dict:
    """generation_config.json: token ids, and Google's sampling defaults; a config of the user's own stays greedy."""
    text = config.text_config if isinstance(config, Gemma3Config) else config
    eos = getattr(config, "eos_token_id", None) or text.eos_token_id
    if published:
        eos = [1, END_OF_TURN] if variant == "it" else 1
    sampling = {"do_sample": True, "top_k": 64, "top_p": 0.95} if published else {"do_sample": False}
    return {"bos_token_id": text.bos_token_id, "eos_token_id": eos, "pad_token_id": text.pad_token_id} | sampling


def write_json(path: Path, values: dict) -> None:
    write_text(path, json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def copy_code(repo: Path) -> None:
    """The Python files that trust_remote_code runs."""
    for name in CODE_FILES:
        shutil.copyfile(MODELING_FILE.with_name(name), repo / name)


def code_fingerprint() -> str:
    """SHA-256 over the converter and the code it copies: another version of either may write other bytes."""
    files = [*sorted(CONVERTER.rglob("*.py")), *(MODELING_FILE.with_name(name) for name in CODE_FILES)]
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


class TokenizerFiles(Protocol):
    """Where a repo's tokenizer comes from; `str` of it is what messages call it."""

    def write(self, repo: Path, config: Gemma3Config | Gemma3TextConfig, variant: str) -> None:
        """Writes tokenizer, chat template and processor files.

        Raises:
            BadInput: the tokenizer is none, or not one of this model.
        """


@dataclass(frozen=True)
class StoredTokenizer:
    """Files to copy, or to make a tokenizer from; `TokenizerFiles`.

    Attributes:
        path: a folder of Hugging Face files, or a SentencePiece file.
    """

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def write(self, repo: Path, config: Gemma3Config | Gemma3TextConfig, variant: str) -> None:
        """Copies a folder's files; makes them from SentencePiece."""
        write_tokenizer(self.path, repo, config, variant)


def find_tokenizer(given: Path | None, checkpoint: Path) -> StoredTokenizer | None:
    """What to take the tokenizer from: `--tokenizer`, else a `tokenizer.model` with the checkpoint, as Kaggle has it.

    It is looked for in the checkpoint's folder and the two above it, as deep as a checkpoint is looked for.

    Returns:
        None if there is neither.

    Raises:
        BadInput: what was given is no tokenizer.
    """
    if given is None:
        place = checkpoint.resolve()
        near = [folder / "tokenizer.model" for folder in (place, *place.parents[:2])]
        return next((StoredTokenizer(path) for path in near if path.is_file()), None)
    if given.is_file():
        return StoredTokenizer(given.parent if given.name == "tokenizer.json" else given)
    if (given / "tokenizer.json").is_file():
        return StoredTokenizer(given)
    if (given / "tokenizer.model").is_file():
        return StoredTokenizer(given / "tokenizer.model")
    raise BadInput(f"{given}: holds neither tokenizer.json nor tokenizer.model; --tokenizer takes a folder or a file")


def write_tokenizer(source: Path, repo: Path, config: Gemma3Config | Gemma3TextConfig, variant: str) -> None:
    """Tokenizer, chat template and processor files, copied or made from SentencePiece.

    A folder without a processor, for a model that sees, gets Gemma 3's.

    Raises:
        BadInput: the tokenizer is none, or not one of this model.
    """
    from conversion.small_files.tokenizer import write_processor_files, write_tokenizer_files

    multimodal = isinstance(config, Gemma3Config)
    if source.is_dir():
        path = source / "tokenizer.json"
        try:
            vocabulary = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
        except Exception as error:  # the library has no class of its own
            raise BadInput(f"{path}: not a tokenizer ({error}); give --tokenizer another folder") from error
        _check_belongs(path, vocabulary, config)
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, repo / name)
        if multimodal and not any((source / name).is_file() for name in PROCESSOR_FILES):
            write_processor_files(repo, config)
        return
    write_tokenizer_files(source, repo, variant=variant, multimodal=multimodal, config=config)


def _check_belongs(path: Path, vocabulary: dict[str, int], whole: Gemma3Config | Gemma3TextConfig) -> None:
    """Raises BadInput if a tokenizer is another model's.

    Google's text models have the picture's token in their tokenizer, one past the embedding's last row.
    """
    from conversion.small_files.tokenizer import IMAGE

    config = whole.get_text_config()
    take = "it is another model's; take the tokenizer of the checkpoint"
    if not vocabulary:
        raise BadInput(f"{path}: knows no token; take the tokenizer of the checkpoint")
    rows = {word: row for word, row in vocabulary.items() if word != IMAGE}
    if (last := max(rows.values(), default=0)) >= config.vocab_size:
        raise BadInput(f"{path}: its last token is {last}, the embedding has {config.vocab_size} rows: {take}")
    if (bos := vocabulary.get("<bos>", config.bos_token_id)) != config.bos_token_id:
        raise BadInput(f"{path}: <bos> is token {bos}, expected {config.bos_token_id}: {take}")
    picture = getattr(whole, "image_token_id", config.vocab_size)
    if picture < config.vocab_size and picture not in vocabulary.values():
        raise BadInput(f"{path}: has no token {picture}, a picture's; it is a text model's")
