"""A repo in compressed-tensors format, read back tensor by tensor, with the methods of `AwqRepo` that proofs use."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np

from conversion.codes import GROUP_SIZE
from conversion.errors import BadInput
from conversion.formats import compressed_tensors
from conversion.name_map import entries
from conversion.repos.safetensors_file import SafetensorsFile
from conversion.shards import INDEX
from conversion.sizes import read_config


class CompressedRepo:
    """A repo as `formats/compressed_tensors.py` lays it out.

    Attributes:
        path: its folder.
        config: a transformers configuration.
        linears: names of the int4 linears.
        embedding: name of the embedding, which is plain here.
        rows: how many rows the embedding has.

    Raises:
        BadInput: the folder holds no such repo.
    """

    through_bfloat16 = False
    embedding_scale_dtypes = (np.float32, ml_dtypes.bfloat16, np.float16)
    cuts_embedding = False

    def __init__(self, path: Path):
        self.path = path
        self.config = read_config(path / "config.json")
        try:
            self.index = json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"]
            shards = sorted(set(self.index.values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path / INDEX}: unreadable ({error})") from error
        self._files = {
            name: file for shard in shards for file in [SafetensorsFile(path / shard)] for name in file.header
        }
        self.linears = [name.removesuffix(".weight_packed") for name in self._files if name.endswith(".weight_packed")]
        embeddings = [name for name in self._files if name.endswith("embed_tokens.weight")]
        if not embeddings or not self.linears:
            raise BadInput(f"{path}: its safetensors files hold no embedding or no packed linears")
        self.embedding = embeddings[0].removesuffix(".weight")
        self.rows = self._files[embeddings[0]].shape(embeddings[0])[0]

    @property
    def places(self) -> dict[str, str]:
        """Name of the file of every stored tensor."""
        return {name: file.path.name for name, file in self._files.items()}

    def problems(self) -> list[str]:
        """What differs between the tensors that config.json asks for and those that are stored."""
        vocabulary = self.config.get_text_config().vocab_size
        expected: dict[str, tuple[int, ...]] = {}
        for entry in entries(self.config, vocabulary):
            for name in entry.tensors:
                stem = name.removesuffix(".weight")
                if entry.is_embedding or not entry.int4:
                    expected[name] = (vocabulary, *entry.tensor_shape[1:]) if entry.is_embedding else entry.tensor_shape
                    continue
                outs, ins = entry.tensor_shape
                expected |= {f"{stem}.weight_packed": (outs, ins // 8), f"{stem}.weight_shape": (2,)}
                expected[f"{stem}.weight_scale"] = (outs, ins // GROUP_SIZE)
        found = {name: file.shape(name) for name, file in self._files.items()}
        problems = [f"{name} is missing" for name in sorted(set(expected) - set(found))]
        problems += [f"{name} is not part of the model" for name in sorted(set(found) - set(expected))]
        problems += [
            f"{name} is {list(found[name])}, not {list(expected[name])}"
            for name in sorted(set(expected) & set(found))
            if expected[name] != found[name]
        ]
        problems += [
            f"{name}.weight_shape is wrong"
            for name in self.linears
            if f"{name}.weight_shape" in found and not self._shape_fits(name)
        ]
        return problems + [
            f"{INDEX} misplaces {name}" for name, file in self.index.items() if self.places.get(name) != file
        ]

    def _shape_fits(self, name: str) -> bool:
        outs, words = self._files[f"{name}.weight_packed"].shape(f"{name}.weight_packed")
        return self._read(f"{name}.weight_shape").tolist() == [outs, words * 8]

    def linear(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Codes int8 [out, in] and scales [out, in/32] in their stored dtype."""
        return compressed_tensors.unpack(self._read(f"{name}.weight_packed")), self._read(f"{name}.weight_scale")

    def embedding_rows(self, start: int, stop: int) -> tuple[None, None, np.ndarray]:
        """No codes, no scales, and the weights of some rows of the embedding."""
        name = f"{self.embedding}.weight"
        return None, None, self._files[name].read(name, start, stop)

    def plain_equals(self, name: str, values: np.ndarray) -> bool:
        """Whether a tensor that is no codes holds these values, rounded to its dtype."""
        stored = self._read(name)
        return stored.tobytes() == np.ascontiguousarray(values).astype(stored.dtype).tobytes()

    def _read(self, name: str) -> np.ndarray:
        return self._files[name].read(name)
