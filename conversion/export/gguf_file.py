"""A GGUF file, written header first and then tensor by tensor, so that none has to be in memory as a whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import gguf
import numpy as np

from conversion.formats import q4_0
from conversion.tensor_spec import TensorSpec

Type = gguf.GGMLQuantizationType
TYPES = {"q4_0": Type.Q4_0, "float16": Type.F16, "float32": Type.F32}


@dataclass
class Float16:
    """Rounds floats that are no codes to float16, and counts.

    Attributes:
        values: how many there were.
        inexact: how many changed.
    """

    values: int = 0
    inexact: int = 0

    def round(self, values: np.ndarray) -> np.ndarray:
        """Raises OverflowError for one that float16 does not hold."""
        rounded = q4_0.float16(values)
        self.values += values.size
        self.inexact += int(np.count_nonzero(rounded != values.astype(np.float32)))
        return rounded

    def lines(self, what: str) -> list[str]:
        """A line for the user, if there were any."""
        return [f"{what}: {self.inexact} of {self.values} values rounded to float16"] if self.values else []


def write_gguf(
    path: Path,
    architecture: gguf.MODEL_ARCH,
    metadata: Mapping[str, object],
    specs: list[TensorSpec],
    values: Iterator[tuple[str, np.ndarray]],
) -> None:
    """Writes a file.

    Args:
        path: the file.
        architecture: of the model.
        metadata: values by what follows `add_` in the names of `gguf.GGUFWriter`'s methods.
        specs: the tensors, their dtypes keys of `TYPES`.
        values: names and contents in the same order; parts of one tensor follow each other.
    """
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    for key, value in metadata.items():
        getattr(writer, f"add_{key}")(value)
    for spec in specs:
        shape, kind = spec.shape, TYPES[spec.dtype]
        writer.add_tensor_info(spec.name, shape, np.dtype(np.float32), _nbytes(spec), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    writer.write_padding(file, file.tell())
    for spec, (name, parts) in zip(specs, itertools.groupby(values, itemgetter(0)), strict=True):
        written = sum(file.write(np.ascontiguousarray(part)) for _, part in parts)
        if (name, written) != (spec.name, _nbytes(spec)):
            raise ValueError(f"{name}: {written} bytes written, {_nbytes(spec)} of {spec.name} announced")
        writer.write_padding(file, written)
    writer.close()


def _nbytes(spec: TensorSpec) -> int:
    weights, size = gguf.GGML_QUANT_SIZES[TYPES[spec.dtype]]
    return math.prod(spec.shape) // weights * size
