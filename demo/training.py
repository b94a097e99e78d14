"""A training run: two stages by the clock, kept in a folder, and gone on with from there; on a GPU if there is one."""

import csv
import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from . import render
from .data import Batches
from .feeding import Feeder
from .model import TowerHead, answer_loss, build_model, tower_loss
from .optimizers import Optimizers, pick_dtype
from .tokenizer import build_tokenizer
from .weights import model_of_repo, read_state

PAUSE = 10.0  # seconds; a step that takes longer was held up
HEADS = 0.1  # share of the tower's time that its heads have before, when it is trained already
SAY_EVERY = 5.0  # seconds between two lines about the progress


def rate_share(used: float, decay: float) -> float:
    """Share of the full learning rate when `used` (0..1) of the run's time has passed."""
    return max(0.0, min(1.0, used / 0.01, (1.0 - used) / decay))


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


def plain(loss: Callable) -> Callable:
    """`loss` of a batch, which leaves its gradients in the parameters."""

    def backward(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        value = loss(batch)
        value.backward()
        return value.detach()

    return backward


class Replayed:
    """The same as one CUDA graph: a GPU is faster with this model's small kernels than they can be launched.

    Args:
        loss: function of a batch; all batches have the same shapes.
        modules: whose gradients are asked for.
    """

    def __init__(self, loss: Callable, modules: list[torch.nn.Module]):
        self.backward = plain(loss)
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self.graph = None

    def __call__(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.graph is None:
            self._record(batch)
        for name, tensor in batch.items():
            self.batch[name].copy_(tensor)
        self.graph.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient  # an optimizer drops it; a replay writes it anew
        return self.value.clone()

    def _record(self, batch: dict[str, torch.Tensor]) -> None:
        self.batch = {name: tensor.clone() for name, tensor in batch.items()}
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # what libraries set up at first use is no part of a graph
                self.backward(self.batch)
        torch.cuda.current_stream().wait_stream(aside)
        for parameter in self.parameters:
            parameter.grad = None  # so that the graph has gradients of its own
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # another thread moves batches
            self.value = self.backward(self.batch)
        self.gradients = [parameter.grad for parameter in self.parameters]


@dataclass
class Progress:
    """Where a run stands; kept in its state."""

    minutes: float = 0.0
    step: int = 0
    pictures: int = 0


def pick_device(name: str) -> torch.device:
    """Returns the device of a name; "auto" is the GPU, if there is one. Touches no GPU itself."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Run:
    """A training run: the model, its folder, and the loop that both stages share.

    Args:
        folder: where state, tokenizer and logs are kept.
        save_every: minutes between saved states.
        start: converted repository to go on from; None starts from chance.
        device: what computes.
        workers: how many processes draw.
        pictures: pictures in a batch.
    """

    def __init__(
        self, folder: Path, save_every: float, start: Path | None, device: torch.device, workers: int, pictures: int
    ):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.save_every, self.device, self.pictures = folder, save_every, device, pictures
        if not (folder / "tokenizer").exists():
            tokenizer = AutoTokenizer.from_pretrained(start) if start else build_tokenizer()
            tokenizer.save_pretrained(folder / "tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        saved = read_state(folder) if (folder / "state.pt").exists() else None
        self.state = saved["stages"] if saved else {}  # progress and optimizers of each stage
        steps = sum(kept["progress"]["step"] for kept in self.state.values())
        render.warm_up()  # once, before the workers are forked
        self.feeder = Feeder(functools.partial(_stream, tokenizer, pictures, steps), workers, device)
        self.batches = iter(self.feeder)
        self._drawn = 0, time.monotonic()  # pictures, and when there were so many

        torch.manual_seed(0)
        self.model = (model_of_repo(start) if start else build_model()).train()
        # rows are short: plain matrix products beat the fused attention kernel, and compile well
        self.model.set_attn_implementation("eager")
        if device.type == "cuda":  # one layer of each kind, so half a minute; on a CPU the whole step (`stage`)
            for layer in (*self.model.model.language_model.layers, *self.model.model.vision_tower.encoder.layers):
                layer.compile(dynamic=False)
        self.head = TowerHead(self.model.config.vision_config.hidden_size, self.model.config.text_config.hidden_size)
        if saved:
            self.model.load_state_dict(saved["model"])
            self.head.load_state_dict(saved["head"])
        self.model.to(device)
        self.head.to(device)

    def stage(self, name: str, minutes: float, modules: list, loss, rate: float, decay: float) -> None:
        """Trains `modules` until the stage's minutes are used up; goes on where it was stopped.

        Args:
            name: "heads", "tower" or "model".
            minutes: of training; compiling and pauses do not count.
            modules: what learns.
            loss: function of a batch.
            rate: highest learning rate.
            decay: share of the stage over which the rate falls to zero.
        """
        kept = self.state.get(name)
        progress = Progress(**kept["progress"]) if kept else Progress()
        if progress.minutes >= minutes:
            return
        self.model.zero_grad(set_to_none=True)
        self.head.zero_grad(set_to_none=True)
        optimizers = Optimizers(modules, rate)
        if kept:
            optimizers.load_state_dict(kept["optimizers"])
        log = self.folder / f"{name}.csv"
        if not log.exists():
            log.write_text("step,pictures,minutes,loss\n")
        if self.device.type == "cuda":
            backward = Replayed(loss, modules)
        else:
            backward = plain(torch.compile(loss, dynamic=False))
        losses, saved, began, said = [], progress.minutes, None, 0.0
        for batch in self.batches:
            value = backward(batch)
            for module in modules:
                torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizers.step(rate_share(progress.minutes / minutes, decay))
            losses.append(value)
            progress.step, progress.pictures = progress.step + 1, progress.pictures + self.pictures
            over = progress.minutes >= minutes
            if progress.step % 20 == 0 or over:
                mean = torch.stack(losses).mean().item()  # waits for the device
                losses.clear()
                with log.open("a") as lines:
                    lines.write(f"{progress.step},{progress.pictures},{progress.minutes:.3f},{mean:.4f}\n")
                if over or time.monotonic() - said >= SAY_EVERY:
                    said = self._say(name, progress, minutes, mean)
            now = time.monotonic()
            if began is not None:  # the first step compiles, and a gap is a pause: that time is not training
                progress.minutes += min(now - began, PAUSE) / 60
            began = now
            if over or progress.minutes - saved >= self.save_every:
                saved = progress.minutes
                self.state[name] = {"progress": vars(progress).copy(), "optimizers": optimizers.state_dict()}
                parts = {"model": self.model.state_dict(), "head": self.head.state_dict(), "stages": self.state}
                save(self.folder / "state.pt", parts)
            if over:
                break

    def _say(self, name: str, progress: Progress, minutes: float, loss: float) -> float:
        """Prints where a stage stands; returns the time."""
        feeder, now = self.feeder, time.monotonic()
        drawn = feeder.drawn * self.pictures
        rate = (drawn - self._drawn[0]) / max(now - self._drawn[1], 1e-6)
        self._drawn = drawn, now
        print(
            f"{name}: {progress.minutes:.2f} of {minutes:.2f} min, step {progress.step}, loss {loss:.3f}, "
            f"{drawn} pictures drawn ({rate:.0f}/s), {feeder.again * self.pictures} seen again",
            flush=True,
        )
        return now


def _stream(tokenizer, pictures: int, seed: int, worker: int) -> Batches:
    return Batches(tokenizer, pictures, seed, worker)


def train(
    tower: float,
    minutes: float,
    pictures: int,
    rate: float,
    decay: float,
    start: Path | None,
    folder: Path,
    save_every: float,
    device: str,
    workers: int | None,
) -> None:
    """Trains both stages, resuming from `folder` when it holds a state; draws the loss curves."""
    torch.set_num_threads(2)
    on = pick_device(device)
    cores = os.cpu_count() or 2
    workers = workers or (max(1, cores - 1) if on.type == "cuda" else 1)
    run = Run(folder, save_every, start, on, workers, pictures)
    model, head, vision = run.model, run.head, run.model.model.vision_tower
    dtype = pick_dtype(on)
    if start:  # fresh heads would lead a trained tower astray
        run.stage("heads", HEADS * tower, [head], lambda batch: tower_loss(model, head, batch, dtype), rate, 0.5)
    run.stage("tower", tower, [vision, head], lambda batch: tower_loss(model, head, batch, dtype), rate, 0.1)
    run.stage("model", minutes, [model, head], lambda batch: answer_loss(model, head, batch, dtype), rate, decay)
    run.feeder.close()
    plot(folder)
