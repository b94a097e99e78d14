# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The fast path for NVIDIA GPUs from Ampere on, in bfloat16: int4 weights straight from memory, float32 sums.

What this file offers:
    Triton    the backend with the kernels of `int4_cuda_kernels.py`, in the layout that is described there

| rows of activations | way (`int4_cuda_tuning.py` has the block sizes and the borders)                      |
|---------------------|--------------------------------------------------------------------------------------|
| 1                   | a product on the floating-point units, at the speed of memory                        |
| to some hundred     | a product on the tensor cores, weights dequantised on the way                        |
| more                | dequantised in blocks to bfloat16, then cuBLAS                                       |

Repacking is plain torch, in blocks, on whatever device the codes are: it needs no kernel and no GPU. In a compiled
graph the kernels are opaque operators, so `fullgraph=True`, CUDA graphs and a static cache work; in eager mode they are
called directly, which is some microseconds shorter.
"""

import functools
import hashlib

import torch

from .int4_cuda_tuning import ManyRows, OneRow, Plan, choose

try:
    from .int4_cuda_kernels import dequantize_kernel, many_rows_kernel, one_row_kernel, sum_parts_kernel

    HAS_TRITON = True
except ImportError:  # as on a computer without a GPU
    HAS_TRITON = False

GROUP_SIZE = 32
# Weights that are repacked, or dequantised for a derivative, at a time.
BLOCK_WEIGHTS = 1 << 24
# The bits of 2.0**7 and 2.0**11 in float32: see `_as_float` of the kernels.
TWO_TO_7, TWO_TO_11 = 0x43000000, 0x45000000


class Triton:
    """Backend for bfloat16 models on NVIDIA GPUs.

    Tensors: qweight int32 [N, K/8], in group g of a row four words, word j holding input 32g + 4i + j in nibble i;
    scales [N, K/32] in their dtype on disk.
    """

    name = "triton"

    @staticmethod
    def supports(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> bool:
        return (
            device.type == "cuda"
            and torch.version.cuda is not None
            and HAS_TRITON
            and dtype == torch.bfloat16
            and torch.cuda.get_device_capability(device) >= (8, 0)  # bfloat16 on the tensor cores
        )

    @staticmethod
    def pack(codes: torch.Tensor, scales: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs, pairs = codes.shape
        qweight = torch.empty(outputs, pairs // 4, dtype=torch.int32, device=codes.device)
        for block in _blocks(outputs, pairs * 2, BLOCK_WEIGHTS):
            part = codes[block].unflatten(1, (-1, 8, 2))  # [n, group, i, two bytes]
            nibbles = torch.stack([part & 15, part >> 4], dim=-1).flatten(-2)  # [n, group, i, j]
            words = nibbles[:, :, 0::2] | (nibbles[:, :, 1::2] << 4)  # [n, group, byte, j]
            qweight[block] = words.transpose(2, 3).flatten(1).contiguous().view(torch.int32)
        return {"qweight": qweight, "scales": scales.contiguous()}

    @staticmethod
    def unpack(tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        qweight = tensors["qweight"]
        codes = torch.empty(qweight.shape[0], qweight.shape[1] * 4, dtype=torch.uint8, device=qweight.device)
        for block in _blocks(qweight.shape[0], qweight.shape[1] * 8, BLOCK_WEIGHTS):
            words = qweight[block].view(torch.uint8).unflatten(1, (-1, 4, 4)).transpose(2, 3)  # [n, group, byte, j]
            nibbles = torch.stack([words & 15, words >> 4], dim=3).flatten(2, 3)  # [n, group, i, j]
            codes[block] = (nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)).flatten(1)
        return codes, tensors["scales"]

    @staticmethod
    def linear(x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """x [M, K] bfloat16 -> x @ W.T [M, N]."""
        run = _linear_op if torch.compiler.is_compiling() else _linear
        return run(x, tensors["qweight"], tensors["scales"])

    @staticmethod
    def grad_input(grad: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """grad [M, N] of the output -> grad @ W [M, K] of the input, blocks of W summed in float32."""
        qweight, scales = tensors["qweight"], tensors["scales"]
        run = _dequantize_op if torch.compiler.is_compiling() else _dequantize
        total = torch.zeros(grad.shape[0], qweight.shape[1] * 8, device=grad.device)
        for block in _blocks(qweight.shape[0], qweight.shape[1] * 8, BLOCK_WEIGHTS):
            total += grad[:, block] @ run(qweight, scales, block.start, block.stop, grad.dtype)
        return total.to(grad.dtype)

    @staticmethod
    def embedding(ids: torch.Tensor, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """ids [n] -> rows [n, K] in `dtype`; NaN for an id that is no row."""
        run = _embedding_op if torch.compiler.is_compiling() else _embedding
        return run(ids, tensors["qweight"], tensors["scales"], dtype)


def _linear(x: torch.Tensor, qweight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x [M, K] -> [M, N], both bfloat16."""
    plan = _plan(max(x.shape[0], 1), qweight.shape[0], x.shape[1], x.device)
    return run_plan(plan, x, qweight, scales)


