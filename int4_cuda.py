# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The fast path for NVIDIA GPUs from Ampere on, in bfloat16: int4 weights straight from memory, float32 sums.

What this file offers:
    Triton                    the backend with the kernels of `int4_cuda_kernels.py`, in the layout described there
    rms_norm, heads, gated    what stands between the products, as single kernels, for `int4_cuda_fused.py`

| rows of activations | way (`int4_cuda_tuning.py` has the block sizes and the borders)                      |
|---------------------|--------------------------------------------------------------------------------------|
| 1                   | a product on the floating-point units, at the speed of memory                        |
| to some hundred     | a product on the tensor cores, weights dequantized on the way                        |
| more                | dequantized in blocks to bfloat16, then cuBLAS                                       |

Repacking is plain torch, in blocks, on whatever device the codes are: it needs no kernel and no GPU. In a compiled
graph the kernels are opaque operators, so `fullgraph=True`, CUDA graphs and a static cache work; in eager mode they are
called directly, which is some microseconds shorter.
"""

import functools
import hashlib
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from .int4_cuda_tuning import ManyRows, OneRow, Plan, choose

try:
    from .int4_cuda_kernels import (
        dequantize_kernel,
        gated_kernel,
        heads_kernel,
        many_rows_kernel,
        norm_kernel,
        one_row_kernel,
        sum_parts_kernel,
    )

    HAS_TRITON = True
except ImportError:  # as on a computer without a GPU
    HAS_TRITON = False

GROUP_SIZE = 32
# Weights that are repacked, or dequantized for a derivative, at a time.
BLOCK_WEIGHTS = 1 << 24


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
            and _has_compiler()
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
        return Triton.linears(x, [tensors])

    @staticmethod
    def linears(x: torch.Tensor, matrices: list[dict[str, torch.Tensor]]) -> torch.Tensor:
        """x [M, K] -> [M, all N]: its products with one to three matrices beside each other, in one launch.

        The matrices have the same K, and scales of the same dtype.
        """
        run = _linears_op if torch.compiler.is_compiling() else _linears
        return run(x, [tensors["qweight"] for tensors in matrices], [tensors["scales"] for tensors in matrices])

    @staticmethod
    def grad_input(grad: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        """grad [M, N] of the output -> grad @ W [M, K] of the input, blocks of W summed in float32."""
        qweight, scales = tensors["qweight"], tensors["scales"]
        run = _dequantize_op if torch.compiler.is_compiling() else _dequantize
        total = torch.zeros(grad.shape[0], qweight.shape[1] * 8, dtype=torch.float32, device=grad.device)
        for block in _blocks(qweight.shape[0], qweight.shape[1] * 8, BLOCK_WEIGHTS):
            total += grad[:, block] @ run(qweight, scales, block.start, block.stop, grad.dtype)
        return total.to(grad.dtype)

    @staticmethod
    def embedding(ids: torch.Tensor, tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """ids [n] -> rows [n, K] in `dtype`; NaN for an id that is no row."""
        run = _embedding_op if torch.compiler.is_compiling() else _embedding
        return run(ids, tensors["qweight"], tensors["scales"], dtype)


def _has_compiler() -> bool:
    """Whether there is what Triton builds its kernels' launchers with: a C compiler, and Python's header for it."""
    header = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    return header.exists() and bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def _linears(x: torch.Tensor, qweights: list[torch.Tensor], scales: list[torch.Tensor]) -> torch.Tensor:
    """x [M, K] -> [M, all N], both bfloat16."""
    outputs = sum(qweight.shape[0] for qweight in qweights)
    plan = _plan(max(x.shape[0], 1), outputs, x.shape[1], x.device)
    return run_plan(plan, x, qweights, scales)


def run_plan(plan: Plan, x: torch.Tensor, qweights: list[torch.Tensor], scales: list[torch.Tensor]) -> torch.Tensor:
    """x [M, K] -> x @ W.T [M, N] for one to three W, beside each other, in the way of `plan`. (OneRow: M = 1 only.)"""
    x = x.contiguous()
    outputs = [qweight.shape[0] for qweight in qweights]
    y = torch.empty(x.shape[0], sum(outputs), dtype=x.dtype, device=x.device)
    if x.shape[0] == 0:
        return y
    with torch.cuda.device_of(x):
        if isinstance(plan, OneRow):
            _one_row(plan, x, qweights, scales, y, outputs)
        elif isinstance(plan, ManyRows):
            _many_rows(plan, x, qweights, scales, y, outputs)
        else:
            columns = y.split(outputs, dim=1)
            for qweight, scale, part in zip(qweights, scales, columns, strict=True):
                for block in _blocks(qweight.shape[0], x.shape[1], plan.weights, multiple=256):  # what cuBLAS likes
                    weight = _dequantize(qweight, scale, block.start, block.stop, x.dtype)
                    torch.mm(x, weight.T, out=part[:, block])
    return y


def _one_row(plan: OneRow, x, qweights, scales, y, outputs: list[int]) -> None:
    one_row_kernel[(_programs(outputs, plan.block_n),)](
        x,
        y,
        *_three(qweights, scales, outputs),
        INPUTS=x.shape[1],
        BLOCK_N=plan.block_n,
        BLOCK_G=plan.block_g,
        STAGES=plan.num_stages,
        num_warps=plan.num_warps,
    )


def _many_rows(plan: ManyRows, x, qweights, scales, y, outputs: list[int]) -> None:
    rows, inputs = x.shape
    split_k = min(plan.split_k, _ceil(inputs, 256))
    parts = y if split_k == 1 else torch.empty(split_k, *y.shape, dtype=torch.float32, device=x.device)
    grid = (_ceil(rows, plan.block_m), _programs(outputs, plan.block_n), split_k)  # what shares words runs together
    many_rows_kernel[grid](
        permuted(x) if plan.permuted else x,
        parts,
        rows,
        *_three(qweights, scales, outputs),
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


def _three(qweights: list, scales: list, outputs: list[int]) -> list:
    """The arguments of the kernels for three matrices: an absent one is the first without outputs."""
    present = [argument for matrix in zip(qweights, scales, outputs, strict=True) for argument in matrix]
    return present + [qweights[0], scales[0], 0] * (3 - len(outputs))


def _programs(outputs: list[int], block: int) -> int:
    """How many blocks of outputs there are, none of two matrices."""
    return sum(_ceil(count, block) for count in outputs)


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


def rms_norm(x: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
    """x [..., K] -> x / sqrt(mean(x^2) + eps) * (1 + gain), computed in float32, in x's dtype."""
    x = x.contiguous()
    y = torch.empty_like(x)
    size = x.shape[-1]
    block = _power_of_two(size)
    with torch.cuda.device_of(x):
        norm_kernel[(x.numel() // size,)](x, gain, y, eps, SIZE=size, BLOCK=block, num_warps=_warps(block))
    return y


def heads(
    projected: torch.Tensor,
    queries: int,
    keys: int,
    gain_q: torch.Tensor,
    gain_k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm and rotary position of the first `queries + keys` heads of `projected`.

    Args:
        projected: [batch, length, heads, head_dim], contiguous.
        queries: how many heads have the gain `gain_q` [head_dim].
        keys: how many heads, after those, have the gain `gain_k` [head_dim].
        cos: [batch or 1, length, head_dim], as `sin`.
        eps: of both norms.

    Returns:
        [batch, length, queries, head_dim] and [batch, length, keys, head_dim], in the dtype of `projected`.
    """
    batch, length, _, size = projected.shape
    y = projected.new_empty(batch, length, queries + keys, size)
    cos, sin = (table.expand(batch, length, size).reshape(-1, size) for table in (cos, sin))
    block = _power_of_two(size)
    with torch.cuda.device_of(projected):
        heads_kernel[(batch * length, queries + keys)](
            projected,
            gain_q,
            gain_k,
            cos,
            sin,
            y,
            projected.stride(1),
            queries,
            eps,
            SIZE=size,
            BLOCK=block,
            num_warps=_warps(block),
        )
    return y.split([queries, keys], dim=2)


def gated(both: torch.Tensor) -> torch.Tensor:
    """[M, gate and up beside each other, 2 * F] -> gelu(gate) * up [M, F]; gelu in its tanh form."""
    rows, size = both.shape[0], both.shape[1] // 2
    y = both.new_empty(rows, size)
    with torch.cuda.device_of(both):
        gated_kernel[(rows, _ceil(size, 1024))](both, y, size, BLOCK=1024)
    return y


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 8)


@functools.cache
def _plan(rows: int, outputs: int, inputs: int, device: torch.device) -> Plan:
    properties = torch.cuda.get_device_properties(device)
    capability = (properties.major, properties.minor)
    return choose(rows, outputs, inputs, capability, properties.multi_processor_count)


def _blocks(rows: int, columns: int, weights: int, multiple: int = 1) -> list[slice]:
    """Slices that cover `rows`, each of about `weights` weights and starting at a multiple of `multiple`."""
    step = max(weights // (columns * multiple), 1) * multiple
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _ceil(count: int, block: int) -> int:
    return -(-count // block)


# Compiled graphs need operators by name. The names have a hash of the module's, because transformers imports this file
# once for each revision of each repo, and a name can be taken only once.
def _operator(name: str, function):
    namespace = f"gemma3_int4_{hashlib.sha256(__name__.encode()).hexdigest()[:16]}"
    return torch.library.custom_op(f"{namespace}::{name}", function, mutates_args=())


_linears_op = _operator("linears", _linears)
_dequantize_op = _operator("dequantize", _dequantize)
_embedding_op = _operator("embedding", _embedding)


@_linears_op.register_fake
def _(x, qweights, scales):
    return x.new_empty(x.shape[0], sum(qweight.shape[0] for qweight in qweights))


@_dequantize_op.register_fake
def _(qweight, scales, start, stop, dtype):
    return qweight.new_empty(stop - start, qweight.shape[1] * 8, dtype=dtype)


@_embedding_op.register_fake
def _(ids, qweight, scales, dtype):
    return qweight.new_empty(ids.shape[0], qweight.shape[1] * 8, dtype=dtype)
