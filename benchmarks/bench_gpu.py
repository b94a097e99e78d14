"""The GPU backend against bfloat16 cuBLAS, PyTorch's own int4 operator, gemlite and the memory's speed, in one run.

    python -m benchmarks.bench_gpu kernels --sizes 27b                  # every shape, 1 to 4096 rows
    python -m benchmarks.bench_gpu decode --sizes 27b --batch 1 16      # tokens/s of a whole model, compiled and eager
    python -m benchmarks.bench_gpu prefill --sizes 27b                  # against the same model in bfloat16
    python -m benchmarks.bench_gpu all --tiny --device cpu              # does the script run? (no Triton, no meaning)

Weights are random, in the published shapes of the language model, made on the device; nothing is written but `--out`,
one JSON line a result. gemlite takes part where it can be imported.

How a kernel is timed: a CUDA graph calls it on copies of its matrix that together are four times the L2 cache, so that
every call reads cold memory, back to back as in decoding; the median of the replays counts. GB/s are those of the int4
codes and scales, beside a device-to-device copy (bytes read plus bytes written) of the same run. Every result of ours
is compared with float64 before, computed into memory filled with NaN.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from benchmarks.choices import NAMES, PEERS, ROWS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["kernels", "decode", "prefill", "all"])
    parser.add_argument("--sizes", nargs="+", default=["27b"], choices=NAMES)
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS)
    parser.add_argument("--models", nargs="+", choices=["int4", "bf16"], default=["int4", "bf16"])
    parser.add_argument("--modes", nargs="+", choices=["compiled", "eager"], default=["compiled", "eager"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--context", nargs="+", type=int, default=[1024])
    parser.add_argument("--prefill", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a decoding run")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--budget-gb", type=float, help="fail beyond this much device memory")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers, few rows and tokens")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.tiny:
        args.sizes, args.rows, args.context, args.prefill, args.tokens = ["tiny"], [1, 5], [20], [20], 4
    os.environ.setdefault("GEMMA3_INT4_BACKEND", "triton")

    import torch

    from benchmarks.gpu.clock import Clock
    from benchmarks.gpu.generation import bench_decode, bench_prefill
    from benchmarks.gpu.kernels import bench_kernels
    from benchmarks.report import Report

    device = torch.device(args.device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        print(f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}")
        if args.budget_gb:
            torch.cuda.set_per_process_memory_fraction(args.budget_gb * 1e9 / properties.total_memory)
    torch.manual_seed(time.time_ns() % 2**31)  # fresh inputs, every run
    clock, report = Clock(device, args.repeats), Report(args.out)
    parts = {"kernels": bench_kernels, "prefill": bench_prefill, "decode": bench_decode}
    for part, run in parts.items():
        if args.part in (part, "all"):
            run(args, clock, report)


if __name__ == "__main__":
    main()