def run_plan(plan: Plan, x: torch.Tensor, qweight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """x [M, K] -> x @ W.T [M, N], both bfloat16, in the way that `plan` says. (OneRow is for M = 1 only.)"""
    x = x.contiguous()
    (rows, inputs), outputs = x.shape, qweight.shape[0]
    y = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    if rows == 0:
        return y
    with torch.cuda.device_of(x):
        if isinstance(plan, OneRow):
            _one_row(plan, x, qweight, scales, y, outputs, inputs)
        elif isinstance(plan, ManyRows):
            _many_rows(plan, x, qweight, scales, y, rows, outputs, inputs)
        else:
            for block in _blocks(outputs, inputs, plan.weights):
                weight = _dequantize(qweight, scales, block.start, block.stop, x.dtype)
                torch.mm(x, weight.T, out=y[:, block])
    return y


def _one_row(plan: OneRow, x, qweight, scales, y, outputs: int, inputs: int) -> None:
    one_row_kernel[(_ceil(outputs, plan.block_n),)](
        x,
        qweight,
        scales,
        y,
        outputs,
        TWO_TO_7,
        TWO_TO_11,
        INPUTS=inputs,
        BLOCK_N=plan.block_n,
        BLOCK_G=plan.block_g,
        num_warps=plan.num_warps,
    )


def _many_rows(plan: ManyRows, x, qweight, scales, y, rows: int, outputs: int, inputs: int) -> None:
    split_k = min(plan.split_k, _ceil(inputs, 256))
    parts = y if split_k == 1 else torch.empty(split_k, rows, outputs, device=x.device)
    many_rows_kernel[(_ceil(outputs, plan.block_n), _ceil(rows, plan.block_m), split_k)](
        permuted(x) if plan.permuted else x,
        qweight,
        scales,
        parts,
        rows,
        outputs,
        TWO_TO_7,
        TWO_TO_11,
        INPUTS=inputs,
        PERMUTED=plan.permuted,
        SPLIT_K=split_k,
        BLOCK_N=plan.block_n,
        BLOCK_M=plan.block_m,
        num_warps=plan.num_warps,
        num_stages=plan.num_stages,
    )
    if split_k > 1:
        sum_parts_kernel[(_ceil(y.numel(), 1024),)](parts, y, y.numel(), SPLIT_K=split_k, BLOCK=1024)


def permuted(x: torch.Tensor) -> torch.Tensor:
    """[M, K] -> [M, K up to a multiple of 256], zeros at the end; of each 256, input 32g + 4i + j at 32i + 4g + j."""
    x = torch.nn.functional.pad(x, (0, -x.shape[1] % 256))
    return x.unflatten(1, (-1, 8, 8, 4)).transpose(2, 3).flatten(1)


def _dequantize(qweight: torch.Tensor, scales: torch.Tensor, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows start..stop of W, [stop - start, K] in `dtype`."""
    weight = torch.empty(stop - start, qweight.shape[1] * 8, dtype=dtype, device=qweight.device)
    _rows(qweight, qweight, scales, weight, start, by_id=False)
    return weight


def _embedding(ids: torch.Tensor, qweight: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows `ids` of W, [n, K] in `dtype`."""
    weight = torch.empty(ids.shape[0], qweight.shape[1] * 8, dtype=dtype, device=qweight.device)
    _rows(ids.contiguous(), qweight, scales, weight, 0, by_id=True)
    return weight


def _rows(ids, qweight, scales, weight, first: int, by_id: bool) -> None:
    if not weight.numel():
        return
    inputs = weight.shape[1]
    with torch.cuda.device_of(qweight):
        dequantize_kernel[(weight.shape[0], _ceil(inputs, 1024))](
            ids, qweight, scales, weight, first, qweight.shape[0], INPUTS=inputs, BY_ID=by_id, BLOCK_K=1024
        )


@functools.cache
def _plan(rows: int, outputs: int, inputs: int, device: torch.device) -> Plan:
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    return choose(rows, outputs, inputs, capability, properties.multi_processor_count)


def _blocks(rows: int, columns: int, weights: int) -> list[slice]:
    """Slices that cover `rows`, each of about `weights` weights."""
    step = max(weights // columns, 1)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _ceil(count: int, block: int) -> int:
    return -(-count // block)


# Compiled graphs need operators by name. The names have a hash of the module's, because transformers imports this file
# once for each revision of each repo, and a name can be taken only once.
def _operator(name: str, function):
    namespace = f"gemma3_int4_{hashlib.sha256(__name__.encode()).hexdigest()[:16]}"
    return torch.library.custom_op(f"{namespace}::{name}", function, mutates_args=())


_linear_op = _operator("linear", _linear)
_dequantize_op = _operator("dequantize", _dequantize)
_embedding_op = _operator("embedding", _embedding)


@_linear_op.register_fake
def _(x, qweight, scales):
    return x.new_empty(x.shape[0], qweight.shape[0])


@_dequantize_op.register_fake
def _(qweight, scales, start, stop, dtype):
    return qweight.new_empty(stop - start, qweight.shape[1] * 8, dtype=dtype)


@_embedding_op.register_fake
def _(ids, qweight, scales, dtype):
    return qweight.new_empty(ids.shape[0], qweight.shape[1] * 8, dtype=dtype)
