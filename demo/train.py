"""Trains the demo model: `python -m demo.train`, or, from a checkpoint on, `python -m demo.train --start REPO`.

Two stages: first the vision tower alone learns which words the answers about a picture contain and what is where in it
(`targets.py`), which costs half as much a picture; then the whole model learns to answer, under the int4 grid from the
first step.

The length of a run is given in minutes, not steps, because the machine decides how many steps fit; the rates follow
the share of the minutes that is used up: warm-up, constant, then a straight line to zero over the last `--decay`.
A run that is stopped goes on where it was: its state is saved every few minutes, and its clock counts only training.
Matrices are trained with Muon, everything else with AdamW (`torch.optim`).
"""

import argparse
import csv
import os
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads hurt when the cores are shared

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from . import art
from .convert import model_of_repo
from .data import Batches, PictureBatches
from .model import TowerHead, answer_loss, build_model, tower_loss
from .tokenizer import build_tokenizer

RUN = art.CACHE / "run"
PAUSE = 10.0  # seconds; a step that takes longer was held up


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal (K. Jordan and others, 2024), on stacks of matrices of one shape.

    `torch.optim.Muon` takes one matrix at a time, which on a CPU costs as much as the step it serves; the arithmetic is
    the same: Nesterov momentum, a quintic Newton-Schulz iteration in bfloat16, steps scaled to AdamW's size.
    """

    def __init__(
        self, matrices: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.05
    ):
        by_shape: dict[tuple[int, ...], list[torch.nn.Parameter]] = {}
        for matrix in matrices:
            by_shape.setdefault(tuple(matrix.shape), []).append(matrix)
        groups = [{"params": same} for same in by_shape.values()]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        """Takes one step; every matrix needs a gradient."""
        for group in self.param_groups:
            stack = torch.stack([p.grad for p in group["params"]])
            state = self.state[group["params"][0]]
            momentum = state.setdefault("momentum", torch.zeros_like(stack))
            momentum.lerp_(stack, 1 - group["momentum"])
            update = orthogonal(stack.lerp(momentum, group["momentum"]).bfloat16()).float()
            rate = group["lr"] * 0.2 * max(stack.shape[1:]) ** 0.5
            torch._foreach_mul_(group["params"], 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(group["params"], list(update), alpha=-rate)


def orthogonal(stack: torch.Tensor, rounds: int = 4) -> torch.Tensor:
    """Brings the singular values of each matrix of a stack [N, out, in] near 1."""
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / (x.float().square().sum((1, 2), keepdim=True).sqrt() + 1e-7).to(x.dtype)
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.mT if tall else x


class Optimizers:
    """Muon for the matrices inside the two transformers, AdamW for embeddings, norms, biases and the patches."""

    def __init__(self, modules: list[torch.nn.Module], rate: float):
        matrices, others = [], []
        for module in modules:
            for name, parameter in module.named_parameters():
                inside = "layers." in name or "mm_input_projection" in name
                (matrices if inside and parameter.ndim == 2 else others).append(parameter)
        self.all = [Muon(matrices, lr=rate), torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)]
        self.rate = rate

    def step(self, share: float) -> None:
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = self.rate * share
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def rate_share(used: float, decay: float) -> float:
    """Share of the full learning rate when `used` (0..1) of the run's time has passed."""
    return min(1.0, used / 0.01, (1.0 - used) / decay)


