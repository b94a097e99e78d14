"""Seconds and memory on one device."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import torch


class Clock:
    """Times calls on one device."""

    def __init__(self, device: torch.device, repeats: int):
        self.device, self.repeats = device, repeats
        cuda = device.type == "cuda"
        self.cache = torch.cuda.get_device_properties(device).L2_cache_size if cuda else 1 << 10

    def copies(self, nbytes: int) -> int:
        """How many copies of something exceed the cache four times."""
        return max(math.ceil(4 * self.cache / nbytes), 1)

    def seconds(self, calls: list[Callable[[], object]]) -> float:
        """Seconds of one call: the median over passes through all of them, in a CUDA graph where there is CUDA."""
        for call in calls:
            call()
        if self.device.type != "cuda":
            return statistics.median(wall_seconds(call) for call in calls)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        graph.replay()
        times = []
        for _ in range(self.repeats):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            graph.replay()  # untimed: while it runs the next one is launched, so that no launch is timed
            start.record()
            graph.replay()
            stop.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(stop) / 1e3 / len(calls))
        return statistics.median(times)

    def copy_bandwidth(self) -> float:
        """GB/s of a device-to-device copy, bytes read plus bytes written. (Not in a graph, which has a slower one.)"""
        count = 1 << (31 if self.device.type == "cuda" else 20)
        source = torch.randint(0, 100, (count,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        seconds = [wall_seconds(lambda: [target.copy_(source) for _ in range(10)]) / 10 for _ in range(5)]
        return 2 * source.nbytes / statistics.median(seconds) / 1e9


def wall_seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of a call, work on the GPU included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
