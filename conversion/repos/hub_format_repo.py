"""A repo in one of `HUB_FORMATS`, read back tensor by tensor."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np

from conversion.errors import BadInput
from conversion.formats import HubFormat
from conversion.name_map import Entry, entries
from conversion.repos.safetensors_file import SafetensorsFile
from conversion.shards import INDEX
from conversion.sizes import read_config
from conversion.tensor_spec import SCALES


class HubFormatRepo:
    """Linears in a format, all else plain; a `StoredRepo`.

    Args:
        path: the folder.
        format: of the linears.

    Attributes:
        index: name of the file of every tensor, as the index has it.

    Raises:
        BadInput: the folder holds no such repo.
    """

    scale_dtype = None
    through_bfloat16 = False
    embedding_scale_dtypes = (np.float32, ml_dtypes.bfloat16, np.float16)
    cuts_embedding = False

    def __init__(self, path: Path, format: HubFormat):
        self.path, self.format = path, format
        self.config = read_config(path / "config.json")
        self._kept = self.config.quantization_config.get("ignore") or []
        try:
            self.index = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
            shards = sorted(set(self.index.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path / INDEX}: unreadable ({error})") from error
        self._files = {
            name: file for shard in shards for file in [SafetensorsFile(path / shard)] for name in file.header
        }
        self._parts = [spec.name.removeprefix(".") for spec in format.specs("", (8, 32), SCALES)]
        scales = f".{self._parts[1]}"
        stems = [name.removesuffix(scales) for name in self._files if name.endswith(scales)]
        embeddings = [name for name in self._files if name.endswith("embed_tokens.weight")]
        if not embeddings or not stems:
            raise BadInput(f"{path}: its safetensors files hold no embedding or no packed linears")
        self.embedding = embeddings[0].removesuffix(".weight")
        self._copies = format.embedding_stems(self.embedding) if self.embedding in stems else ()
        self.linears = [name for name in stems if name not in self._copies]

    @property
    def rows(self) -> int:
        """How many rows the embedding has."""
        name = f"{self.embedding}.weight"
        return self._files[name].shape(name)[0]

    def problems(self) -> list[str]:
        """What differs between the tensors that config.json asks for and those that are stored."""
        expected, found = self._expected(), {name: file.shape(name) for name, file in self._files.items()}
        problems = [f"{name} is missing" for name in sorted(set(expected) - set(found))]
        problems += [f"{name} is not part of the model" for name in sorted(set(found) - set(expected))]
        problems += [
            f"{name} is {list(found[name])}, not {list(expected[name])}"
            for name in sorted(set(expected) & set(found))
            if expected[name] != found[name]
        ]
        problems += [f"{name} is wrong" for name in self._wrong_constants()]
        places = {name: file.path.name for name, file in self._files.items()}
        return problems + [f"{INDEX} misplaces {name}" for name, file in self.index.items() if places.get(name) != file]

    def _expected(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors that config.json asks for."""
        shapes: dict[str, tuple[int, ...]] = {}
        for entry in entries(self.config, self.config.get_text_config().vocab_size):
            linears = [name for name in _linears_of(entry) if name not in self._kept]
            specs = [spec for name in linears for spec in self.format.specs(name, entry.tensor_shape, SCALES)]
            shapes |= {spec.name: spec.shape for spec in specs}
            if entry.is_embedding and self._copies:
                specs = [spec for stem in self._copies for spec in self.format.specs(stem, entry.tensor_shape, SCALES)]
                shapes |= {spec.name: spec.shape for spec in specs}
                continue
            plain = [name for name in entry.tensors if name.removesuffix(".weight") not in linears]
            shapes |= dict.fromkeys(plain, entry.tensor_shape)
        return shapes

    def _wrong_constants(self) -> list[str]:
        """Tensors that do not depend on the weights, and are not what the shape of their linear asks for."""
        return [
            f"{name}.{part}"
            for entry in entries(self.config, self.config.get_text_config().vocab_size)
            for name in _linears_of(entry)
            for part, values in self.format.constants(entry.tensor_shape).items()
            if f"{name}.{part}" in self._files and not self.plain_equals(f"{name}.{part}", values)
        ]

    def linear(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Codes int8 [out, in] and scales [out, in/32] in their stored dtype."""
        return self.format.unpack({part: self._read(f"{name}.{part}") for part in self._parts})

    def embedding_rows(self, start: int, stop: int) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Codes and scales of some rows of the embedding, or, where it is plain, their weights."""
        if self._copies:
            return *self._embedding_codes(start, stop), None
        name = f"{self.embedding}.weight"
        return None, None, self._files[name].read(name, start, stop)

    def _embedding_codes(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Of some rows.

        Raises:
            BadInput: they do not stand alike under each name.
        """
        first, *others = (
            {part: self._files[f"{stem}.{part}"].read(f"{stem}.{part}", start, stop) for part in self._parts}
            for stem in self._copies
        )
        for stem, other in zip(self._copies[1:], others, strict=True):
            if any(first[part].tobytes() != other[part].tobytes() for part in self._parts):
                raise BadInput(f"{self.path}: {stem} is not {self.embedding}, rows {start} to {stop}")
        return self.format.unpack(first)

    def plain_equals(self, name: str, values: np.ndarray) -> bool:
        """Whether a tensor that is no codes holds these values, rounded to its dtype."""
        stored = self._read(name)
        return stored.tobytes() == np.ascontiguousarray(values).astype(stored.dtype).tobytes()

    def _read(self, name: str) -> np.ndarray:
        return self._files[name].read(name)


def _linears_of(entry: Entry) -> list[str]:
    """Names of the linears that a leaf becomes."""
    return [name.removesuffix(".weight") for name in entry.tensors] if entry.int4 and not entry.is_embedding else []
