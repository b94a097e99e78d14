"""What this machine's CPU can do, by torch: the yardsticks beside the benchmarks' numbers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.memory import fresh_memory


def best_seconds(function: Callable[[], object], repeats: int = 7) -> float:
    """Wall-clock seconds of the fastest of several calls, after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def read_bandwidth(megabytes: int = 1024) -> float:
    """GB/s at which torch's threads multiply a float32 matrix of so many MB by a vector: no faster reader was found."""
    matrix = torch.frombuffer(fresh_memory(megabytes << 20), dtype=torch.float32).fill_(1).view(-1, 4096)
    vector = torch.ones(4096)
    return matrix.nbytes / best_seconds(lambda: matrix @ vector) / 1e9


def gemm_rate() -> tuple[str, float]:
    """The dtype in which torch's GEMM is faster here, and GFLOP/s of a large one."""
    a, b = (torch.randn(*shape, dtype=dense_dtype()) for shape in ((512, 4096), (4096, 4096)))
    return str(a.dtype).removeprefix("torch."), 2 * 512 * 4096**2 / best_seconds(lambda: a @ b) / 1e9


def dense_dtype() -> torch.dtype:
    """bfloat16 where the CPU has arithmetic for it, else float32."""
    return torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
