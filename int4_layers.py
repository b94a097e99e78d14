# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The int4 modules of Gemma 3 INT4: a linear layer, a tied embedding, and the reference arithmetic that defines them.

What this file offers:
    unpack_awq, pack_awq       AWQ words on disk <-> row-major codes
    dequantize                 row-major codes and scales -> floats; the definition of what a weight *is*
    recover_codes              plain floats and their scales -> row-major codes
    Reference                  the backend for any device and dtype, slow and exact; the truth in tests
    Int4Linear                 nn.Linear without a weight
    Int4Embedding, Int4LMHead  the embedding and the output head, one storage

A weight matrix W [N, K] (N outputs, K inputs) is `W[n, k] = (code[n, k] - 8) * scale[n, k // 32]`, codes in 0..15.
*Row-major codes* are the form in which codes travel between layouts: uint8 [N, K/2], input 2j of a row in the low
nibble of byte j, input 2j+1 in the high one. Scales travel as [N, K/32] in the dtype that they have on disk.

A backend is a class with `name`, `supports`, `pack`, `unpack`, `linear`, `grad_input` and `embedding`, see `Reference`.
Each owns one layout of `qweight` and `scales`; `choose_backend` is the only place that decides.

| model on         | dtype    | backend    | why                                                                 |
|------------------|----------|------------|---------------------------------------------------------------------|
| NVIDIA GPU       | bfloat16 | triton     | our kernels, Ampere and later; only on request until measured       |
| x86 CPU, Linux   | bfloat16 | native-cpu | our kernels, compiled here: AVX512 (VNNI, BF16) or AVX2             |
| any other CPU    | bfloat16 | aten-cpu   | PyTorch's int4 kernel; wants bfloat16 activations and scales        |
| CPU              | float32  | reference  | exact: float32(code * scale) from the scales as stored              |
| any other device | any      | reference  | works everywhere                                                    |

The environment variable GEMMA3_INT4_BACKEND names the first of triton, native-cpu, aten-cpu, reference to be
considered; without it, that is native-cpu (`FIRST_BACKEND`), so that GPUs use the reference.
"""

import os

import torch
from torch import nn

from .int4_cpu import AtenCpu, NativeCpu
from .int4_cuda import Triton

GROUP_SIZE = 32
# Nibble i (low to high) of an AWQ word holds output 8j + AWQ_ORDER[i]. Source of the format: AutoAWQ's "gemm" packing.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
# Eight codes of 8: the zero point of a symmetric AWQ group, eight outputs to a word.
AWQ_SYMMETRIC_ZEROS = 0x88888888 - (1 << 32)
# Rows of a matrix that are dequantized at a time are chosen to hold about this many weights (64 MB in float32).
BLOCK_WEIGHTS = 1 << 24


def row_blocks(rows: int, columns: int, multiple: int = 1) -> list[slice]:
    """Slices that cover `rows`, each of at most BLOCK_WEIGHTS weights and starting at a multiple of `multiple`."""
    step = max(BLOCK_WEIGHTS // (columns * multiple), 1) * multiple
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def unpack_awq(qweight: torch.Tensor) -> torch.Tensor:
    """AWQ words, int32 [K, N/8] -> row-major codes, uint8 [N, K/2]."""
    inputs, words = qweight.shape
    codes = torch.empty(words * 8, inputs // 2, dtype=torch.uint8, device=qweight.device)
    for block in row_blocks(words, inputs * 8):
        part = qweight[:, block]
        nibbles = torch.stack([(part >> (4 * AWQ_ORDER.index(n))) & 15 for n in range(8)], dim=-1).to(torch.uint8)
        rows = nibbles.flatten(1).T  # [n, K]
        codes[block.start * 8 : block.stop * 8] = rows[:, 0::2] | (rows[:, 1::2] << 4)
    return codes


def pack_awq(codes: torch.Tensor) -> torch.Tensor:
    """Row-major codes, uint8 [N, K/2] -> AWQ words, int32 [K, N/8]."""
    outputs, pairs = codes.shape
    qweight = torch.empty(pairs * 2, outputs // 8, dtype=torch.int32, device=codes.device)
    for block in row_blocks(outputs // 8, pairs * 16):
        part = codes[block.start * 8 : block.stop * 8]
        columns = torch.stack([part & 15, part >> 4], dim=-1).flatten(1).T.unflatten(1, (-1, 8))  # [K, words, 8]
        word = torch.zeros(columns.shape[:2], dtype=torch.int32, device=codes.device)
        for i, n in enumerate(AWQ_ORDER):
            word |= columns[:, :, n].to(torch.int32) << (4 * i)
        qweight[:, block] = word
    return qweight


def dequantize(codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Weights from codes: float32(code * scale), then rounded to `dtype`.

    Args:
        codes: row-major codes, uint8 [n, K/2].
        scales: [n, K/32], any floating dtype.
        dtype: of the result.

    Returns:
        [n, K] in `dtype`.
    """
    signed = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1).to(torch.int8) - 8
    weight = signed.unflatten(1, (-1, GROUP_SIZE)).float() * scales.float().unsqueeze(-1)
    return weight.flatten(1).to(dtype)


