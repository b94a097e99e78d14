# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""How to run an int4 product on a GPU: measured tables as data, and a rule where nothing was measured.

What this file offers:
    OneRow, ManyRows, Dequantize    the three kinds of product, with their block sizes
    choose                          the plan for a product of some size on some GPU
    TABLES                          what `benchmarks/tune_gpu.py` measured; it rewrites this file from that line on
"""

import math
from typing import NamedTuple

from .int4_codes import GROUP_SIZE


class OneRow(NamedTuple):
    """`one_row_kernel`. block_g counts groups of 32 inputs: 32 for each warp. num_stages: 1 loads when it needs."""

    block_n: int
    block_g: int
    num_warps: int
    num_stages: int


class ManyRows(NamedTuple):
    """`many_rows_kernel`. split_k: parts of the inputs; permuted: the activations are reordered before."""

    block_n: int
    block_m: int
    split_k: int
    num_warps: int
    num_stages: int
    permuted: bool


class Dequantize(NamedTuple):
    """bfloat16 weights, about `weights` of them at a time, multiplied by cuBLAS."""

    weights: int


Plan = OneRow | ManyRows | Dequantize


def by_rule(rows: int, outputs: int, inputs: int, capability: tuple[int, int], processors: int) -> Plan:
    """A plan that runs on every GPU from Ampere on (at most 96 KB of shared memory); reasoned, not measured."""
    if rows == 1:  # the fewer the outputs, the smaller the blocks, so that all processors wait for memory at once
        block_n = 8 if outputs >= 64 * processors else 4 if outputs >= 32 * processors else 2
        warps = 1
        while warps < 4 and outputs // block_n * warps < 16 * processors and inputs >= 128 * GROUP_SIZE * warps:
            warps *= 2
        return OneRow(block_n, block_g=32 * warps, num_warps=warps, num_stages=3)
    if rows > 512:
        return Dequantize(weights=1 << 26)
    block_m = min(max(16, 1 << (rows - 1).bit_length()), 64)
    programs = math.ceil(outputs / 64) * math.ceil(rows / block_m)
    split_k = min(max(2 * processors // programs, 1), max(inputs // 256, 1), 8)
    # two warps are too few for the warp-group products of Hopper, which take more instructions for 16 rows, and of
    # Blackwell's large GPUs, which take up to three times as many for any number, and most of the tensor memory
    few = block_m == 16
    warps = 2 if few or capability[0] in (10, 11) else 4
    return ManyRows(64, block_m, split_k, warps, num_stages=3 if few else 2, permuted=rows > 16)


def choose(rows: int, outputs: int, inputs: int, capability: tuple[int, int], processors: int) -> Plan:
    """The plan to multiply `rows` rows of activations by a matrix [outputs, inputs].

    Args:
        rows: at least 1.
        outputs: N.
        inputs: K.
        capability: of the GPU, as (9, 0).
        processors: its number of multiprocessors.

    Returns:
        The measured plan, that of the most similar shape if this one was not measured, or `by_rule` on a GPU without a
        table. A table's plans do not depend on N and K being multiples of anything: all kernels take tails.
    """
    table = TABLES.get(capability)
    if not table:
        return by_rule(rows, outputs, inputs, capability, processors)
    nearest = min(table, key=lambda shape: abs(math.log(outputs / shape[0])) + abs(math.log(inputs / shape[1])))
    return next(plan for up_to, plan in table[nearest] if rows <= up_to)


# Capability -> shape (N, K) -> steps (rows up to which, how), ascending; the last step is for any number of rows.
TABLES: dict[tuple[int, int], dict[tuple[int, int], list[tuple[float, Plan]]]] = {
    # NVIDIA H200, torch 2.11.0+cu130
    (9, 0): {
        (2048, 5376): [
            (1, OneRow(block_n=8, block_g=64, num_warps=2, num_stages=3)),
            (4, ManyRows(block_n=32, block_m=16, split_k=4, num_warps=2, num_stages=3, permuted=False)),
            (16, ManyRows(block_n=64, block_m=16, split_k=4, num_warps=4, num_stages=3, permuted=False)),
            (32, ManyRows(block_n=64, block_m=32, split_k=4, num_warps=4, num_stages=3, permuted=True)),
            (64, ManyRows(block_n=64, block_m=64, split_k=4, num_warps=4, num_stages=3, permuted=True)),
            (512, Dequantize(weights=134217728)),
            (math.inf, Dequantize(weights=33554432)),
        ],
        (4096, 5376): [
            (1, OneRow(block_n=8, block_g=64, num_warps=2, num_stages=3)),
            (2, ManyRows(block_n=32, block_m=16, split_k=2, num_warps=2, num_stages=3, permuted=False)),
            (16, ManyRows(block_n=64, block_m=16, split_k=4, num_warps=4, num_stages=3, permuted=False)),
            (32, ManyRows(block_n=64, block_m=32, split_k=4, num_warps=4, num_stages=3, permuted=True)),
            (64, ManyRows(block_n=64, block_m=64, split_k=2, num_warps=4, num_stages=3, permuted=True)),
            (128, ManyRows(block_n=64, block_m=128, split_k=2, num_warps=4, num_stages=3, permuted=True)),
            (256, Dequantize(weights=134217728)),
            (math.inf, Dequantize(weights=33554432)),
        ],
        (5376, 4096): [
            (1, OneRow(block_n=8, block_g=64, num_warps=2, num_stages=1)),
            (16, ManyRows(block_n=64, block_m=16, split_k=4, num_warps=4, num_stages=3, permuted=False)),
            (32, ManyRows(block_n=64, block_m=32, split_k=4, num_warps=4, num_stages=2, permuted=True)),
            (64, ManyRows(block_n=64, block_m=64, split_k=4, num_warps=4, num_stages=2, permuted=True)),
            (128, ManyRows(block_n=64, block_m=64, split_k=2, num_warps=4, num_stages=2, permuted=True)),
            (512, Dequantize(weights=134217728)),
            (math.inf, Dequantize(weights=33554432)),
        ],
        (5376, 21504): [
            (1, OneRow(block_n=16, block_g=128, num_warps=4, num_stages=3)),
            (16, ManyRows(block_n=64, block_m=16, split_k=4, num_warps=4, num_stages=3, permuted=False)),
            (32, ManyRows(block_n=64, block_m=32, split_k=4, num_warps=4, num_stages=3, permuted=True)),
            (64, ManyRows(block_n=64, block_m=64, split_k=4, num_warps=4, num_stages=2, permuted=True)),
            (128, ManyRows(block_n=64, block_m=64, split_k=2, num_warps=4, num_stages=2, permuted=True)),
            (math.inf, Dequantize(weights=134217728)),
        ],
        (8192, 5376): [
            (1, OneRow(block_n=16, block_g=32, num_warps=1, num_stages=3)),
            (8, ManyRows(block_n=64, block_m=16, split_k=2, num_warps=4, num_stages=3, permuted=False)),
            (16, ManyRows(block_n=128, block_m=16, split_k=4, num_warps=4, num_stages=3, permuted=False)),
            (32, ManyRows(block_n=64, block_m=32, split_k=2, num_warps=4, num_stages=3, permuted=True)),
            (64, ManyRows(block_n=64, block_m=64, split_k=1, num_warps=4, num_stages=3, permuted=True)),
            (math.inf, Dequantize(weights=33554432)),
        ],
        (21504, 5376): [
            (1, OneRow(block_n=16, block_g=32, num_warps=1, num_stages=3)),
            (16, ManyRows(block_n=64, block_m=16, split_k=1, num_warps=4, num_stages=3, permuted=False)),
            (32, ManyRows(block_n=64, block_m=32, split_k=1, num_warps=4, num_stages=3, permuted=True)),
            (128, ManyRows(block_n=64, block_m=64, split_k=1, num_warps=4, num_stages=2, permuted=True)),
            (512, Dequantize(weights=134217728)),
            (math.inf, Dequantize(weights=33554432)),
        ],
        (43008, 5376): [
            (1, OneRow(block_n=16, block_g=32, num_warps=1, num_stages=3)),
            (8, ManyRows(block_n=64, block_m=16, split_k=1, num_warps=4, num_stages=3, permuted=False)),
            (16, ManyRows(block_n=128, block_m=16, split_k=1, num_warps=4, num_stages=3, permuted=False)),
            (32, ManyRows(block_n=64, block_m=32, split_k=1, num_warps=4, num_stages=3, permuted=True)),
            (64, ManyRows(block_n=64, block_m=64, split_k=1, num_warps=4, num_stages=2, permuted=True)),
            (math.inf, Dequantize(weights=33554432)),
        ],
        (262208, 5376): [
            (1, OneRow(block_n=16, block_g=32, num_warps=1, num_stages=3)),
            (8, ManyRows(block_n=64, block_m=16, split_k=1, num_warps=4, num_stages=3, permuted=False)),
            (16, ManyRows(block_n=128, block_m=16, split_k=1, num_warps=4, num_stages=3, permuted=False)),
            (32, ManyRows(block_n=128, block_m=32, split_k=1, num_warps=4, num_stages=3, permuted=True)),
            (64, ManyRows(block_n=128, block_m=64, split_k=1, num_warps=4, num_stages=2, permuted=True)),
            (math.inf, Dequantize(weights=33554432)),
        ],
    },
}
