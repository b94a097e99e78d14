"""A converted repo in AWQ format, read back tensor by tensor: where the other formats and the proofs start from.

Nothing is kept in memory but headers; every read takes its bytes from the file. The layouts: `formats/awq.py` for the
linears, and for the embedding either plain rows with their scales in a side file, or `formats/embedding.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import Gemma3TextConfig

from conversion.codes import GROUP_SIZE, dequantize
from conversion.errors import BadInput
from conversion.formats import awq, embedding
from conversion.formats.embedding import SIDE_FILE
from conversion.layout import output_tensors
from conversion.name_map import entries
from conversion.repos.safetensors_file import SafetensorsFile
from conversion.shards import INDEX
from conversion.sizes import read_config
from conversion.tensor_spec import DTYPES, SCALES

BLOCK_WEIGHTS = 1 << 24


class AwqRepo:
    """A converted repo; a `StoredRepo`.

    Attributes:
        path: its folder.
        values: config.json as it is.
        config: the same as a transformers configuration.
        linears: names of the int4 linears, such as `model.layers.0.mlp.up_proj`.
        embedding: name of the embedding, such as `model.embed_tokens`.
        plain: names of the tensors that are neither, such as `model.norm.weight`.

    Raises:
        BadInput: the folder holds no such repo.
    """

    scale_dtype = None
    through_bfloat16 = False  # whether scales may have been rounded twice
    embedding_scale_dtypes = (np.float32,)  # that floats of the embedding may have been multiplied with
    cuts_embedding = False  # whether rows without a token are left out

    def __init__(self, path: Path):
        self.path = path
        try:
            self.values = json.loads((path / "config.json").read_text())
            self.index = json.loads((path / INDEX).read_text())["weight_map"]
            shards = set(self.index.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path}: not a converted repo, config.json or {INDEX} is unreadable ({error})") from error
        method = self.values.get("quantization_config", {}).get("quant_method")
        if method != "awq":
            raise BadInput(f"{path}: quant_method is {method!r}, expected a repo that convert_flax.py wrote as awq")
        self.config = read_config(path / "config.json")
        self._files = {name: file for shard in sorted(shards) for name, file in self._named(path / shard)}

        stems = [name.removesuffix(".qweight") for name in self._files if name.endswith(".qweight")]
        self.linears = [stem for stem in stems if not stem.endswith("embed_tokens")]
        embeddings = [name.rpartition(".")[0] for name in self._files if ".embed_tokens." in name]
        if not embeddings or not self.linears:
            raise BadInput(f"{path}: its safetensors files hold no embedding or no int4 linears")
        self.embedding = embeddings[0]
        plain = f"{self.embedding}.weight" in self._files
        self._side = dict(self._named(path / SIDE_FILE)) if plain else {}
        packed = {f"{stem}.{part}" for stem in stems for part in ("qweight", "qzeros", "scales")}
        self.plain = [name for name in self._files if name not in packed and name != f"{self.embedding}.weight"]

    @staticmethod
    def _named(path: Path) -> Iterator[tuple[str, SafetensorsFile]]:
        file = SafetensorsFile(path)
        return ((name, file) for name in file.header)

    @property
    def text_config(self) -> Gemma3TextConfig:
        return self.config.get_text_config()

    @property
    def rows(self) -> int:
        """How many rows the embedding has."""
        return self.text_config.vocab_size

    @property
    def embedding_mode(self) -> str:
        """`plain` or `int4`."""
        return "plain" if self._side else "int4"

    @property
    def places(self) -> dict[str, str]:
        """Name of the file of every stored tensor, the side file's left out."""
        return {name: file.path.name for name, file in self._files.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""
        return self._files[name].shape(name)

    def dtype_of(self, name: str) -> np.dtype:
        """Dtype of a stored tensor."""
        return self._files[name].dtype(name)

    def read(self, name: str) -> np.ndarray:
        """A stored tensor, as it is."""
        return self._files[name].read(name)

    def problems(self) -> list[str]:
        """What differs between the tensors that config.json asks for, the index, and the shards."""
        dtype = self.values.get("dtype")
        if dtype not in DTYPES:
            return [f"config.json: dtype is {dtype!r}"]
        expected = {
            spec.name: spec
            for entry in entries(self.config, self.rows)
            for spec in output_tensors(entry, dtype, self.embedding_mode, self.rows)
        }
        places = self.places
        scale_dtype = self.dtype_of(f"{self.linears[0]}.scales") if f"{self.linears[0]}.scales" in places else None
        problems = [f"{name} is missing" for name in sorted(set(expected) - set(places))]
        problems += [f"{name} is not part of the model" for name in sorted(set(places) - set(expected))]
        for name in sorted(set(expected) & set(places)):
            spec = expected[name]
            wanted = scale_dtype if spec.dtype == SCALES else DTYPES[spec.dtype][1]
            if (self.shape(name), self.dtype_of(name)) != (spec.shape, wanted):
                problems.append(
                    f"{name} is {self.dtype_of(name)} {list(self.shape(name))}, not {wanted} {list(spec.shape)}"
                )
            elif name.endswith(".qzeros") and (self.read(name) != awq.ZERO_WORD).any():
                problems.append(f"{name} holds zero points other than 8")
        problems += [f"{INDEX} misplaces {name}" for name in self.index if places.get(name) != self.index[name]]
        problems += [f"{INDEX} lacks {name}" for name in places if name not in self.index]
        return problems

    def plain_equals(self, name: str, values: np.ndarray) -> bool:
        """Whether a tensor that is no codes holds these values, rounded to its dtype."""
        stored = self.read(name)
        return stored.tobytes() == np.ascontiguousarray(values).astype(stored.dtype).tobytes()

    def linear_shape(self, linear: str) -> tuple[int, int]:
        """(out, in) of a linear."""
        ins, words = self.shape(f"{linear}.qweight")
        return words * 8, ins

    def linear(self, linear: str) -> tuple[np.ndarray, np.ndarray]:
        """Codes int8 [out, in] and scales [out, in/32] in their stored dtype."""
        return awq.unpack({part: self.read(f"{linear}.{part}") for part in ("qweight", "scales")})

    def embedding_blocks(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The first `rows` rows of the embedding, block by block: codes int8 [n, hidden], scales [n, hidden/32]."""
        for start, stop in self._embedding_ranges(rows):
            codes, scales, _ = self.embedding_rows(start, stop)
            yield codes, scales

    def embedding_rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Codes, scales and, if the embedding is plain, the weights of some of its rows."""
        plain, scales = f"{self.embedding}.weight", f"{self.embedding}.scales"
        if not self._side:
            names = {part: f"{self.embedding}.{part}" for part in ("qweight", "scales")}
            parts = {part: self._files[name].read(name, start, stop) for part, name in names.items()}
            return *embedding.unpack(parts), None
        scale = self._side[scales].read(scales, start, stop)
        weight = self._files[plain].read(plain, start, stop)
        divisor = np.where(scale == 0, 1, scale.astype(np.float32))[..., None]
        grouped = weight.astype(np.float32).reshape(*scale.shape, GROUP_SIZE) / divisor
        return np.rint(grouped).astype(np.int8).reshape(weight.shape), scale, weight

    def embedding_weights(self) -> Iterator[np.ndarray]:
        """All rows of the embedding as floats of the repo's dtype, block by block: [n, hidden]."""
        rows, plain = self.text_config.vocab_size, f"{self.embedding}.weight"
        if self._side:
            for start, stop in self._embedding_ranges(rows):
                yield self._files[plain].read(plain, start, stop)
        else:
            for codes, scales in self.embedding_blocks(rows):
                yield dequantize(codes, scales).astype(self.dtype)

    @property
    def dtype(self) -> np.dtype:
        """Of the tensors that are no codes."""
        return DTYPES[self.values["dtype"]][1]

    def _embedding_ranges(self, rows: int) -> Iterator[tuple[int, int]]:
        step = max(1, BLOCK_WEIGHTS // self.text_config.hidden_size)
        return ((start, min(start + step, rows)) for start in range(0, rows, step))
