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
from conversion.name_map import LINEAR, both_layouts, entries, first_layout
from conversion.repos.safetensors_file import SafetensorsFile
from conversion.repos.tensor_files import TensorFiles
from conversion.shards import INDEX
from conversion.sizes import read_config
from conversion.tensor_spec import DTYPES, SCALES, TensorSpec

BLOCK_WEIGHTS = 1 << 24


class AwqRepo:
    """A converted repo; a `StoredRepo`.

    Attributes:
        path: its folder.
        values: config.json as it is.
        config: the same as a transformers configuration.
        linears: names of the int4 linears, such as `model.layers.0.mlp.up_proj`, in the first key layout like all.
        kept: names of linears of the language model that are floats.
        embedding: name of the embedding, such as `model.embed_tokens`.
        has_codes: whether the embedding's codes are known; if not, it is floats alone.
        plain: names of the tensors that are no codes, the embedding left out, such as `model.norm.weight`.

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
            index = json.loads((path / INDEX).read_text())["weight_map"]
            self.index = {first_layout(name): file for name, file in index.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{path}: not a converted repo, config.json or {INDEX} is unreadable ({error})") from error
        method = self.values.get("quantization_config", {}).get("quant_method")
        if method != "awq":
            raise BadInput(f"{path}: quant_method is {method!r}, expected a repo that convert_flax.py wrote as awq")
        self.config = read_config(path / "config.json")
        self._files = TensorFiles(path)
        names = self._files.names()
        stems = [name.removesuffix(".qweight") for name in names if name.endswith(".qweight")]
        self.linears = [stem for stem in stems if not stem.endswith("embed_tokens")]
        embeddings = [name.rpartition(".")[0] for name in names if ".embed_tokens." in name]
        if not embeddings or not self.linears:
            raise BadInput(f"{path}: its safetensors files hold no embedding or no int4 linears")
        self.embedding = embeddings[0]
        plain = f"{self.embedding}.weight" in self._files
        self._side = SafetensorsFile(path / SIDE_FILE) if plain and (path / SIDE_FILE).exists() else None
        self.has_codes = not plain or self._side is not None
        if not self.has_codes and SIDE_FILE in _listed_files(path):
            raise BadInput(f"{path / SIDE_FILE}: missing, though conversion.json lists it; download that file again")
        packed = {f"{stem}.{part}" for stem in stems for part in ("qweight", "qzeros", "scales")}
        self.kept = [name.removesuffix(".weight") for name in names if LINEAR.fullmatch(name)]
        self.plain = [name for name in names if name not in packed and name != f"{self.embedding}.weight"]

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
        return "plain" if f"{self.embedding}.weight" in self._files else "int4"

    @property
    def places(self) -> dict[str, str]:
        """Name of the file of every stored tensor, the side file's left out."""
        return {name: self._files.place(name) for name in self._files.names()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a stored tensor."""
        return self._files.shape(name)

    def dtype_of(self, name: str) -> np.dtype:
        """Dtype of a stored tensor."""
        return self._files.dtype(name)

    def read(self, name: str) -> np.ndarray:
        """A stored tensor, as it is."""
        return self._files.read(name)

    def problems(self) -> list[str]:
        """What differs between the tensors that config.json asks for, the index, and the shards."""
        dtype = self.values.get("dtype")
        if dtype not in DTYPES:
            return [f"config.json: dtype is {dtype!r}"]
        expected = {
            spec.name: spec
            for entry in entries(self.config, self.rows)
            for spec in output_tensors(entry, dtype, self.embedding_mode, self.rows)
            if spec.name.rpartition(".")[0] not in self.kept
        }
        kept = {f"{stem}.weight" for stem in self.kept if self._may_be_kept(stem)}
        expected |= {
            name: TensorSpec(name, dtype, entry.tensor_shape)
            for entry in entries(self.config, self.rows)
            for name in kept.intersection(entry.tensors)
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

    def _may_be_kept(self, stem: str) -> bool:
        """Whether config.json says that a linear is floats."""
        words = self.values["quantization_config"].get("modules_to_not_convert") or []
        return any(word in name for word in words for name in both_layouts(stem))

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
        """The first `rows` rows of the embedding, block by block: codes int8 [n, hidden], scales [n, hidden/32].

        Only where it `has_codes`.
        """
        for start, stop in self._embedding_ranges(rows):
            codes, scales, _ = self.embedding_rows(start, stop)
            yield codes, scales

    def embedding_rows(self, start: int, stop: int) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Codes and scales of some rows of the embedding, where they are known, and the weights where it is plain."""
        plain, scales = f"{self.embedding}.weight", f"{self.embedding}.scales"
        if self.embedding_mode == "int4":
            names = {part: f"{self.embedding}.{part}" for part in ("qweight", "scales")}
            parts = {part: self._files.read(name, start, stop) for part, name in names.items()}
            return *embedding.unpack(parts), None
        weight = self._files.read(plain, start, stop)
        if not self._side:
            return None, None, weight
        scale = self._side.read(scales, start, stop)
        divisor = np.where(scale == 0, 1, scale.astype(np.float32))[..., None]
        grouped = weight.astype(np.float32).reshape(*scale.shape, GROUP_SIZE) / divisor
        return np.rint(grouped).astype(np.int8).reshape(weight.shape), scale, weight

    def embedding_weights(self, rows: int | None = None) -> Iterator[np.ndarray]:
        """All rows of the embedding, or the first ones, as floats of the repo's dtype, block by block: [n, hidden]."""
        rows, plain = self.rows if rows is None else rows, f"{self.embedding}.weight"
        if self.embedding_mode == "plain":
            for start, stop in self._embedding_ranges(rows):
                yield self._files.read(plain, start, stop)
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


def _listed_files(path: Path) -> set[str]:
    """The files that the repo's conversion.json lists; none where it cannot be read."""
    try:
        return set(json.loads((path / "conversion.json").read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return set()
