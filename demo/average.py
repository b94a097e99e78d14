"""Averages a run's weights with those it began with: `python -m demo.average --state RUN --output AVG`.

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
    parser.add_argument("--start", type=Path, default=ROOT, help="converted repository that the run began with")
    parser.add_argument("--state", type=Path, default=RUN, help="training folder of the run")
    parser.add_argument("--tower", type=float, default=0.5, help="the run's share in the tower and its projector")
    parser.add_argument("--text", type=float, default=0.8, help="the run's share in all else")
    parser.add_argument("--output", type=Path, required=True, help="folder to create")
    options = parser.parse_args()
    average(**vars(options))


def average(start: Path, state: Path, tower: float, text: float, output: Path) -> None:
    """Writes (1 - share) * start + share * run, in float32, and copies the run's tokenizer, log and loss curve.

    Args:
        start: converted repository of the demo.
        state: training folder.
        tower, text: the run's shares, 0 to 1.
        output: folder to create.

    Raises:
        ValueError: a share is not between 0 and 1.
        FileExistsError: `output` is there already.
    """
    import torch

    from .weights import model_of_repo

    for name, share in (("tower", tower), ("text", text)):
        if not 0 <= share <= 1:
            raise ValueError(f"--{name} {share}: a share is between 0 and 1")
    saved = torch.load(state / "state.pt", weights_only=True)
    weights = saved["model"]
    for name, before in model_of_repo(start).state_dict().items():  # the head too, which is the embedding's tensor
        if before.is_floating_point():
            weights[name] = torch.lerp(before, weights[name].float(), tower if name.startswith(TOWER) else text)
    output.mkdir(parents=True)
    shutil.copytree(state / "tokenizer", output / "tokenizer")
    for drawing in [*state.glob("*.csv"), *state.glob("loss.png")]:
        shutil.copyfile(drawing, output / drawing.name)
    torch.save({"model": weights, "head": saved["head"], "stages": {}}, output / "state.pt")


if __name__ == "__main__":
    main()
