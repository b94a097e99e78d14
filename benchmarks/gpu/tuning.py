"""Every way to run an int4 product on this GPU: checked, timed, and the fastest written into int4_gpu_tuning.py."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import math
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from gemma3_int4 import int4_gpu_triton, int4_gpu_tuning
from gemma3_int4.int4_gpu_fused import FEW_ROWS
from gemma3_int4.int4_gpu_tuning import Dequantize, ManyRows, OneRow, Plan
from triton.runtime.errors import OutOfResources

from benchmarks.choices import ROWS
from benchmarks.gpu.checks import poisoned, worst_errors
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.products import products, random_matrix, text_config

Steps = list[tuple[float, Plan]]
Table = dict[tuple[int, int], Steps]
DECLARATION = "TABLES: dict[tuple[int, int], dict[tuple[int, int], list[tuple[float, Plan]]]] = "


def candidates(rows: int, inputs: int) -> Iterator[Plan]:
    """Plans that could be the fastest for this number of rows."""
    if rows == 1:
        for block_n, warps, stages in itertools.product((2, 4, 8, 16), (1, 2, 4), (1, 3)):
            yield OneRow(block_n, 32 * warps, warps, stages)
        return
    if rows <= 16:
        blocks = ((32, 2), (64, 2), (64, 4), (128, 4))
        for (block_n, warps), split_k, stages in itertools.product(blocks, (1, 2, 4, 8), (3, 5)):
            if split_k <= inputs // 256:
                yield ManyRows(block_n, 16, split_k, warps, stages, False)
        return
    if rows <= 1024:
        block_m = 32 if rows <= 32 else 64 if rows <= 64 else 128
        splits = (1, 2, 4) if rows <= 128 else (1,)
        blocks = {(n, m) for n in (64, 128) for m in (block_m, min(block_m, 64))}
        ways = [(n, m, 8 if n * m > 128 * 64 else 4) for n, m in blocks] + [(64, min(block_m, 64), 2)]
        for (block_n, m, warps), split_k, stages in itertools.product(ways, splits, (2, 3)):
            if split_k <= inputs // 256:
                yield ManyRows(block_n, m, split_k, warps, stages, True)
    if rows >= 64:
        for weights in (1 << 23, 1 << 25, 1 << 27):
            yield Dequantize(weights)


def tune_shape(shape: tuple[int, int], most_rows: float, clock: Clock) -> Steps:
    """Steps of the table for one shape: measured at each of ROWS up to `most_rows`, equal neighbors joined."""
    codes, scales = random_matrix(*shape, clock.device)
    tensors = int4_gpu_triton.Triton.pack(codes, scales)
    nbytes = sum(tensor.nbytes for tensor in tensors.values())
    copies = [{name: tensor.clone() for name, tensor in tensors.items()} for _ in range(clock.copies(nbytes))]
    steps: Steps = []
    for rows in (m for m in ROWS if m <= most_rows):
        x = torch.randn(rows, shape[1], device=clock.device).bfloat16()
        seconds = {}
        for plan in candidates(rows, shape[1]):
            if runs(plan, x, tensors, codes, scales):
                seconds[plan] = clock.seconds([lambda t=t, p=plan, x=x: multiply(p, x, t) for t in copies])
        best = min(seconds, key=seconds.get)
        took = seconds[best]
        print(f"{shape} rows {rows}: {took * 1e6:.1f} us, {nbytes / took / 1e9:.0f} GB/s, {best}", flush=True)
        if steps and steps[-1][1] == best:
            steps.pop()
        steps.append((rows, best))
    if not isinstance(steps[-1][1], Dequantize):
        return [*steps, (math.inf, Dequantize(1 << 25))]
    return [*steps[:-1], (math.inf, steps[-1][1])]


def multiply(plan: Plan, x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return int4_gpu_triton.run_plan(plan, x, *([tensor] for tensor in tensors.values()))


def runs(plan: Plan, x: torch.Tensor, tensors: dict, codes: torch.Tensor, scales: torch.Tensor) -> bool:
    """Whether this GPU has the shared memory for a way.

    Raises:
        RuntimeError: the way runs, and its result is wrong.
    """
    try:
        y = poisoned(lambda: multiply(plan, x, tensors))
    except OutOfResources:
        return False
    relative, ulp = worst_errors(y, x, codes, scales)
    if not (relative < 1e-2 and ulp <= 2):
        raise RuntimeError(f"{plan} is wrong at {tuple(x.shape)}: relative error {relative:.2e}, worst {ulp:.1f} ulp.")
    return True


def shapes(sizes: list[str]) -> dict[tuple[int, int], float]:
    """(N, K) of every product, and for how many rows at most it is launched.

    Matrices that share an input are one product for few rows, and products of their own beyond and for adapters. Of
    the head, `generate` wants the last token's logits only.
    """
    found: dict[tuple[int, int], float] = {}
    for name in sizes:
        config = text_config(name)
        for outputs, inputs, _ in products(config).values():
            if len(outputs) > 1 or outputs == (config.vocab_size,):
                found.setdefault((sum(outputs), inputs), FEW_ROWS)
            if outputs != (config.vocab_size,):
                found |= {(count, inputs): math.inf for count in outputs}
    return found


def compile_all(sizes: list[str], workers: int) -> None:
    """Runs every candidate once on a small matrix, in processes of their own: the kernels stay in Triton's cache."""
    inputs = {inputs for _, inputs in shapes(sizes)}
    jobs = sorted({(plan, k) for k in inputs for m in ROWS for plan in candidates(m, k)}, key=str)
    with concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(compile_one, *zip(*jobs, strict=True)))


