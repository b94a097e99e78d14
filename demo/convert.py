"""From the trained model to this repository's own files, by the way every checkpoint takes.

    python -m demo.convert                     repeats the conversion of the shipped checkpoint and compares every byte
    python -m demo.convert --state FOLDER      ships the model of a training folder: writes the files into --output

Either way: int4 weights as float32 -> a Kaggle-layout Orbax checkpoint (`demo.flax_export`) -> `convert_flax.py`. The
shipped files need no other source than themselves: codes times scales give the trained float32 values back exactly.
"""

import argparse
import sys
from pathlib import Path

from .places import ROOT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, help="training folder whose model is to be shipped")
    parser.add_argument("--output", type=Path, default=ROOT, help="with --state: where to write (default: this folder)")
    options = parser.parse_args()

    from .shipping import repeat, ship

    if options.state:
        ship(options.state, options.output)
        return
    if other := repeat():
        sys.exit(f"these files came out otherwise: {', '.join(other)}")
    print("the conversion reproduces the shipped checkpoint, bit for bit")


if __name__ == "__main__":
    main()
