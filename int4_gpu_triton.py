# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The backend for bfloat16 models on NVIDIA GPUs, Ampere and later: int4 weights straight from memory, float32 sums.

What this file offers:
    Triton                    the backend with the kernels of `int4_gpu_kernels.py`, in the layout described there
    HAS_TRITON, has_compiler  what it takes that a computer may not have
    rms_norm, heads, gated    what stands between the products, as single kernels, for `int4_gpu_fused.py`

| rows of activations | kernel (`int4_gpu_tuning.py` has the block sizes and the thresholds)                 |
|---------------------|--------------------------------------------------------------------------------------|
| 1                   | a product on the floating-point units, at the speed of memory                        |
| to some hundred     | a product on the tensor cores, weights dequantized on the fly                        |
| more                | dequantized in blocks to bfloat16, then cuBLAS                                       |

Repacking is plain torch, in blocks, on whatever device the codes are: it needs no kernel and no GPU. In a compiled
graph the kernels are opaque operators, so `fullgraph=True`, CUDA graphs and a static cache work; in eager mode they are
called directly, which is some microseconds shorter.
"""

import functools
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from .int4_codes import Packed, from_awq, join_codes, row_blocks, split_codes
from .int4_gpu_tuning import ManyRows, OneRow, Plan, choose
from .int4_operator import operator

try:
    from .int4_gpu_kernels import (
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


class Triton:
    """Backend for bfloat16 models on NVIDIA GPUs.

    Tensors: group_codes int32 [N, K/8], in group g of a row four words, word j holding input 32g + 4i + j in nibble i;
    group_scales [N, K/32] in their dtype on disk.
    """

    name = "triton"

    @staticmethod
    def why_not(device: torch.device, dtype: torch.dtype, outputs: int, inputs: int) -> str | None:
        if device.type != "cuda" or torch.version.cuda is None:
            return "runs on NVIDIA GPUs"
        if dtype != torch.bfloat16:
            return "computes in bfloat16"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return "this GPU is older than Ampere, whose tensor cores are the first with bfloat16"
        if not HAS_TRITON:
            return "triton is not installed"
        return None if has_compiler() else "Triton needs a C compiler and Python's header files"

    @staticmethod
    def pack(codes: torch.Tensor, scales: torch.Tensor) -> Packed:
        outputs, pairs = codes.shape
        packed = torch.empty(outputs, pairs // 4, dtype=torch.int32, device=codes.device)
        for block in row_blocks(outputs, pairs * 2):
            nibbles = split_codes(codes[block]).unflatten(1, (-1, 8, 4))  # [n, group, i, j]
            words = nibbles[:, :, 0::2] | (nibbles[:, :, 1::2] << 4)  # [n, group, byte, j]
            packed[block] = words.transpose(2, 3).flatten(1).contiguous().view(torch.int32)
        return {"group_codes": packed, "group_scales": scales.contiguous()}

    @staticmethod
    def repack_awq(qweight: torch.Tensor, scales: torch.Tensor) -> Packed:
        return Triton.pack(*from_awq(qweight, scales))

    @staticmethod
    def unpack(packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
        words = packed["group_codes"]
        codes = torch.empty(words.shape[0], words.shape[1] * 4, dtype=torch.uint8, device=words.device)
        for block in row_blocks(words.shape[0], words.shape[1] * 8):
            part = words[block].view(torch.uint8).unflatten(1, (-1, 4, 4)).transpose(2, 3)  # [n, group, byte, j]
            nibbles = torch.stack([part & 15, part >> 4], dim=3).flatten(2, 3)  # [n, group, i, j]
            codes[block] = join_codes(nibbles).flatten(1)
        return codes, packed["group_scales"]

    @staticmethod
    def linear(x: torch.Tensor, packed: Packed) -> torch.Tensor:
        return Triton.linears(x, [packed])

    @staticmethod
    def linears(x: torch.Tensor, matrices: list[Packed]) -> torch.Tensor:
        """x [M, K] -> [M, all N]: its products with one to three matrices beside each other, in one launch.

        The matrices have the same K, and scales of the same dtype.
        """
        run = _linears_op if torch.compiler.is_compiling() else _linears
        return run(x, [packed["group_codes"] for packed in matrices], [packed["group_scales"] for packed in matrices])

    @staticmethod
    def grad_input(grad: torch.Tensor, packed: Packed) -> torch.Tensor:
        codes, scales = packed["group_codes"], packed["group_scales"]
        run = _dequantize_op if torch.compiler.is_compiling() else _dequantize
        total = torch.zeros(grad.shape[0], codes.shape[1] * 8, dtype=torch.float32, device=grad.device)
        for block in row_blocks(codes.shape[0], codes.shape[1] * 8):  # summed in float32
            total += grad[:, block] @ run(codes, scales, block.start, block.stop, grad.dtype)
        return total.to(grad.dtype)

    @staticmethod
    def embedding(ids: torch.Tensor, packed: Packed, dtype: torch.dtype) -> torch.Tensor:
        """As every backend's, and NaN for an id that is no row."""
        run = _embedding_op if torch.compiler.is_compiling() else _embedding
        return run(ids, packed["group_codes"], packed["group_scales"], dtype)


