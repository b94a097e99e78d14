"""GGUF files of a Gemma 3 in Q4_0 as a source: codes and scales are taken as they are.

What a block of Q4_0 is: `formats/q4_0.py`. A scale may be negative or zero there, and a code of a group whose scale is
zero may be anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
from transformers import Gemma3Config, Gemma3TextConfig

from conversion.codes import CodeBlock
from conversion.errors import BadInput, shortened
from conversion.facts import LeafFacts
from conversion.formats import q4_0
from conversion.formats.gguf_names import tensor_name
from conversion.formats.gguf_reader import GgufTensor, Type
from conversion.layout import block_rows
from conversion.name_map import Entry, entries
from conversion.options import Options
from conversion.part import Part
from conversion.repos.gguf_config import config_of, speaks_in_turns
from conversion.sizes import read_config, same_size
from conversion.small_files.repo_files import find_tokenizer
from conversion.source.gguf_files import find_model, find_tower, open_model, open_tower
from conversion.source.gguf_tokenizer import GgufTokenizer
from conversion.source.source import Contents, FloatBlock
from conversion.source.source_files import SourceFiles

PLAIN = (Type.F32, Type.F16, Type.BF16)
EMBEDDING = (*PLAIN, Type.Q4_0, Type.Q6_K, Type.Q8_0)


class GgufSource:
    """A language model in Q4_0, and maybe the mmproj file of its vision tower; a `Source`.

    Args:
        path: the file of the model, one of its parts, or a folder that holds one.
        mmproj: the file of the tower; by default the one beside the model.

    Raises:
        BadInput: no GGUF file of a Gemma 3, or a damaged one.
    """

    kind = "gguf"
    unit = "tensors"
    stored_as = "GGUF"
    unseen = "a flipped bit that leaves a number finite would not be seen"
    bytes_per_second = 150e6
    counts_rounding = True
    libraries = ("gguf",)

    def __init__(self, path: Path, mmproj: Path | None = None):
        self.path = find_model(path)
        self._model = open_model(self.path)
        tower = find_tower(self.path, mmproj)
        self._tower = open_tower(tower) if tower else None
        self._tensors = {**self._model.tensors, **(self._tower.tensors if self._tower else {})}
        paths = sorted({tensor.path.absolute() for tensor in self._tensors.values()} | {self.path.absolute()})
        self.files = SourceFiles(_common_folder(paths), tuple(paths))

    def contents(self, options: Options, donor_holds: Callable[[tuple[str, ...]], bool] | None) -> Contents:
        """The configuration and the tokenizer are those of the metadata, unless the user gives others."""
        for option, given in ("--donor", options.donor), ("--tolerance", options.tolerance):
            if given is not None:
                raise BadInput(f"{option}: is for Flax checkpoints; {self.path} is a GGUF file")
        if options.text_only and self._tower is None:
            raise BadInput(f"{self.path}: --text-only drops a vision tower, but there is no mmproj file")
        tower = None if options.text_only else self._tower
        config = read_config(options.config) if options.config else config_of(self._model, tower)
        if isinstance(config, Gemma3Config) and tower is None:
            config = config.text_config
        parts = self._parts(config)
        embedding = next(part for part in parts if part.is_embedding)
        if options.embedding == "int4" and not embedding.int4:
            kind = self._tensors[embedding.leaf].kind.name
            raise BadInput(f"--embedding int4: {embedding.leaf} is {kind}, not on an int4 grid; take --embedding plain")
        text = config.get_text_config()
        if embedding.int4:  # of which eight rows are multiplied at a time
            text.vocab_size += -text.vocab_size % 8
        tokenizer = find_tokenizer(options.tokenizer, self.path) if options.tokenizer else GgufTokenizer.of(self._model)
        return Contents(
            config,
            same_size(config) if self._is_googles() else None,
            parts,
            frozenset(),
            tokenizer,
            options.variant or ("it" if speaks_in_turns(self._model) else "pt"),
            tuple(self._notes(options, embedding, tokenizer)),
        )

    def parts_for(self, config: Gemma3Config | Gemma3TextConfig, cut: bool) -> tuple[list[Part], frozenset[str]]:
        """A repo that does not see was made without the tower."""
        return self._parts(config), frozenset()

    def nbytes(self, part: Part) -> int:
        """Stored bytes of a tensor."""
        return self._tensors[part.leaf].nbytes

    def codes(self, part: Part, *, weights: bool = False) -> Iterator[CodeBlock]:
        """A matrix in blocks of rows; weights are dequantized by the `gguf` library."""
        tensor, (rows, columns) = self._tensors[part.leaf], part.tensor_shape
        for start, stop in _ranges(rows, columns):
            raw = tensor.raw(start, stop)
            codes, scales = q4_0.unpack({"weight": raw})
            if not np.isfinite(scales).all():
                raise BadInput(f"{tensor.path}: {tensor.name} holds a scale that is not finite; download it again")
            products = gguf.dequantize(raw, Type.Q4_0) if weights else None
            yield CodeBlock(0, slice(start, stop), slice(0, columns), codes, scales.astype(np.float32), products)

    def values(self, part: Part) -> Iterator[FloatBlock]:
        """A tensor in floats: RMSNorm weights without the 1 that llama.cpp's converter adds."""
        tensor = self._tensors[part.leaf]
        shifted = part.tensors[0].endswith("norm.weight") and "vision_tower" not in part.tensors[0]
        if part.is_embedding:
            for start, stop in _ranges(*part.tensor_shape):
                yield FloatBlock(0, start, tensor.floats(start, stop))
            return
        values = tensor.floats()
        if not shifted:
            yield FloatBlock(0, 0, values)
            return
        less = values - np.float32(1)
        yield FloatBlock(0, 0, less, exact=less.astype(np.float64) + 1 == values)

    def judge(self, facts: LeafFacts, tolerance: float | None) -> None:
        """Codes and scales are the file's own: nothing can lie off their grid."""

    def _parts(self, config: Gemma3Config | Gemma3TextConfig) -> list[Part]:
        """Every tensor of the model, once it is certain that all are there, of the right types and shapes, and no more.

        Raises:
            BadInput: with all that is wrong.
        """
        rows = self._model.tensors["token_embd.weight"].shape[0] if "token_embd.weight" in self._model.tensors else 0
        expected = {
            tensor_name(config, name): (name, entry) for entry in entries(config, rows) for name in entry.tensors
        }
        seen = self._tensors if isinstance(config, Gemma3Config) else self._model.tensors
        self._check_types({name: seen[name] for name in expected if name in seen}, expected)
        problems = [f"missing {name}" for name in expected if name not in seen]
        problems += [f"unknown {name} {list(tensor.shape)}" for name, tensor in seen.items() if name not in expected]
        problems += [
            f"{name} is {list(seen[name].shape)}, its metadata says {list(entry.tensor_shape)}"
            for name, (_, entry) in expected.items()
            if name in seen and seen[name].shape != entry.tensor_shape
        ]
        problems += [
            f"{name} has {entry.tensor_shape[0]} outputs, which eight in a word do not hold"
            for name, (_, entry) in expected.items()
            if entry.kind == "linear" and entry.tensor_shape[0] % 8
        ]
        if problems:
            raise BadInput(f"{self.path}: does not fit in {len(problems)} places: {shortened(problems)}")
        return [
            Part(leaf, (name,), entry.tensor_shape, self._kind(leaf, entry)) for leaf, (name, entry) in expected.items()
        ]

    def _kind(self, leaf: str, entry: Entry) -> str:
        return entry.kind if self._tensors[leaf].kind == Type.Q4_0 else "plain"

    def _check_types(self, tensors: dict[str, GgufTensor], expected: dict[str, tuple[str, Entry]]) -> None:
        """Raises BadInput for tensors whose numbers cannot be taken as they are."""
        allowed = {"linear": (Type.Q4_0,), "embedding": EMBEDDING, "plain": PLAIN}
        wrong = [t for name, t in tensors.items() if t.kind not in allowed[expected[name][1].kind]]
        if not wrong:
            return
        kinds = ", ".join(f"{count} in {kind.name}" for kind, count in Counter(t.kind for t in wrong).items())
        named = shortened([f"{tensor.name} is {tensor.kind.name}" for tensor in wrong])
        if all(tensor.name in self._model.tensors for tensor in wrong):
            why = "not on a symmetric grid of 32, they would have to be quantized anew; take a file that is all Q4_0"
        else:
            why = "expected F16, BF16 or F32; take another mmproj file"
        raise BadInput(f"{wrong[0].path}: {len(wrong)} tensors, {kinds}: {why} ({named})")

    def _is_googles(self) -> bool:
        """Whether the metadata names no other model than Google's; its own QAT files name none."""
        name = str(self._model.metadata.get("general.name", "gemma-3")).lower().replace(" ", "-")
        return name.startswith(("gemma-3", "google-gemma-3"))

    def _notes(self, options: Options, embedding: Part, tokenizer: object) -> Iterator[str]:
        if self._tower is None:
            yield "no mmproj file beside it: it becomes a text model (--mmproj names a file elsewhere)"
        elif not options.text_only:
            yield f"vision tower: {next(iter(self._tower.tensors.values())).path}"
        kind = self._tensors[embedding.leaf].kind
        if embedding.int4:
            yield f"{embedding.leaf} is Q4_0: the embedding is int4 too"
        elif options.dtype == "float32":
            yield f"{embedding.leaf} is {kind.name}: it stays plain, in float32"
        else:
            yield f"{embedding.leaf} is {kind.name}: it stays plain, in {options.dtype} (--dtype float32 keeps all)"
        if isinstance(tokenizer, GgufTokenizer) and tokenizer.mended:
            yield f"{tokenizer.mended} tokens that are symbols were typed as ordinary text: mended in the tokenizer"


def _ranges(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    step = block_rows(columns)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _common_folder(paths: list[Path]) -> Path:
    """The folder of all of them, or the nearest above."""
    first, *others = [path.parent for path in paths]
    while not all(other.is_relative_to(first) for other in others):
        first = first.parent
    return first
