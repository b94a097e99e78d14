"""Memory around a measurement; imports nothing that a peer's environment may lack."""

from __future__ import annotations

import mmap
import time
from pathlib import Path


def memory() -> dict[str, float]:
    """Private memory now, and the peak of all since the last `touch_memory`, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {line.partition(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return {"rss_anon": int(found["RssAnon"]) / 1e3, "peak_rss": int(found["VmHWM"]) / 1e3}


def available_memory() -> int:
    """Bytes that can be had without swapping (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def weight_files(path: str) -> list[Path]:
    """The file itself, or a repo's safetensors files."""
    return [Path(path)] if Path(path).is_file() else list(Path(path).glob("*.safetensors"))


def read_into_page_cache(path: str) -> None:
    """Reads a model's weights once, so that loading measures the loader and not the disk."""
    for file in weight_files(path):
        with file.open("rb") as open_file:
            while open_file.read(1 << 24):
                pass


def fresh_memory(size: int) -> mmap.mmap:
    """So many bytes of private memory that nothing has touched yet, on pages of 2 MB where the system gives them."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def touch_memory(path: str) -> float:
    """Touches as much memory as the weights take on disk, and gives it back; GB/s."""
    memory = fresh_memory(sum(file.stat().st_size for file in weight_files(path)))
    start = time.perf_counter()
    for place in range(0, len(memory), mmap.PAGESIZE):
        memory[place] = 1
    speed = len(memory) / (time.perf_counter() - start) / 1e9
    memory.close()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here (proc(5))
    return speed
