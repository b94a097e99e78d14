# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The int4 modules of Gemma 3 INT4: as the files have them, and as they compute.

What this file offers:
    AwqLinear, PackedEmbedding    what a loader fills: tensors as on disk; `prepare` makes of them the next
    Int4Linear, Int4Embedding     a matrix in the layout of one backend, and what is computed with it
    Int4LMHead                    the output head, on the embedding's codes
    exchange                      puts one module in the place of another
    prepare_linears               makes the one kind of linear layer the other, in a whole model

A prepared module chooses its backend anew and repacks itself when it is moved. Its state dict is in the layout of the
file, whatever its own.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from .int4_backend import Backend, choose_backend
from .int4_codes import (
    AWQ_SYMMETRIC_ZEROS,
    GROUP_SIZE,
    Packed,
    dequantize,
    from_awq,
    pack_awq,
    recover_codes,
    row_blocks,
    unpack_awq,
)
from .int4_weight import Int4Weight

ASYMMETRIC = "qzeros other than 8: these AWQ weights are not symmetric, and this code runs only such."


class _Stored(nn.Module):
    """Tensors as the file has them. Has no forward: `prepare` makes the module that computes."""

    def __init__(self, rows: int, columns: int):
        nn.Module.__init__(self)  # not nn.Linear's, which would make a weight
        if columns % GROUP_SIZE or rows % 8:
            raise ValueError(
                f"An int4 matrix needs inputs divisible by {GROUP_SIZE} and outputs divisible by 8, got {columns} "
                f"inputs and {rows} outputs: keep this module unquantized (modules_to_not_convert)."
            )
        self.rows, self.columns = rows, columns

    def _apply(self, fn, recurse=True):
        """`.to(device)` and `.to(dtype)`: codes and scales move and are never cast."""
        for name, tensor in self._buffers.items():
            self._buffers[name] = fn(tensor) if not tensor.is_floating_point() else tensor.to(fn(tensor).device)
        return self