def save(path: Path, state: dict) -> None:
    """Writes a checkpoint so that a crash never leaves half of one."""
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def plot(folder: Path) -> None:
    """Draws the loss curves of both stages into the folder's `loss.png`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    logs = [path for name in ("tower", "model") if (path := folder / f"{name}.csv").exists()]
    figure, panels = pyplot.subplots(1, len(logs), figsize=(5 * len(logs), 4), squeeze=False)
    for panel, log in zip(panels[0], logs, strict=True):
        with log.open() as lines:
            rows = list(csv.DictReader(lines))
        panel.plot([float(r["minutes"]) for r in rows], [float(r["loss"]) for r in rows], linewidth=0.8)
        panel.set(title=log.stem, xlabel="minutes of training", ylabel="loss (nats)", yscale="log")
        panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(folder / "loss.png", dpi=100)


@dataclass
class Progress:
    """Where a run stands; kept in its state."""

    minutes: float = 0.0
    step: int = 0
    pictures: int = 0


class Run:
    """A training run: the model, its folder, and the loop that both stages share."""

    def __init__(self, folder: Path, save_every: float, start: Path | None):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.save_every = folder, save_every
        torch.manual_seed(0)
        if not (folder / "tokenizer").exists():
            tokenizer = AutoTokenizer.from_pretrained(start) if start else build_tokenizer()
            tokenizer.save_pretrained(folder / "tokenizer")
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self.model = (model_of_repo(start) if start else build_model()).train()
        # rows are short: plain matrix products beat the fused attention kernel, and compile well
        self.model.set_attn_implementation("eager")
        self.head = TowerHead(self.model.config.vision_config.hidden_size, self.model.config.text_config.hidden_size)
        self.state = {"tower": None, "model": None}  # progress and optimizers of each stage
        if (folder / "state.pt").exists():
            saved = torch.load(folder / "state.pt", weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.head.load_state_dict(saved["head"])
            self.state = saved["stages"]

    def stage(self, name: str, minutes: float, modules: list, loss, batches, per_batch: int, rate: float, decay: float):
        """Trains `modules` until the stage's minutes are used up; goes on where it was stopped.

        Args:
            name: "tower" or "model".
            minutes: of training; compiling and pauses do not count.
            modules: what learns.
            loss: function of a batch.
            batches: function of a seed, returning a dataset.
            per_batch: pictures in a batch.
            rate: highest learning rate.
            decay: share of the stage over which the rate falls to zero.
        """
        kept = self.state[name]
        progress = Progress(**kept["progress"]) if kept else Progress()
        if progress.minutes >= minutes:
            return
        optimizers = Optimizers(modules, rate)
        if kept:
            optimizers.load_state_dict(kept["optimizers"])
        log = self.folder / f"{name}.csv"
        if not log.exists():
            log.write_text("step,pictures,minutes,loss\n")
        loader = torch.utils.data.DataLoader(batches(progress.step), batch_size=None, num_workers=1, prefetch_factor=8)
        compiled = torch.compile(loss, dynamic=False)
        bar = tqdm(total=minutes, bar_format="{desc} {bar}| {n:.1f}/{total:.0f} min {postfix}", desc=name)
        losses, saved, began = [], progress.minutes, None
        for batch in loader:
            value = compiled(batch)
            value.backward()
            for module in modules:
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizers.step(rate_share(progress.minutes / minutes, decay))
            losses.append(value.item())
            progress.step, progress.pictures = progress.step + 1, progress.pictures + per_batch
            now = time.monotonic()
            if began is not None:  # the first step compiles, and a gap is a pause: that time is not training
                progress.minutes += min(now - began, PAUSE) / 60
            began = now
            over = progress.minutes >= minutes
            if progress.step % 20 == 0 or over:
                mean = sum(losses) / len(losses)
                losses.clear()
                with log.open("a") as lines:
                    lines.write(f"{progress.step},{progress.pictures},{progress.minutes:.3f},{mean:.4f}\n")
                bar.n = min(progress.minutes, minutes)
                bar.set_postfix_str(f"step {progress.step}, {progress.pictures} pictures, loss {mean:.3f}")
            if over or progress.minutes - saved >= self.save_every:
                saved = progress.minutes
                self.state[name] = {"progress": vars(progress).copy(), "optimizers": optimizers.state_dict()}
                parts = {"model": self.model.state_dict(), "head": self.head.state_dict(), "stages": self.state}
                save(self.folder / "state.pt", parts)
            if over:
                break


def train(
    tower: float,
    minutes: float,
    rows: int,
    rate: float,
    decay: float,
    start: Path | None,
    folder: Path,
    save_every: float,
) -> None:
    """Trains both stages, resuming from `folder` when it holds a state; draws the loss curves."""
    torch.set_num_threads(2)
    run = Run(folder, save_every, start)
    model, head, vision = run.model, run.head, run.model.model.vision_tower
    run.stage("tower", tower, [vision, head], lambda batch: tower_loss(model, head, batch),
              lambda seed: PictureBatches(run.tokenizer, 64, seed), 64, rate, 0.1)  # fmt: skip
    run.stage("model", minutes, [model, head], lambda batch: answer_loss(model, head, batch),
              lambda seed: Batches(run.tokenizer, rows, seed), rows * 9 // 8, rate, decay)  # fmt: skip
    plot(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", type=float, default=70, help="minutes for the tower alone")
    parser.add_argument("--minutes", type=float, default=62, help="minutes for the whole model")
    parser.add_argument("--rows", type=int, default=32, help="rows of 96 tokens per batch")
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--decay", type=float, default=0.8, help="share of the run over which the rate falls to zero")
    parser.add_argument("--start", type=Path, help="converted repository of the demo to go on from, instead of chance")
    parser.add_argument("--folder", type=Path, default=RUN, help="where state and log are kept")
    parser.add_argument("--save-every", type=float, default=4, help="minutes between saved states")
    options = parser.parse_args()
    train(**vars(options))


if __name__ == "__main__":
    main()
