# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The `weight` of an int4 module, as tools read it that expect a float matrix there.

What this file offers:
    Int4Weight    a tensor that takes no memory: shape, dtype and device at once, values when they are asked for
"""

from typing import Protocol

import torch
from torch.utils._pytree import tree_map_only

from .int4_codes import row_blocks

FIXED = (
    "This weight is stored as int4 codes and stays as it is: a float update does not fit into them without quantizing "
    "anew. Keep the LoRA adapter beside the model instead of merging it (save_pretrained of the PEFT model saves the "
    "adapter alone), and take an adapter that starts without changing the base (init_lora_weights=True, say)."
)
NOT_TRAINED = (
    "int4 weights cannot be trained. To train embedding and head (modules_to_save, trainable_token_indices), load with "
    "int4_embedding=False; to train the int4 layers, name them in target_modules."
)


class Matrix(Protocol):
    """What an `Int4Weight` asks of the module that it belongs to."""

    rows: int
    columns: int
    compute_dtype: torch.dtype
    device: torch.device

    def floats(self, rows: slice) -> torch.Tensor:
        """Rows as floats of `compute_dtype`: [rows, columns]."""


class Int4Weight(torch.Tensor):
    """The matrix W [rows, columns] of an int4 module, in the dtype of the model.

    A slice of rows makes floats of these rows alone; any other operation makes floats of the whole matrix (2 bytes a
    weight in bfloat16), which go when the caller lets go of them. Nothing changes it, and nothing trains it.
    """

    _is_hf_initialized = True  # transformers' weight initialization passes it by
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, matrix: Matrix):
        shape = matrix.rows, matrix.columns
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=matrix.compute_dtype, device=matrix.device)

    def __init__(self, matrix: Matrix):
        self.matrix = matrix

    def __repr__(self) -> str:
        return f"Int4Weight({self.matrix.rows} x {self.matrix.columns}, {self.dtype}, {self.device})"

    @property
    def data(self) -> "Int4Weight":
        return Int4Weight(self.matrix)

    @data.setter
    def data(self, value: torch.Tensor) -> None:
        raise TypeError(FIXED)

    def requires_grad_(self, requires_grad: bool = True) -> "Int4Weight":
        if requires_grad:
            raise TypeError(NOT_TRAINED)
        return self

    def dequantize(self) -> torch.Tensor:
        """All of it as floats: [rows, columns]."""
        matrix = self.matrix
        whole = torch.empty(matrix.rows, matrix.columns, dtype=self.dtype, device=self.device)
        for block in row_blocks(matrix.rows, matrix.columns):
            whole[block] = matrix.floats(block)
        return whole

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        aten = torch.ops.aten
        if operation in (aten.detach.default, aten.alias.default):
            return cls(args[0].matrix)
        if operation is aten.index_copy.default and isinstance(args[0], cls):
            raise TypeError(NOT_TRAINED)  # a PEFT layer that trains single tokens; the head would not follow
        if any(isinstance(changed, cls) for changed in _changed(operation, args, kwargs)):
            raise TypeError(FIXED)
        view = any(result.alias_info is not None for result in operation._schema.returns)
        # Of a tensor that is none of inference mode, autograd expects a view that is none either.
        with torch.inference_mode(torch.is_inference_mode_enabled() and not view):
            rows = _rows(*args, **kwargs) if operation is aten.slice.Tensor else None
            if rows is not None:
                return args[0].matrix.floats(rows)
            args, kwargs = tree_map_only(cls, cls.dequantize, (args, kwargs))
            return operation(*args, **kwargs)


def _rows(weight: Int4Weight, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1):
    """The rows that a slice of the matrix takes, None where it takes columns or leaves some out."""
    if axis not in (0, -2) or step != 1:
        return None
    first, last, _ = slice(start, end).indices(weight.matrix.rows)
    return slice(first, max(first, last))


def _changed(operation, args: tuple, kwargs: dict) -> list:
    """The arguments that an operation writes to."""
    written = []
    for position, argument in enumerate(operation._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            written.append(args[position] if position < len(args) else kwargs.get(argument.name))
    return written