def has_compiler() -> bool:
    """Whether there is what Triton builds its kernels' launchers with: a C compiler, and Python's header for it."""
    header = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    return header.exists() and bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def _linears(x: torch.Tensor, codes: list[torch.Tensor], scales: list[torch.Tensor]) -> torch.Tensor:
    """x [M, K] -> [M, all N], both bfloat16."""
    outputs = sum(matrix.shape[0] for matrix in codes)
    plan = _plan(max(x.shape[0], 1), outputs, x.shape[1], x.device)
    return run_plan(plan, x, codes, scales)


def run_plan(plan: Plan, x: torch.Tensor, codes: list[torch.Tensor], scales: list[torch.Tensor]) -> torch.Tensor:
    """x [M, K] -> x @ W.T [M, N] for one to three W, beside each other, as `plan` says. (OneRow: M = 1 only.)"""
    x = x.contiguous()
    outputs = [matrix.shape[0] for matrix in codes]
    y = torch.empty(x.shape[0], sum(outputs), dtype=x.dtype, device=x.device)
    if x.shape[0] == 0:
        return y
    with torch.cuda.device_of(x):
        if isinstance(plan, OneRow):
            _one_row(plan, x, codes, scales, y, outputs)
        elif isinstance(plan, ManyRows):
            _many_rows(plan, x, codes, scales, y, outputs)
        else:
            columns = y.split(outputs, dim=1)
            for matrix, scale, part in zip(codes, scales, columns, strict=True):
                for block in row_blocks(matrix.shape[0], x.shape[1], plan.weights, multiple=256):  # what cuBLAS likes
                    weight = _dequantize(matrix, scale, block.start, block.stop, x.dtype)
                    torch.mm(x, weight.T, out=part[:, block])
    return y


def _one_row(plan: OneRow, x, codes, scales, y, outputs: list[int]) -> None:
    one_row_kernel[(_programs(outputs, plan.block_n),)](
        x,
        y,
        *_three(codes, scales, outputs),
        INPUTS=x.shape[1],
        BLOCK_N=plan.block_n,
        BLOCK_G=plan.block_g,
        STAGES=plan.num_stages,
        num_warps=plan.num_warps,
    )


def _many_rows(plan: ManyRows, x, codes, scales, y, outputs: list[int]) -> None:
    rows, inputs = x.shape
    split_k = min(plan.split_k, _ceil(inputs, 256))
    parts = y if split_k == 1 else torch.empty(split_k, *y.shape, dtype=torch.float32, device=x.device)
    grid = (_ceil(rows, plan.block_m), _programs(outputs, plan.block_n), split_k)  # what shares words runs together
    many_rows_kernel[grid](
        permuted(x) if plan.permuted else x,
        parts,
        rows,
        *_three(codes, scales, outputs),
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


def _three(codes: list, scales: list, outputs: list[int]) -> list:
    """The arguments of the kernels for three matrices: an absent one is the first without outputs."""
    present = [argument for parts in zip(codes, scales, outputs, strict=True) for argument in parts]
    return present + [codes[0], scales[0], 0] * (3 - len(outputs))


def _programs(outputs: list[int], block: int) -> int:
    """How many blocks of outputs there are, none of two matrices."""
    return sum(_ceil(count, block) for count in outputs)


def permuted(x: torch.Tensor) -> torch.Tensor:
    """[M, K] -> [M, K up to a multiple of 256], zeros at the end; of each 256, input 32g + 4i + j at 32i + 4g + j."""
    x = torch.nn.functional.pad(x, (0, -x.shape[1] % 256))
    return x.unflatten(1, (-1, 8, 8, 4)).transpose(2, 3).flatten(1)


def _dequantize(codes: torch.Tensor, scales: torch.Tensor, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows start..stop of W, [stop - start, K] in `dtype`."""
    weight = torch.empty(stop - start, codes.shape[1] * 8, dtype=dtype, device=codes.device)
    _rows(codes, codes, scales, weight, start, by_id=False)
    return weight


def _embedding(ids: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rows `ids` of W, [n, K] in `dtype`."""
    weight = torch.empty(ids.shape[0], codes.shape[1] * 8, dtype=dtype, device=codes.device)
    _rows(ids.contiguous(), codes, scales, weight, 0, by_id=True)
    return weight


def _rows(ids, codes, scales, weight, first: int, by_id: bool) -> None:
    if not weight.numel():
        return
    inputs = weight.shape[1]
    with torch.cuda.device_of(codes):
        dequantize_kernel[(weight.shape[0], _ceil(inputs, 1024))](
            ids, codes, scales, weight, first, codes.shape[0], INPUTS=inputs, BY_ID=by_id, BLOCK_K=1024
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


def _ceil(count: int, block: int) -> int:
    return -(-count // block)


_linears_op = operator(
    "triton_linears",
    _linears,
    lambda x, codes, scales: x.new_empty(x.shape[0], sum(matrix.shape[0] for matrix in codes)),
)
_dequantize_op = operator(
    "triton_dequantize",
    _dequantize,
    lambda codes, scales, start, stop, dtype: codes.new_empty(stop - start, codes.shape[1] * 8, dtype=dtype),
)
_embedding_op = operator(
    "triton_embedding",
    _embedding,
    lambda ids, codes, scales, dtype: codes.new_empty(ids.shape[0], codes.shape[1] * 8, dtype=dtype),
)
