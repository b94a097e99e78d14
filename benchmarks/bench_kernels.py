"""Every linear shape of every published size: our int4 kernels against a dense bfloat16 layer and the machine's limits.

    python -m benchmarks.bench_kernels --sizes 270m 1b 4b --rows 1 2 4 8 16 32 128 512

For few rows the limit is reading the int4 bytes once, so GB/s stand beside the measured read bandwidth; for many it is
arithmetic, so GFLOP/s stand beside the rate of a large GEMM. On a CPU without bfloat16 arithmetic the dense layer and
that GEMM are torch's float32 ones, since its bfloat16 is no contestant there. Times are the best of several, all
alternating. To read from memory and not from a cache, each kernel walks through copies of its matrix that fill `--walk`
MB.
"""

from __future__ import annotations

import argparse

from benchmarks.choices import NAMES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64, 128, 512])
    parser.add_argument("--threads", type=int, help="default: as many as torch takes")
    parser.add_argument("--walk", type=int, default=600, help="MB of int4 weights to walk through")
    parser.add_argument("--scale-dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    args = parser.parse_args()

    from benchmarks.cpu_products import measure

    measure(args.sizes, args.rows, args.threads, args.walk, args.scale_dtype)


if __name__ == "__main__":
    main()
