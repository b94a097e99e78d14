"""One int4 linear of a Hugging Face repo: its tensors checked, and read as codes and scales for groups of 32.

Where a scale belongs to 64, 128 or more inputs, it is repeated for each 32 of them: the same products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

from conversion.codes import GROUP_SIZE, CodeBlock
from conversion.errors import BadInput
from conversion.formats import awq, compressed_tensors
from conversion.repos.tensor_files import TensorFiles
from conversion.source.quantization import ANEW, OFF_GRID

BLOCK_WEIGHTS = 1 << 22  # read at a time
SCALE_DTYPES = ("bfloat16", "float16", "float32")


class StoredLinear(ABC):
    """A linear [out, in] in one of the formats.

    Args:
        files: of its repo.
        stem: its name there, in the first key layout.

    Attributes:
        words: name of the tensor that holds its codes, as it ends.
        scales: name of that with its scales.
        others: what else may belong to it.
    """

    words: str
    scales: str
    others: tuple[str, ...]

    def __init__(self, files: TensorFiles, stem: str):
        self.stem = stem
        self._files = files

    @classmethod
    def of(cls, files: TensorFiles, stem: str) -> StoredLinear | None:
        """The linear of this name, None if it is not stored in this format."""
        return cls(files, stem) if f"{stem}.{cls.words}" in files else None

    @property
    def tensors(self) -> list[str]:
        """Names of the tensors it consists of."""
        names = (f"{self.stem}.{part}" for part in (self.words, self.scales, *self.others))
        return [name for name in names if name in self._files]

    @property
    def nbytes(self) -> int:
        return sum(self._files.nbytes(name) for name in self.tensors)

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in), as its words have it."""

    @property
    def group_size(self) -> int:
        """Inputs that share a scale; 0 where the scales are of another shape."""
        outs, ins = self.shape
        counts = self._scale_counts()
        return ins // counts[1] if counts[0] == outs and counts[1] and ins % counts[1] == 0 else 0

    @property
    def scale_dtype(self) -> str:
        return self._files.dtype(f"{self.stem}.{self.scales}").name

    def problems(self) -> Iterator[str]:
        """What headers tell is against it."""
        name = f"{self.stem}.{self.scales}"
        if name not in self._files:
            yield f"{name} is missing"
            return
        if self.scale_dtype not in SCALE_DTYPES:
            yield f"{name} is {self.scale_dtype}, not one of {', '.join(SCALE_DTYPES)}"
        size = self.group_size
        if not size or size % GROUP_SIZE:
            shape, ins = list(self._files.shape(name)), self.shape[1]
            yield f"{name} is {shape} for {ins} inputs, {OFF_GRID} or a multiple of it"
        elif size == self.shape[1] != GROUP_SIZE:
            yield f"{name}: one scale for all of {size} inputs, {OFF_GRID}"

    @property
    def _named(self) -> str:
        """As messages call it."""
        return f"{self._files.folder}: {self.stem}"

    @abstractmethod
    def check(self) -> None:
        """Raises BadInput if values, all read, say that it is asymmetric, reordered, or of another shape."""

    def all_scales(self) -> np.ndarray:
        """As they are stored, in float32."""
        return self._read(self.scales).astype(np.float32)

    @abstractmethod
    def blocks(self, *, weights: bool = False) -> Iterator[CodeBlock]:
        """All of it, block by block.

        Args:
            weights: whether blocks bring the products too, computed from the words by another path.
        """

    @abstractmethod
    def _scale_counts(self) -> tuple[int, int]:
        """How many scales there are along the outputs and the inputs."""

    def _read(self, part: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        return self._files.read(f"{self.stem}.{part}", start, stop)

    def _repeated(self, scales: np.ndarray) -> np.ndarray:
        """Scales [out, groups] -> float32 [out, in/32]."""
        return np.repeat(scales.astype(np.float32), self.group_size // GROUP_SIZE, axis=1)

    def _products(self, codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
        """float32 [out, in] from codes and the scales as they are stored, [out, groups]."""
        return codes.astype(np.float32) * np.repeat(scales.astype(np.float32), self.group_size, axis=1)


class AwqLinear(StoredLinear):
    """`qweight` int32 [in, out/8], `qzeros` int32 [groups, out/8], `scales` [groups, out]: see `formats/awq.py`."""

    words, scales, others = "qweight", "scales", ("qzeros",)

    @property
    def shape(self) -> tuple[int, int]:
        ins, words = self._files.shape(f"{self.stem}.qweight")
        return words * 8, ins

    def _scale_counts(self) -> tuple[int, int]:
        groups, outs = self._files.shape(f"{self.stem}.scales")
        return outs, groups

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        name = f"{self.stem}.qzeros"
        if name not in self._files:
            yield f"{name} is missing"
        elif f"{self.stem}.scales" in self._files:
            groups, outs = self._files.shape(f"{self.stem}.scales")
            if self._files.shape(name) != (groups, outs // 8):
                yield f"{name} is {list(self._files.shape(name))}, not {[groups, outs // 8]}"

    def check(self) -> None:
        if (self._read("qzeros") != awq.ZERO_WORD).any():
            raise BadInput(f"{self._named}.qzeros: zero points other than 8, {OFF_GRID}; {ANEW}")

    def blocks(self, *, weights: bool = False) -> Iterator[CodeBlock]:
        """In slices of inputs, which are the rows of the words."""
        outs, ins = self.shape
        size = self.group_size
        step = max(1, BLOCK_WEIGHTS // (outs * size)) * size
        for start in range(0, ins, step):
            stop = min(start + step, ins)
            words, scales = self._read("qweight", start, stop), self._read("scales", start // size, stop // size)
            codes, scales = awq.unpack({"qweight": words, "scales": scales})
            products = self._products(_awq_nibbles(words), scales) if weights else None
            yield CodeBlock(0, slice(0, outs), slice(start, stop), codes, self._repeated(scales), products)


class PackedLinear(StoredLinear):
    """compressed-tensors' `weight_packed`, `weight_scale`, `weight_shape`: see `formats/compressed_tensors.py`."""

    words, scales = "weight_packed", "weight_scale"
    others = ("weight_shape", "weight_g_idx", "weight_zero_point")

    @property
    def shape(self) -> tuple[int, int]:
        outs, words = self._files.shape(f"{self.stem}.weight_packed")
        return outs, words * 8

    def _scale_counts(self) -> tuple[int, int]:
        shape = self._files.shape(f"{self.stem}.weight_scale")
        return (shape[0], shape[1]) if len(shape) == 2 else (0, 0)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if f"{self.stem}.weight_zero_point" in self._files:
            yield f"{self.stem}.weight_zero_point: asymmetric, {OFF_GRID}"

    def check(self) -> None:
        outs, ins = self.shape
        if f"{self.stem}.weight_shape" in self._files and self._read("weight_shape").tolist() != [outs, ins]:
            raise BadInput(f"{self._named}.weight_shape is {self._read('weight_shape').tolist()}, not {[outs, ins]}")
        if f"{self.stem}.weight_g_idx" in self._files:
            groups = self._read("weight_g_idx")
            if not np.array_equal(groups, np.arange(ins) // self.group_size):
                raise BadInput(f"{self._named}.weight_g_idx: its inputs were reordered (act-order), {OFF_GRID}; {ANEW}")

    def blocks(self, *, weights: bool = False) -> Iterator[CodeBlock]:
        """In slices of outputs, which are the rows of the words."""
        outs, ins = self.shape
        step = max(1, BLOCK_WEIGHTS // ins // 8) * 8
        for start in range(0, outs, step):
            stop = min(start + step, outs)
            words, scales = self._read("weight_packed", start, stop), self._read("weight_scale", start, stop)
            codes, _ = compressed_tensors.unpack({"weight_packed": words, "weight_scale": scales})
            products = self._products(_nibbles(words, range(8)), scales) if weights else None
            yield CodeBlock(0, slice(start, stop), slice(0, ins), codes, self._repeated(scales), products)


def _nibbles(words: np.ndarray, places: range | tuple[int, ...]) -> np.ndarray:
    """Codes of int32 words [rows, n] as a proof reads them, a shift for each: int32 [rows, 8 n]."""
    shifts = np.array([4 * place for place in places], np.uint32)
    codes = (words.view(np.uint32)[:, :, None] >> shifts & np.uint32(15)).astype(np.int32) - 8
    return codes.reshape(len(words), -1)


def _awq_nibbles(words: np.ndarray) -> np.ndarray:
    """Codes [out, in] of AWQ words: output j of a word lies in nibble 0, 4, 1, 5, 2, 6, 3, 7."""
    return _nibbles(words, (0, 4, 1, 5, 2, 6, 3, 7)).T
