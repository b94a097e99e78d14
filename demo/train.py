"""Trains the demo model: `python -m demo.train`, or, from a checkpoint on, `python -m demo.train --start REPO`.

Two stages: first the vision tower alone learns which words the answers about a picture contain and what is where in it
(`targets.py`), which costs half as much a picture; then the whole model learns to answer, under the int4 grid from the
first step.

The length of a run is given in minutes, not steps, because the machine decides how many steps fit; the rates follow
the share of the minutes that is used up: warm-up, constant, then a straight line to zero over the last `--decay`.
A run that is stopped goes on where it was: its state is saved every few minutes, and its clock counts only training.
With a GPU the batches are drawn by all cores and seen again while no new one has come, and the run depends on the
machine; on a CPU the same command gives the same batches in the same order.
Matrices are trained with Muon, everything else with AdamW (`torch.optim`).
"""

import argparse
import os
from pathlib import Path

from .places import RUN


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", type=float, default=70, help="minutes for the tower alone")
    parser.add_argument("--minutes", type=float, default=62, help="minutes for the whole model")
    parser.add_argument("--pictures", type=int, default=48, help="pictures per batch")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--decay", type=float, default=0.8, help="share of the run over which the rate falls to zero")
    parser.add_argument("--start", type=Path, help="converted repository of the demo to go on from, instead of chance")
    parser.add_argument("--folder", type=Path, default=RUN, help="where state and log are kept")
    parser.add_argument("--save-every", type=float, default=4, help="minutes between saved states")
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto: the GPU if there is one")
    parser.add_argument("--workers", type=int, help="processes that draw (default: 1, with a GPU one a core less one)")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads hurt when the cores are shared

    from .training import train

    train(**vars(options))


if __name__ == "__main__":
    main()