class AwqLinear(_Stored, nn.Linear):
    """A linear layer without bias in AutoAWQ's "gemm" format. (An nn.Linear, so that an adapter of PEFT can be loaded
    around it before it is prepared.)

    On disk: qweight int32 [in, out/8], qzeros int32 [in/32, out/8], scales [in/32, out].
    """

    def __init__(
        self, in_features: int, out_features: int, scale_dtype: torch.dtype, compute_dtype: torch.dtype, device=None
    ):
        super().__init__(out_features, in_features)
        self.in_features, self.out_features, self.compute_dtype = in_features, out_features, compute_dtype
        groups, words = in_features // GROUP_SIZE, out_features // 8
        self.register_buffer("qweight", torch.zeros(in_features, words, dtype=torch.int32, device=device))
        self.register_buffer("qzeros", torch.zeros(groups, words, dtype=torch.int32, device=device))
        self.register_buffer("scales", torch.zeros(groups, out_features, dtype=scale_dtype, device=device))
        self.register_parameter("bias", None)

    def hold(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Takes these for its own, if they are what is on disk, by the names there; they are no buffers then, so that
        transformers neither fills nor misses them."""
        if any(
            name not in tensors or (tensors[name].shape, tensors[name].dtype) != (buffer.shape, buffer.dtype)
            for name, buffer in self._buffers.items()
        ):
            return False
        for name in list(self._buffers):
            delattr(self, name)
            setattr(self, name, tensors[name])
        self._is_hf_initialized = True  # transformers' weight initialization passes it by
        return True

    @property
    def device(self) -> torch.device:
        return self.qweight.device

    @property
    def weight(self) -> Int4Weight:
        return Int4Weight(self)

    def floats(self, rows: slice) -> torch.Tensor:
        """Rows as floats: [rows, in], in the dtype of the model that is being loaded."""
        codes, scales = from_awq(self.qweight, self.scales)
        return dequantize(codes[rows], scales[rows], self.compute_dtype)

    def prepare(self, compute_dtype: torch.dtype, ahead: Packed | None = None) -> "Int4Linear":
        """The layer for a model of `compute_dtype`, on the device of these tensors.

        Args:
            ahead: the tensors of its backend, where they were made of these before.

        Raises:
            ValueError: a zero point is not 8.
        """
        if (self.qzeros != AWQ_SYMMETRIC_ZEROS).any():
            raise ValueError(ASYMMETRIC)
        backend = choose_backend(self.qweight.device, compute_dtype, self.rows, self.columns)
        packed = ahead or backend.repack_awq(self.qweight, self.scales)
        return Int4Linear(self.rows, self.columns, compute_dtype, backend, packed)


class PackedEmbedding(_Stored):
    """Gemma's word embedding where the file has it as int4.

    On disk: qweight int32 [V, D/8], the row-major codes, eight to a word, lowest nibble first; scales [V, D/32].
    """

    def __init__(self, rows: int, columns: int, embed_scale: float, scale_dtype: torch.dtype, device=None):
        super().__init__(rows, columns)
        self.embed_scale = embed_scale
        self.register_buffer("qweight", torch.zeros(rows, columns // 8, dtype=torch.int32, device=device))
        self.register_buffer("scales", torch.zeros(rows, columns // GROUP_SIZE, dtype=scale_dtype, device=device))

    def prepare(self, compute_dtype: torch.dtype) -> "Int4Embedding":
        """The embedding for a model of `compute_dtype`, on the device of these tensors."""
        backend = choose_backend(self.qweight.device, compute_dtype, self.rows, self.columns)
        packed = backend.pack(self.qweight.view(torch.uint8), self.scales)
        return Int4Embedding(self.rows, self.columns, compute_dtype, backend, packed, self.embed_scale)


class _MatMul(torch.autograd.Function):
    """x @ W.T with a derivative for x; the codes are fixed, and the int4 kernels have no derivative of their own."""

    @staticmethod
    def forward(ctx, x, matrix):
        ctx.matrix = matrix
        return matrix.backend.linear(x, matrix.packed)

    @staticmethod
    def backward(ctx, grad):
        return ctx.matrix.backend.grad_input(grad, ctx.matrix.packed), None


class _Int4Matrix(nn.Module):
    """Codes and scales of one matrix [rows, columns]; the buffers are those of its backend, by the backend's names."""

    def __init__(self, rows: int, columns: int, compute_dtype: torch.dtype, backend: type[Backend], packed: Packed):
        nn.Module.__init__(self)  # not nn.Linear's, which would make a weight
        self.rows, self.columns = rows, columns
        self._hold(compute_dtype, backend, packed)

    def _hold(self, compute_dtype: torch.dtype, backend: type[Backend], packed: Packed) -> None:
        self.compute_dtype, self.backend = compute_dtype, backend
        self._buffers.clear()
        for name, tensor in packed.items():
            self.register_buffer(name, tensor)

    @property
    def packed(self) -> Packed:
        """The backend's tensors, by name."""
        return self._buffers

    @property
    def device(self) -> torch.device:
        return next(iter(self._buffers.values())).device

    def codes_and_scales(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row-major codes, uint8 [rows, columns/2], and scales [rows, columns/32] in their dtype on disk."""
        return self.backend.unpack(self.packed)

    def int4_bytes(self) -> int:
        """Bytes that codes and scales take in memory."""
        return sum(tensor.nbytes for tensor in self.packed.values())

    @property
    def weight(self) -> Int4Weight:
        return Int4Weight(self)

    def floats(self, rows: slice) -> torch.Tensor:
        """Rows as floats: [rows, columns], in the model's dtype."""
        ids = torch.arange(rows.start, rows.stop, device=self.device)
        return self.backend.embedding(ids, self.packed, self.compute_dtype)

    def parameters(self, recurse: bool = True) -> Iterator[Int4Weight]:
        """The weight, for who asks this module itself: PEFT does, to train it, and is told that it cannot be."""
        yield self.weight

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., columns] -> x @ W.T [..., rows], computed in the model's dtype and given back in x's."""
        rows = x.reshape(-1, self.columns).to(self.compute_dtype)
        if torch.is_grad_enabled() and rows.requires_grad:
            y = _MatMul.apply(rows, self)
        else:
            y = self.backend.linear(rows, self.packed)
        return y.to(x.dtype).view(*x.shape[:-1], self.rows)

    def _apply(self, fn, recurse=True):
        """`.to(device)` and `.to(dtype)`: codes and scales move, are never cast, and are repacked where they land."""
        landed = fn(torch.empty(0, dtype=self.compute_dtype, device=self.device))
        if landed.device != self.device or landed.dtype != self.compute_dtype:
            codes, scales = (tensor.to(landed.device) for tensor in self.codes_and_scales())
            backend = choose_backend(landed.device, landed.dtype, self.rows, self.columns)
            self._hold(landed.dtype, backend, backend.pack(codes, scales))
        return self

    @abstractmethod
    def _file_layout(self) -> dict[str, torch.Tensor]:
        """The tensors as they are on disk, by name."""

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        for name, tensor in self._file_layout().items():
            destination[prefix + name] = tensor

    @abstractmethod
    def _file_shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes of the tensors on disk, by name."""

    @abstractmethod
    def _from_file_layout(self, given: dict[str, torch.Tensor]) -> Packed:
        """The backend's tensors, with what is given of the tensors on disk in place of the present ones.

        Raises:
            ValueError: these are not such codes and scales.
        """

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs):
        shapes = self._file_shapes()
        given = {name: state_dict[prefix + name] for name in shapes if prefix + name in state_dict}
        missing_keys.extend(prefix + name for name in shapes if name not in given)
        for name, tensor in given.items():
            if tensor.shape != shapes[name]:
                error_msgs.append(f"{prefix}{name} is {tuple(tensor.shape)}, expected {shapes[name]}.")
                return
        if strict:
            known = {prefix + name for name in shapes}
            unexpected_keys.extend(key for key in state_dict if key.startswith(prefix) and key not in known)
        if given:  # not so where an adapter is loaded, or another shard
            try:
                packed = self._from_file_layout({name: tensor.to(self.device) for name, tensor in given.items()})
            except ValueError as error:
                error_msgs.append(f"{prefix[:-1]}: {error}")
            else:
                self._hold(self.compute_dtype, self.backend, packed)