def compile_one(plan: Plan, inputs: int) -> None:
    device = torch.device("cuda")
    tensors = int4_gpu_triton.Triton.pack(*random_matrix(256, inputs, device))
    # 16 rows and 256 outputs: Triton compiles anew for numbers that 16 does not divide, and real shapes are such
    x = torch.zeros(1 if isinstance(plan, OneRow) else 16, inputs, dtype=torch.bfloat16, device=device)
    with contextlib.suppress(OutOfResources):
        multiply(plan, x, tensors)


def write_table(path: Path, capability: tuple[int, int], table: Table, name: str) -> None:
    """Writes int4_gpu_tuning.py with this GPU's table: what stands before the tables stays."""
    tables = int4_gpu_tuning.TABLES | {capability: int4_gpu_tuning.TABLES.get(capability, {}) | table}
    lines = [DECLARATION + "{"]
    for gpu, shapes_of_gpu in sorted(tables.items()):
        lines += [f"    # {name}, torch {torch.__version__}"] if gpu == capability else []
        lines += [f"    {gpu}: {{"]
        for shape, steps in sorted(shapes_of_gpu.items()):
            lines += [f"        {shape}: ["]
            lines += [f"            ({'math.inf' if up_to == math.inf else up_to}, {plan})," for up_to, plan in steps]
            lines += ["        ],"]
        lines += ["    },"]
    rules = Path(int4_gpu_tuning.__file__).read_text().split(DECLARATION)[0]
    path.write_text(rules + "\n".join([*lines, "}"]) + "\n")


def tune(sizes: list[str], minutes: float, workers: int, repeats: int, out: Path) -> None:
    """Measures the shapes of these sizes, one after the other, and writes after each what is known.

    Args:
        sizes: Names of published sizes.
        minutes: No shape is begun that would probably end after them.
        workers: Processes that compile.
        repeats: Timings of one plan.
        out: The module to write.

    Raises:
        SystemExit: There is no GPU.
    """
    if not torch.cuda.is_available():
        raise SystemExit("tune_gpu: no CUDA device here; it measures kernels on the GPU that its table is for")
    end = time.monotonic() + minutes * 60
    compile_all(sizes, workers)
    properties = torch.cuda.get_device_properties(0)
    capability = (properties.major, properties.minor)
    clock = Clock(torch.device("cuda"), repeats)
    table: Table = {}
    slowest = 0.0
    for shape, most_rows in shapes(sizes).items():
        start = time.monotonic()
        if start + slowest > end:
            print(f"out of time: {shape} and what follows are not measured")
            break
        table[shape] = tune_shape(shape, most_rows, clock)
        slowest = max(slowest, time.monotonic() - start)
        write_table(out, capability, table, properties.name)
