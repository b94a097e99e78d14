"""Measure every way to run an int4 product on this GPU, and write the winners into int4_gpu_tuning.py.

    python -m benchmarks.tune_gpu --sizes 27b --minutes 9        # adds to or replaces this GPU's table
    python -m benchmarks.tune_gpu --sizes 4b 12b --minutes 9 --out tuned.py

For each shape of the sizes and each number of rows, every candidate is compared with float64 and timed on cold memory,
as in `bench_gpu`. Kernels are compiled before, several at a time, into Triton's cache on disk. The table of this GPU is
kept but for the shapes that are measured; when the minutes are over, the shapes that are finished are written.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.choices import NAMES

TABLES = Path(__file__).resolve().parents[1] / "int4_gpu_tuning.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["27b"], choices=NAMES)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--workers", type=int, default=12, help="processes that compile")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=TABLES)
    args = parser.parse_args()

    from benchmarks.gpu.tuning import tune

    tune(**vars(args))


if __name__ == "__main__":
    main()
