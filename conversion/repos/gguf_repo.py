"""A folder of GGUF files, read back tensor by tensor.

What llama.cpp has another name for is asked for by transformers' name here; the values stand as the export
writes them, with 1 added to RMSNorm weights.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np

from conversion.errors import BadInput
from conversion.formats import q4_0
from conversion.formats.gguf_names import tensor_name
from conversion.formats.gguf_reader import GgufFile, GgufTensor, Type
from conversion.name_map import entries
from conversion.repos.gguf_config import config_of


class GgufRepo:
    """`model-*.gguf` and, if the model sees, `mmproj-*.gguf`; a `StoredRepo`.

    Attributes:
        path: the folder.
        config: what the files tell of the model, as a transformers configuration; names and shapes follow from it.
        linears: transformers' names of the int4 linears.
        embedding: transformers' name of the embedding.
        rows: how many rows the embedding has: one for each token.

    Raises:
        BadInput: the folder holds no such files, or one is damaged.
    """

    scale_dtype = np.float16
    through_bfloat16 = True
    embedding_scale_dtypes = (np.float32, ml_dtypes.bfloat16, np.float16)
    cuts_embedding = True

    def __init__(self, path: Path):
        self.path = path
        models = [file for file in sorted(path.glob("*.gguf")) if not file.name.startswith("mmproj")]
        if len(models) != 1:
            raise BadInput(f"{path}: holds {len(models)} GGUF files of a language model, expected one")
        towers = sorted(path.glob("mmproj*.gguf"))
        model, tower = GgufFile(models[0]), GgufFile(towers[0]) if towers else None
        self._tensors = model.tensors
        self._vision = tower.tensors if tower else {}
        self.config = config_of(model, tower)
        self.rows = model.tensors["token_embd.weight"].shape[0]
        leaves = entries(self.config, self.rows)
        self.embedding = next(entry.tensors[0].removesuffix(".weight") for entry in leaves if entry.is_embedding)
        self._plain = [name for entry in leaves if not entry.int4 for name in entry.tensors]
        self._shapes = {name.removesuffix(".weight"): e.tensor_shape for e in leaves if e.int4 for name in e.tensors}
        self.linears = [name for name in self._shapes if name != self.embedding]

    def problems(self) -> list[str]:
        """What differs between the tensors that the metadata asks for and those that are stored."""
        problems, known = [], set()
        for name in [*self._shapes, *self._plain]:
            tensor = self._tensor(name)
            if tensor is None:
                problems.append(f"{name} is missing")
                continue
            known.add(tensor.name)
            if name in self._shapes:
                if tensor.shape != self._shapes[name]:
                    problems.append(f"{tensor.name} is {list(tensor.shape)}, not {list(self._shapes[name])}")
                elif tensor.kind != Type.Q4_0 and name != self.embedding:
                    problems.append(f"{tensor.name} is {tensor.kind.name}, not Q4_0")
            elif not np.isfinite(tensor.numbers()).all():
                problems.append(f"{tensor.name} holds values that are not finite")
        names = set(self._tensors) | set(self._vision)
        return problems + [f"{name} is not part of the model" for name in sorted(names - known)]

    def linear(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Codes int8 [out, in] and float16 scales [out, in/32]."""
        return q4_0.unpack({"weight": self._tensor(name).raw()})

    def embedding_rows(self, start: int, stop: int) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
        """Codes and scales of some rows of the embedding, or their weights if it is in float16."""
        tensor = self._tensor(self.embedding)
        if tensor.kind == Type.Q4_0:
            return *q4_0.unpack({"weight": tensor.raw(start, stop)}), None
        return None, None, tensor.numbers(start, stop)

    def plain_equals(self, name: str, values: np.ndarray) -> bool:
        """Whether a tensor that is no codes holds these values as the format has them.

        Values from the checkpoint are float32 and have gone through the dtype of the AWQ repo between; either counts.
        The query's norm may have one factor, which stands for the query scale that llama.cpp has no key for.
        """
        stored = self._tensor(name).numbers()
        shift = 1 if name.endswith("norm.weight") and ("vision_tower" not in name) else 0
        for dtype in (values.dtype, ml_dtypes.bfloat16):
            wanted = values.astype(dtype).astype(np.float32) + np.float32(shift)
            wanted = wanted.reshape(stored.shape)
            if name.endswith("q_norm.weight"):
                largest = np.unravel_index(np.abs(wanted).argmax(), wanted.shape)
                factor = stored[largest] / wanted[largest]
                if factor > 0 and np.allclose(stored, wanted * factor, rtol=1e-6, atol=0):
                    return True
            elif np.array_equal(wanted.astype(stored.dtype), stored):
                return True
        return False

    def _tensor(self, name: str) -> GgufTensor | None:
        """The stored tensor for a name of transformers', `.weight` at its end or not; None if there is none."""
        theirs = tensor_name(self.config, name)
        return self._tensors.get(theirs, self._vision.get(theirs))
