"""A training run: two stages by the clock, kept in a folder, and gone on with from there."""

import csv
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoTokenizer

from .data import Batches, PictureBatches
from .model import TowerHead, answer_loss, build_model, tower_loss
from .optimizers import Optimizers
from .tokenizer import build_tokenizer
from .weights import model_of_repo

PAUSE = 10.0  # seconds; a step that takes longer was held up


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