def recover_codes(weight: torch.Tensor, scales: torch.Tensor, disk_dtype: torch.dtype) -> torch.Tensor:
    """Row-major codes of a plain matrix: round(weight / scale).

    Args:
        weight: [N, K], as loaded.
        scales: [N, K/32], the exact scales, on the same device.
        disk_dtype: dtype of `weight` on disk; narrower than the loaded one where the user asked for float32.

    Returns:
        uint8 [N, K/2], on the CPU, so that a GPU need not hold them beside the plain matrix.

    Raises:
        ValueError: `scales` do not belong to `weight`: some code * scale, rounded alike, is another float.
    """
    codes = torch.empty(weight.shape[0], weight.shape[1] // 2, dtype=torch.uint8)
    for block in row_blocks(*weight.shape):
        grouped = weight[block].float().unflatten(1, (-1, GROUP_SIZE))
        signed = (grouped / scales[block].float().unsqueeze(-1)).round().clamp(-8, 7).flatten(1)
        unsigned = (signed + 8).to(torch.uint8)
        part = unsigned[:, 0::2] | (unsigned[:, 1::2] << 4)
        again = dequantize(part, scales[block], disk_dtype).to(weight.dtype)
        if not torch.equal(again, weight[block]):
            raise ValueError("the embedding is not codes * scales")
        codes[block] = part
    return codes


class Reference:
    """Dequantise, then multiply: any device, any dtype. Its layout is row-major codes [N, K/2] and scales [N, K/32].

    The matrix is dequantized in blocks of rows, so that a 262,208-row head needs no full-size temporary.
    """

    name = "reference"

    @staticmethod
    def supports(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> bool:
        return True

    @staticmethod
    def pack(codes: torch.Tensor, scales: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"qweight": codes, "scales": scales}

    @staticmethod
    def unpack(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return tensors["qweight"], tensors["scales"]

    @staticmethod
    def linear(x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """x [M, K] -> x @ W.T [M, N], in x's dtype."""
        codes, scales = tensors["qweight"], tensors["scales"]
        blocks = row_blocks(codes.shape[0], x.shape[1])
        parts = [nn.functional.linear(x, dequantize(codes[block], scales[block], x.dtype)) for block in blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    @staticmethod
    def grad_input(grad: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """grad [M, N] of the output -> grad @ W [M, K] of the input."""
        codes, scales = tensors["qweight"], tensors["scales"]
        blocks = row_blocks(codes.shape[0], codes.shape[1] * 2)
        return sum(grad[:, block] @ dequantize(codes[block], scales[block], grad.dtype) for block in blocks)

    @staticmethod
    def embedding(ids: torch.Tensor, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """ids [n] -> rows [n, K] in `dtype`."""
        return dequantize(tensors["qweight"][ids], tensors["scales"][ids], dtype)


BACKENDS = (Triton, NativeCpu, AtenCpu, Reference)
FIRST_BACKEND = NativeCpu  # Triton, once its kernels have run and been measured on a GPU


def choose_backend(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> type:
    """The first backend that supports a matrix [outputs, inputs] on `device` in a model of `dtype`."""
    if dtype == torch.float16:
        raise TypeError("Gemma 3 overflows float16: use bfloat16 or float32.")
    names = [backend.name for backend in BACKENDS]
    first = os.environ.get("GEMMA3_INT4_BACKEND") or FIRST_BACKEND.name
    if first not in names:
        raise ValueError(f"GEMMA3_INT4_BACKEND={first}: expected one of {', '.join(names)}.")
    return next(b for b in BACKENDS[names.index(first) :] if b.supports(device, dtype, outputs, inputs))


class _MatMul(torch.autograd.Function):
    """x @ W.T with a derivative for x; the codes are fixed, and the int4 kernels have no derivative of their own."""

    @staticmethod
    def forward(ctx, x, matrix):
        ctx.matrix = matrix
        return matrix.backend.linear(x, matrix.tensors())

    @staticmethod
    def backward(ctx, grad):
        return ctx.matrix.backend.grad_input(grad, ctx.matrix.tensors()), None


class Int4Weight:
    """What stands where an nn.Linear has its weight: tells device, dtype and shape; refuses to be read or merged."""

    _is_hf_initialized = True  # transformers' weight initialisation passes it by

    def __init__(self, matrix: "_Int4Matrix"):
        self.device = matrix.qweight.device
        self.dtype = matrix.compute_dtype or torch.get_default_dtype()
        self.shape = torch.Size((matrix.rows, matrix.columns))

    @property
    def data(self):
        raise RuntimeError(
            "This weight is stored as int4 codes, and a float update cannot be merged into them without quantising "
            "anew. Keep the LoRA adapter beside the model: save_pretrained of the PEFT model saves the adapter alone."
        )


class _Int4Matrix(nn.Module):
    """Codes and scales of one matrix [rows, columns] in the layout of one backend.

    `backend` is None while the buffers have the layout of the file; `prepare` repacks them for the device that they
    are on. From then on `qweight`, `scales` and whatever else the backend keeps are its own, and `state_dict` gives
    the layout of the file back.
    """

    def __init__(self, rows: int, columns: int):
        nn.Module.__init__(self)  # not nn.Linear's, which would make a weight
        if columns % GROUP_SIZE or rows % 8:
            raise ValueError(
                f"An int4 matrix needs inputs divisible by {GROUP_SIZE} and outputs divisible by 8, got {columns} "
                f"inputs and {rows} outputs: keep this module unquantised (modules_to_not_convert)."
            )
        self.rows, self.columns = rows, columns
        self.backend = None
        self.compute_dtype = None

    def tensors(self) -> dict[str, torch.Tensor]:
        """The backend's own tensors, by name."""
        return self._buffers

    def codes_and_scales(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Row-major codes, uint8 [rows, columns/2], and scales [rows, columns/32] in their dtype on disk."""
        if self.backend is None:
            return self._codes_and_scales_from_file_layout()
        return self.backend.unpack(self.tensors())

    def set_codes_and_scales(self, codes: torch.Tensor, scales: torch.Tensor, compute_dtype: torch.dtype) -> None:
        """Choose the backend for the codes' device and hold them in its layout."""
        backend = choose_backend(codes.device, compute_dtype, self.rows, self.columns)
        self._hold(backend, compute_dtype, backend.pack(codes, scales))

    def _hold(self, backend: type, compute_dtype: torch.dtype, packed: dict[str, torch.Tensor]) -> None:
        self.backend, self.compute_dtype = backend, compute_dtype
        self._buffers.clear()
        for name, tensor in packed.items():
            self.register_buffer(name, tensor)

    def prepare(self, compute_dtype: torch.dtype) -> None:
        """Repack from the layout of the file for the backend of this device, for a model of `compute_dtype`."""
        self.set_codes_and_scales(*self.codes_and_scales(), compute_dtype)

    def int4_bytes(self) -> int:
        """Bytes that codes and scales take in memory."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., columns] -> x @ W.T [..., rows], computed in the model's dtype and given back in x's."""
        rows = x.reshape(-1, self.columns).to(self.compute_dtype)
        if torch.is_grad_enabled() and rows.requires_grad:
            y = _MatMul.apply(rows, self)
        else:
            y = self.backend.linear(rows, self.tensors())
        return y.to(x.dtype).view(*x.shape[:-1], self.rows)

    def _apply(self, fn, recurse=True):
        """`.to(device)` and `.to(dtype)`: codes and scales move, are never cast, and are repacked where they land."""
        if self.backend is None:
            for name, tensor in self._buffers.items():
                self._buffers[name] = fn(tensor) if not tensor.is_floating_point() else tensor.to(fn(tensor).device)
            return self
        landed = fn(torch.empty(0, dtype=self.compute_dtype, device=self.qweight.device))
        if landed.device != self.qweight.device or landed.dtype != self.compute_dtype:
            codes, scales = self.codes_and_scales()
            self.set_codes_and_scales(codes.to(landed.device), scales.to(landed.device), landed.dtype)
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        if self.backend is None:
            super()._save_to_state_dict(destination, prefix, keep_vars)
            return
        for name, tensor in self._file_layout(*self.codes_and_scales()).items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs):
        if self.backend is None:
            super()._load_from_state_dict(
                state_dict, prefix, metadata, strict, missing_keys, unexpected_keys, error_msgs
            )
        elif any(key.startswith(prefix) for key in state_dict):
            error_msgs.append(f"{prefix[:-1]}: int4 weights are read by from_pretrained, not by load_state_dict.")
        else:  # an adapter's state dict, say: nothing here for this module
            missing_keys.extend(prefix + name for name in self._file_names)


class Int4Linear(_Int4Matrix, nn.Linear):
    """A linear layer without bias on int4 codes; an nn.Linear to whoever asks (PEFT does).

    On disk (AWQ, "gemm"): qweight int32 [in, out/8], qzeros int32 [in/32, out/8], scales [in/32, out].
    """

    _file_names = ("qweight", "qzeros", "scales")

    def __init__(self, in_features: int, out_features: int, scale_dtype: torch.dtype, device=None):
        _Int4Matrix.__init__(self, out_features, in_features)
        self.in_features, self.out_features = in_features, out_features
        groups = in_features // GROUP_SIZE
        self.register_buffer("qweight", torch.zeros(in_features, out_features // 8, dtype=torch.int32, device=device))
        self.register_buffer("qzeros", torch.zeros(groups, out_features // 8, dtype=torch.int32, device=device))
        self.register_buffer("scales", torch.zeros(groups, out_features, dtype=scale_dtype, device=device))
        self.register_parameter("bias", None)

    @property
    def weight(self) -> Int4Weight:
        return Int4Weight(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.matmul(x)

    def prepare(self, compute_dtype: torch.dtype) -> None:
        """As for any int4 matrix, but straight from AWQ words where the backend has a way (`pack_awq`)."""
        backend = choose_backend(self.qweight.device, compute_dtype, self.rows, self.columns)
        if self.backend is not None or not hasattr(backend, "pack_awq"):
            super().prepare(compute_dtype)
            return
        self._check_symmetric()
        self._hold(backend, compute_dtype, backend.pack_awq(self.qweight, self.scales))

    def _codes_and_scales_from_file_layout(self):
        self._check_symmetric()
        return unpack_awq(self.qweight), self.scales.T.contiguous()

    def _check_symmetric(self) -> None:
        if (self.qzeros != AWQ_SYMMETRIC_ZEROS).any():
            raise ValueError("qzeros other than 8: these AWQ weights are not symmetric, and this code runs only such.")

    def _file_layout(self, codes, scales):
        zeros = torch.full(
            (self.columns // GROUP_SIZE, self.rows // 8), AWQ_SYMMETRIC_ZEROS, dtype=torch.int32, device=codes.device
        )
        return {"qweight": pack_awq(codes), "qzeros": zeros, "scales": scales.T.contiguous()}


class Int4Embedding(_Int4Matrix):
    """Gemma's scaled word embedding on int4 codes, which serves as output head too (`Int4LMHead`).

    On disk it is either "int4": qweight int32 [V, D/8] (the row-major codes, eight to a word, lowest nibble first) and
    scales [V, D/32]; or "plain": weight [V, D], from which the codes were recovered with the scales of a side file.
    Rows are multiplied by sqrt(D) rounded to the model's dtype, as stock Gemma 3 does.
    """

    _file_names = ("qweight", "scales")

    def __init__(self, rows: int, columns: int, embed_scale: float, scale_dtype: torch.dtype, device=None):
        super().__init__(rows, columns)
        self.embed_scale = embed_scale
        self.plain_dtype = None  # dtype of the weight on disk, where it is stored plain
        self.register_buffer("qweight", torch.zeros(rows, columns // 8, dtype=torch.int32, device=device))
        self.register_buffer("scales", torch.zeros(rows, columns // GROUP_SIZE, dtype=scale_dtype, device=device))

    def set_codes_and_scales(self, codes, scales, compute_dtype):
        super().set_codes_and_scales(codes, scales, compute_dtype)
        self.rounded_embed_scale = torch.tensor(self.embed_scale).to(compute_dtype).item()

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        if input_ids.device.type == "cpu" and not torch.compiler.is_compiling() and input_ids.numel():
            lowest, highest = input_ids.aminmax()  # elsewhere a look at the values would wait for the device
            if lowest < 0 or highest >= self.rows:
                raise IndexError(f"token ids are 0 to {self.rows - 1}, got {lowest.item()} to {highest.item()}")
        rows = self.backend.embedding(input_ids.reshape(-1), self.tensors(), self.compute_dtype)
        return rows.view(*input_ids.shape, self.columns) * self.rounded_embed_scale

    def _codes_and_scales_from_file_layout(self):
        return self.qweight.view(torch.uint8), self.scales

    def _file_layout(self, codes, scales):
        if self.plain_dtype is None:
            return {"qweight": codes.contiguous().view(torch.int32), "scales": scales}
        dtype = torch.promote_types(self.plain_dtype, self.compute_dtype)
        weight = torch.empty(self.rows, self.columns, dtype=dtype, device=codes.device)
        for block in row_blocks(self.rows, self.columns):
            weight[block] = dequantize(codes[block], scales[block], dtype)
        return {"weight": weight}


class Int4LMHead(nn.Module):
    """The output head: logits from the embedding's own codes. Holds no tensors, so there is nothing to tie or save."""

    def __init__(self, embedding: Int4Embedding):
        super().__init__()
        self.in_features, self.out_features = embedding.columns, embedding.rows
        self._embedding = (embedding,)  # in a tuple, so that it is not registered as a submodule a second time

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        embedding = self._embedding[0]
        return embedding.matmul(hidden_states.to(embedding.qweight.device))
