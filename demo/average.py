"""Averages runs' weights with those they began with: `python -m demo.average --state RUN [RUN ...] --output AVG`.

A short run with new questions forgets some of what the checkpoint knew; between both lies a model that does better than
either (Wortsman et al., "Robust fine-tuning of zero-shot models", 2022, arXiv 2109.01903). The int4 grid comes last:
`demo.convert --state AVG` rounds the averages to it. What is written is a training folder, as `demo.evaluate` and
`demo.convert` take it; a run cannot be gone on with from there.
"""

import argparse
import shutil
from pathlib import Path

from .places import ROOT, RUN

TOWER = ("model.vision_tower.", "model.multi_modal_projector.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, default=ROOT, help="converted repository that the first run began with")
    parser.add_argument("--state", type=Path, nargs="+", default=[RUN], help="training folders of the runs")
    parser.add_argument("--tower", type=float, nargs="+", default=[0.5], help="each run's share in tower and projector")
    parser.add_argument("--text", type=float, nargs="+", default=[0.8], help="each run's share in all else")
    parser.add_argument("--output", type=Path, required=True, help="folder to create")
    options = parser.parse_args()
    average(options.start, options.state, options.tower, options.text, options.output)


def average(start: Path, states: list[Path], tower: list[float], text: list[float], output: Path) -> None:
    """Writes each run's share of its weights, in float32, and of those of `start` what is left.

    Args:
        start: converted repository of the demo.
        states: training folders; tokenizer, log and loss curve are copied from the last.
        tower, text: a share for each run, 0 to 1, together at most 1.
        output: folder to create.

    Raises:
        ValueError: a run has no share, or one below 0, or together they are more than 1.
        FileExistsError: `output` is there already.
    """
    import torch

    from .weights import model_of_repo, read_state

    for name, shares in (("tower", tower), ("text", text)):
        told = f"--{name} {' '.join(map(str, shares))}"
        if len(shares) != len(states):
            raise ValueError(f"{told}: one share for each of {len(states)} runs")
        if min(shares) < 0 or sum(shares) > 1 + 1e-6:
            raise ValueError(f"{told}: a share is between 0 and 1, and all of them together at most 1")
    saved = [read_state(state) for state in states]
    weights = saved[-1]["model"]
    for name, before in model_of_repo(start).state_dict().items():  # the head too, which is the embedding's tensor
        if before.is_floating_point():
            shares = tower if name.startswith(TOWER) else text
            changes = [share * (run["model"][name] - before) for share, run in zip(shares, saved, strict=True)]
            weights[name] = before + torch.stack(changes).sum(0)
    output.mkdir(parents=True)
    shutil.copytree(states[-1] / "tokenizer", output / "tokenizer")
    for drawing in [*states[-1].glob("*.csv"), *states[-1].glob("loss.png")]:
        shutil.copyfile(drawing, output / drawing.name)
    torch.save({"model": weights, "head": saved[-1]["head"], "stages": {}}, output / "state.pt")


if __name__ == "__main__":
    main()
