"""Draws the pictures in `examples/` and asks the shipped checkpoint about them: `python -m demo.examples`.

Writes the pictures, `examples/answers.json` (each question with the model's real answer) and `demo/grid.png`, the same
as one picture for the model card.
"""

import argparse
import os
from pathlib import Path

from .places import ROOT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT, help="converted repository to ask")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")

    from .gallery import write

    write(options.model)


if __name__ == "__main__":
    main()
