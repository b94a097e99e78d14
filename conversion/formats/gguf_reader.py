"""A GGUF file, read: its metadata, and where its tensors lie; rows of them on demand.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. (The reader of the `gguf` library takes half a
minute for the 262,144 tokens of Gemma's vocabulary; its numbers of types and sizes of blocks are what is used here.)
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np

from conversion.errors import BadInput, SourceLost

Type = gguf.GGMLQuantizationType
DTYPES = {
    Type.F32: np.dtype(np.float32),
    Type.F16: np.dtype(np.float16),
    Type.BF16: np.dtype(ml_dtypes.bfloat16),
}  # of tensors that are plain numbers
NUMBERS = {  # codes that struct and numpy share
    gguf.GGUFValueType.UINT8: "<B",
    gguf.GGUFValueType.INT8: "<b",
    gguf.GGUFValueType.UINT16: "<H",
    gguf.GGUFValueType.INT16: "<h",
    gguf.GGUFValueType.UINT32: "<I",
    gguf.GGUFValueType.INT32: "<i",
    gguf.GGUFValueType.FLOAT32: "<f",
    gguf.GGUFValueType.BOOL: "<?",
    gguf.GGUFValueType.UINT64: "<Q",
    gguf.GGUFValueType.INT64: "<q",
    gguf.GGUFValueType.FLOAT64: "<d",
}
MOST_DIMENSIONS = 4
Value = bool | int | float | str | list


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a file.

    Attributes:
        name: llama.cpp's.
        kind: how its numbers are stored.
        shape: outermost axis first, as numpy has it; GGUF writes it the other way around.
        path: the file.
        offset: where its bytes begin there.
    """

    name: str
    kind: Type
    shape: tuple[int, ...]
    path: Path
    offset: int

    @cached_property
    def row_bytes(self) -> int:
        """Bytes along its last axis."""
        weights, size = gguf.GGML_QUANT_SIZES[self.kind]
        return self.shape[-1] // weights * size

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.row_bytes

    def raw(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Its bytes, or those of some of the places on its first axis, as they are.

        Returns:
            uint8 [rows, ..., row_bytes]; a tensor of one axis is one row.

        Raises:
            BadInput: the file ends before.
            SourceLost: it cannot be read any more.
        """
        rows, *inner = self.shape[:-1] or (1,)
        stop = rows if stop is None else stop
        step = math.prod(inner) * self.row_bytes
        values = np.empty((stop - start, *inner, self.row_bytes), np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset + start * step)
                target = memoryview(values).cast("B")
                while target:
                    count = file.readinto(target)
                    if not count:
                        raise BadInput(f"{self.path}: {self.name} ends early; the file is cut short, download it again")
                    target = target[count:]
        except OSError as error:
            raise SourceLost(f"{self.path}: cannot be read: {error}") from error
        return values

    def floats(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Its numbers as float32, dequantized by the `gguf` library where they are blocks.

        Raises:
            BadInput, SourceLost: as `raw`.
        """
        if self.kind in DTYPES:
            return self.numbers(start, stop).astype(np.float32)
        return gguf.dequantize(self.raw(start, stop), self.kind)

    def numbers(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Plain numbers, one of `DTYPES`, in their own dtype.

        Raises:
            BadInput, SourceLost: as `raw`.
        """
        values = self.raw(start, stop).view(DTYPES[self.kind])
        return values[0] if len(self.shape) == 1 else values


class GgufFile:
    """The header of a GGUF file.

    Attributes:
        path: the file.
        metadata: values by key.
        tensors: by name, in the order of the file.

    Raises:
        BadInput: it is no GGUF file of version 2 or 3, damaged, or cut short.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                reader = _Header(file, path.stat().st_size)
                self.metadata, described = reader.read()
        except (OSError, ValueError, EOFError, KeyError, struct.error, UnicodeDecodeError, OverflowError) as error:
            raise BadInput(f"{path}: not readable as a GGUF file ({error}); download it again") from error
        start = reader.position + -reader.position % int(self.metadata.get("general.alignment", 32))
        self.tensors = {name: GgufTensor(name, kind, shape, path, start + at) for name, kind, shape, at in described}
        end = max((tensor.offset + tensor.nbytes for tensor in self.tensors.values()), default=start)
        if end > reader.size:
            raise BadInput(f"{path}: cut short, {reader.size} bytes of {end}; download it again")


class _Header:
    """Reads a header front to back; `position` is where the next value begins."""

    def __init__(self, file, size: int):
        self._file, self.size, self.position = file, size, 0

    def read(self) -> tuple[dict[str, Value], list[tuple[str, Type, tuple[int, ...], int]]]:
        """Metadata, and name, type, shape and offset of every tensor."""
        if self._bytes(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self._number("<I")
        if version not in (2, 3):
            raise ValueError(f"version {version}, expected 2 or 3, little-endian")
        tensors, values = self._number("<Q"), self._number("<Q")
        metadata = {self._string(): self._value(self._number("<I")) for _ in range(values)}
        return metadata, [self._tensor() for _ in range(tensors)]

    def _tensor(self) -> tuple[str, Type, tuple[int, ...], int]:
        name, dimensions = self._string(), self._number("<I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        kind = Type(self._number("<I"))
        if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
            raise ValueError(f"{name} has rows of {shape[-1]}, which {kind.name} does not divide")
        return name, kind, shape, self._number("<Q")

    def _value(self, kind: int) -> Value:
        if kind == gguf.GGUFValueType.STRING:
            return self._string()
        if kind != gguf.GGUFValueType.ARRAY:
            return self._number(NUMBERS[kind])
        inner, count = self._number("<I"), self._number("<Q")
        if inner in NUMBERS:
            dtype = np.dtype(NUMBERS[inner])
            return np.frombuffer(self._bytes(count * dtype.itemsize), dtype).tolist()
        if count > self.size:
            raise EOFError(f"an array of {count}")
        return [self._value(inner) for _ in range(count)]

    def _string(self) -> str:
        return self._bytes(self._number("<Q")).decode()

    def _number(self, code: str) -> bool | int | float:
        return struct.unpack(code, self._bytes(struct.calcsize(code)))[0]

    def _bytes(self, count: int) -> bytes:
        if self.position + count > self.size:
            raise EOFError("its header is cut short")
        self.position += count
        return self._file.read(count)
