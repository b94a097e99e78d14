"""A Hugging Face repo with int4 linears on our grid, AWQ or compressed-tensors, as a source."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.codes import CodeBlock
from conversion.errors import BadInput, shortened
from conversion.facts import LeafFacts
from conversion.name_map import PADDING_ROWS, Entry, entries
from conversion.options import Options
from conversion.part import Part
from conversion.repos.tensor_files import TensorFiles
from conversion.shards import INDEX
from conversion.sizes import read_config
from conversion.small_files.repo_files import StoredTokenizer, find_tokenizer, write_json
from conversion.source.quantization import anew, check_awq, check_compressed_tensors
from conversion.source.source import Contents, FloatBlock
from conversion.source.source_files import SourceFiles
from conversion.source.stored_linear import AwqLinear, PackedLinear, StoredLinear

KINDS = {"awq": (AwqLinear, check_awq), "compressed-tensors": (PackedLinear, check_compressed_tensors)}
ROWS_WEIGHTS = 1 << 22  # weights of an embedding's rows read at a time
VISION = ("vision_tower.", "multi_modal_projector.")
HEADS = ("lm_head.weight", "language_model.lm_head.weight")  # the embedding once more, where they are tied


class HubFiles(StoredTokenizer):
    """The tokenizer of a repo, and how it generates."""

    def write(self, repo: Path, config: Gemma3Config | Gemma3TextConfig, variant: str) -> None:
        """Copies its files; without the kind of cache, which transformers chooses better."""
        super().write(repo, config, variant)
        generation = self.path / "generation_config.json"
        if generation.is_file():
            values = {key: value for key, value in _read_json(generation).items() if key != "cache_implementation"}
            write_json(repo / generation.name, values)


class HubSource:
    """A folder of a Hugging Face repo; a `Source`.

    Attributes:
        config: its configuration.
        tensors: its files of weights.

    Raises:
        BadInput: it is another model's, its weights are on another grid or damaged, or a file is missing.
    """

    unit = "tensors"
    stored_as = "int4"
    unseen = "a flipped bit that leaves a number finite would not be seen"
    counts_rounding = True
    bytes_per_second = 200e6
    libraries = ()

    def __init__(self, path: Path):
        self.path = path
        settings = _read_json(path / "config.json").get("quantization_config") or {}
        self.kind = settings.get("quant_method")
        if self.kind not in KINDS:
            raise BadInput(f"{path}: quant_method is {self.kind!r}; a source is one of {' and '.join(KINDS)}")
        self.config = read_config(path / "config.json")
        self._linear, check_settings = KINDS[self.kind]
        check_settings(path, settings)
        self.tensors = TensorFiles(path)
        index = [path / INDEX] if (path / INDEX).is_file() else []
        self.files = SourceFiles(path, (path / "config.json", *self.tensors.paths, *index))

    def contents(self, options: Options, donor_holds: Callable[[tuple[str, ...]], bool] | None) -> Contents:
        """Names and shapes follow from config.json, or from the configuration that the user gives.

        Which size it is, nobody asks: fine-tunes have the shapes of Google's models too.
        """
        if options.embedding == "int4":
            way = "--embedding plain, whose side file makes it int4 when loaded, if it lies on the grid"
            raise BadInput(f"--embedding int4: {self.path} has its embedding in floats; take {way}")
        config = read_config(options.config) if options.config else self.config
        if options.text_only:
            if not isinstance(config, Gemma3Config):
                raise BadInput(f"{self.path}: --text-only drops a vision tower, but this model has none")
            config = config.text_config
        parts, donated = self._parts(config, donor_holds)
        own = HubFiles(self.path) if (self.path / "tokenizer.json").is_file() else None
        tokenizer = own if own and options.tokenizer is None else find_tokenizer(options.tokenizer, self.path)
        return Contents(config, None, parts, donated, tokenizer, options.variant or ("it" if self._chats else "pt"))

    def parts_for(self, config: Gemma3Config | Gemma3TextConfig, cut: bool) -> tuple[list[Part], frozenset[str]]:
        """Tensors that are missing may have come from a donor."""
        return self._parts(config, lambda tensors: True)

    def nbytes(self, part: Part) -> int:
        """Bytes of its tensors."""
        if part.int4:
            return self.linear(part).nbytes
        return self.tensors.nbytes(self._stored(part.tensors[0]))

    def linear(self, part: Part) -> StoredLinear:
        """The linear that a part on the grid is."""
        return self._linear(self.tensors, self._stem(part.tensors[0]))

    @property
    def scale_dtype(self) -> str:
        """Of the scales of its first linear."""
        return next(
            str(self.tensors.dtype(name)) for name in self.tensors.names() if name.endswith(f".{self._linear.scales}")
        )

    def codes(self, part: Part, *, weights: bool = False) -> Iterator[CodeBlock]:
        """Its own, with the scale of a larger group for each 32 of it."""
        linear = self.linear(part)
        linear.check()
        return linear.blocks(weights=weights)

    def values(self, part: Part) -> Iterator[FloatBlock]:
        """An embedding in blocks of rows, any other tensor in one."""
        (name,) = part.tensors
        step = max(1, ROWS_WEIGHTS // part.tensor_shape[-1]) if part.is_embedding else part.tensor_shape[0]
        for start in range(0, part.tensor_shape[0], step):
            stop = min(start + step, part.tensor_shape[0])
            yield FloatBlock(0, start, self.tensors.read(self._stored(name), start, stop).astype(np.float32))

    def judge(self, facts: LeafFacts, tolerance: float | None) -> None:
        """Codes that are stored lie on the grid."""

    @property
    def _chats(self) -> bool:
        """Whether it has a chat template: in a file of its own, or among the settings of the tokenizer."""
        if any((self.path / f"chat_template.{ending}").is_file() for ending in ("jinja", "json")):
            return True
        settings = self.path / "tokenizer_config.json"
        return settings.is_file() and "chat_template" in _read_json(settings)

    def _parts(
        self, config: Gemma3Config | Gemma3TextConfig, donor_holds: Callable[[tuple[str, ...]], bool] | None
    ) -> tuple[list[Part], frozenset[str]]:
        """What becomes each tensor of a model, and what a donor has to give.

        Raises:
            BadInput: tensors are missing, unknown, of another shape, or on another grid: all of them in one message.
        """
        vocabulary = config.get_text_config().vocab_size
        matched = entries(config, self._rows(config, vocabulary))
        parts, donated, problems = [], set(), []
        for entry in matched:
            for name in entry.tensors:
                part = self._part(entry, name)
                parts.append(part)
                if part.leaf not in self.tensors and not part.int4:
                    if donor_holds and not entry.int4 and donor_holds((name,)):
                        donated.add(part.leaf)
                    else:
                        problems.append(f"{part.leaf} is missing")
                else:
                    problems += self._problems_of(entry, part)
        problems += self._unknown(parts, config)
        if problems:
            advice = anew(problems)
            if all(problem.endswith(" is missing") and problem.startswith(VISION) for problem in problems):
                advice = (
                    "; --donor takes these tensors from a transformers repo that has them, --text-only does without"
                )
            raise BadInput(
                f"{self.path}: does not fit its configuration in {len(problems)} places: {shortened(problems)}{advice}"
            )
        first = next((part for part in parts if part.int4), None)
        if first is None:
            raise BadInput(f"{self.path}: holds no int4 linears, though its config.json says {self.kind}")
        self.linear(first).check()  # one tells of all that they are asymmetric, long before they are all read
        return parts, frozenset(donated)

    def _rows(self, config: Gemma3Config | Gemma3TextConfig, vocabulary: int) -> int:
        """Rows of the stored embedding, if they may be the model's."""
        prefix = "language_model.model." if isinstance(config, Gemma3Config) else "model."
        name = self._stored(f"{prefix}embed_tokens.weight")
        rows = self.tensors.shape(name)[0] if name in self.tensors else vocabulary
        return rows if 0 <= vocabulary - rows <= PADDING_ROWS else vocabulary

    def _part(self, entry: Entry, name: str) -> Part:
        stem = self._stem(name)
        if self._linear.of(self.tensors, stem):
            return Part(stem, (name,), entry.tensor_shape, "linear")
        return Part(self._stored(name), (name,), entry.tensor_shape, "plain")

    def _problems_of(self, entry: Entry, part: Part) -> Iterator[str]:
        """What is against a tensor that is there."""
        if not part.int4:
            if self.tensors.shape(part.leaf) != part.tensor_shape:
                yield f"{part.leaf} is {list(self.tensors.shape(part.leaf))}, not {list(part.tensor_shape)}"
            elif self.tensors.dtype(part.leaf).kind == "i":
                yield f"{part.leaf} is {self.tensors.dtype(part.leaf)}, not floats"
            return
        linear = self.linear(part)
        if not entry.int4 or entry.is_embedding:
            yield f"{part.leaf} is int4 words; only linears of the language model may be"
        elif linear.shape != part.tensor_shape:
            yield f"{part.leaf} is {list(linear.shape)}, not {list(part.tensor_shape)}"
        else:
            yield from linear.problems()

    def _unknown(self, parts: list[Part], config: Gemma3Config | Gemma3TextConfig) -> Iterator[str]:
        """Stored tensors that the model has no place for."""
        known = {name for part in parts for name in (self.linear(part).tensors if part.int4 else [part.leaf])}
        for name in sorted(set(self.tensors.names()) - known):
            dropped = isinstance(config, Gemma3TextConfig) and name.startswith(VISION)
            if name in HEADS and config.get_text_config().tie_word_embeddings:
                continue
            if not dropped:
                yield f"{name} is not part of the model"

    def _stored(self, name: str) -> str:
        """The name here, in the first key layout, of a tensor of the model; a text model may be a part of this one."""
        whole = f"language_model.{name}"
        return whole if name not in self.tensors and self._has(whole) else name

    def _stem(self, name: str) -> str:
        stem = name.removesuffix(".weight")
        whole = f"language_model.{stem}"
        return whole if not self._has(stem) and self._has(whole) else stem

    def _has(self, name: str) -> bool:
        return (
            name in self.tensors or f"{name}.weight" in self.tensors or f"{name}.{self._linear.words}" in self.tensors
        )


def _read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is no mapping")
        return values
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: not readable as JSON ({error}); download it again") from error