class Int4Linear(_Int4Matrix, nn.Linear):
    """A linear layer without bias on int4 codes; an nn.Linear to whoever asks (PEFT does)."""

    def __init__(self, rows: int, columns: int, compute_dtype: torch.dtype, backend: type[Backend], packed: Packed):
        super().__init__(rows, columns, compute_dtype, backend, packed)
        self.in_features, self.out_features = columns, rows
        self.register_parameter("bias", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.matmul(x)

    def _file_layout(self):
        codes, scales = self.codes_and_scales()
        shape = self.columns // GROUP_SIZE, self.rows // 8
        zeros = torch.full(shape, AWQ_SYMMETRIC_ZEROS, dtype=torch.int32, device=codes.device)
        return {"qweight": pack_awq(codes), "qzeros": zeros, "scales": scales.T.contiguous()}

    def _file_shapes(self):
        groups, words = self.columns // GROUP_SIZE, self.rows // 8
        return {"qweight": (self.columns, words), "qzeros": (groups, words), "scales": (groups, self.rows)}

    def _from_file_layout(self, given):
        if "qzeros" in given and (given["qzeros"] != AWQ_SYMMETRIC_ZEROS).any():
            raise ValueError(ASYMMETRIC)
        codes, scales = self.codes_and_scales()
        if "qweight" in given:
            codes = unpack_awq(given["qweight"])
        if "scales" in given:
            scales = given["scales"].T.contiguous()
        return self.backend.pack(codes, scales)


class Int4Embedding(_Int4Matrix, nn.Embedding):
    """Gemma's scaled word embedding on int4 codes, which serves as output head too (`Int4LMHead`). An nn.Embedding to
    whoever asks (PEFT does).

    Rows are multiplied by sqrt(D) rounded to the model's dtype, as stock Gemma 3 does.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        compute_dtype: torch.dtype,
        backend: type[Backend],
        packed: Packed,
        embed_scale: float,
        plain_dtype: torch.dtype | None = None,
    ):
        """
        Args:
            rows, columns: V, D.
            compute_dtype: of the model.
            backend, packed: what multiplies, and its tensors.
            embed_scale: sqrt(D).
            plain_dtype: of the weight on disk, where it is stored plain [V, D] and the scales in a side file.
        """
        self.embed_scale, self.plain_dtype = embed_scale, plain_dtype
        super().__init__(rows, columns, compute_dtype, backend, packed)
        self.num_embeddings, self.embedding_dim = rows, columns
        self.padding_idx = self.max_norm = None  # what nn.Embedding has besides
        self.norm_type, self.scale_grad_by_freq, self.sparse = 2.0, False, False

    def _hold(self, compute_dtype, backend, packed):
        super()._hold(compute_dtype, backend, packed)
        self.rounded_embed_scale = torch.tensor(self.embed_scale).to(compute_dtype).item()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling() and input_ids.numel():
            lowest, highest = input_ids.aminmax()  # elsewhere a look at the values would wait for the device
            if lowest < 0 or highest >= self.rows:
                raise IndexError(f"token ids are 0 to {self.rows - 1}, got {lowest.item()} to {highest.item()}")
        rows = self.backend.embedding(input_ids.reshape(-1), self.packed, self.compute_dtype)
        return rows.view(*input_ids.shape, self.columns) * self.rounded_embed_scale

    def _file_layout(self):
        codes, scales = self.codes_and_scales()
        if self.plain_dtype is None:
            return {"qweight": codes.contiguous().view(torch.int32), "scales": scales}
        dtype = torch.promote_types(self.plain_dtype, self.compute_dtype)
        weight = torch.empty(self.rows, self.columns, dtype=dtype, device=codes.device)
        for block in row_blocks(self.rows, self.columns):
            weight[block] = dequantize(codes[block], scales[block], dtype) + 0  # no -0, which a negative scale gives
        return {"weight": weight}

    def _file_shapes(self):
        if self.plain_dtype is not None:
            return {"weight": (self.rows, self.columns)}
        return {"qweight": (self.rows, self.columns // 8), "scales": (self.rows, self.columns // GROUP_SIZE)}

    def _from_file_layout(self, given):
        codes, scales = self.codes_and_scales()
        if "weight" in given:
            weight = given["weight"]
            return self.backend.pack(recover_codes(weight, scales, weight.dtype).to(self.device), scales)
        if "qweight" in given:
            codes = given["qweight"].contiguous().view(torch.uint8)
        return self.backend.pack(codes, given.get("scales", scales))


class Int4LMHead(nn.Linear):
    """The output head: logits from the embedding's own codes. Holds no tensors, so there is nothing to tie or save."""

    _is_hf_initialized = True  # transformers' weight initialization passes it by

    def __init__(self, embedding: Int4Embedding | PackedEmbedding):
        nn.Module.__init__(self)  # not nn.Linear's, which would make a weight
        self.in_features, self.out_features = embedding.columns, embedding.rows
        self.register_parameter("bias", None)
        self._embedding = (embedding,)  # in a tuple, so that it is not registered as a submodule a second time

    @property
    def weight(self) -> Int4Weight:
        return self._embedding[0].weight

    def parameters(self, recurse: bool = True) -> Iterator[Int4Weight]:
        return self._embedding[0].parameters(recurse)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        embedding = self._embedding[0]
        return embedding.matmul(hidden_states.to(embedding.device))


def exchange(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of another, in its mode and, where a model is spread over devices, with its hook."""
    old = model.get_submodule(name)
    model.set_submodule(name, module.train(old.training))
    if hasattr(old, "_hf_hook"):
        from accelerate.hooks import add_hook_to_module

        add_hook_to_module(module, old._hf_hook)


def prepare_linears(model: nn.Module, compute_dtype: torch.dtype, ahead: Mapping[str, Packed] | None = None) -> None:
    """Replace every AwqLinear of a model, one after the other, so that no more than one matrix is in memory twice.

    Args:
        ahead: the tensors of some of these layers' backends, by the layers' names in the model without adapters.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, AwqLinear)]
    for name in names:
        packed = (ahead or {}).get(name.removesuffix(".base_layer"))
        exchange(model, name, model.get_submodule(name).prepare(compute_dtype, packed))
