"""Kaggle-layout checkpoints of any published size, made up, without ever holding a leaf in memory.

    python -m benchmarks.synthetic_checkpoint --size 4b --output DIR [--values random|repeated] [--layers N]

Weights lie on an int4 grid with bfloat16 scales. `random` codes compress about as trained ones do (zstd: 1.5 times);
`repeated` values keep a 27B-shaped checkpoint small on disk.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.choices import NAMES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=str.lower, choices=NAMES, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--values", choices=("random", "repeated"), default="random")
    parser.add_argument("--layers", type=int, help="write fewer layers than the published size has")
    arguments = parser.parse_args()

    from benchmarks.shapes import config_of
    from benchmarks.synthetic_leaves import write_checkpoint

    config = config_of(arguments.size, arguments.layers)
    write_checkpoint(config, arguments.output, arguments.values)
    (arguments.output.parent / f"{arguments.output.name}.json").write_text(config.to_json_string())


if __name__ == "__main__":
    main()
