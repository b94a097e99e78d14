"""How far an engine agrees with our model: the same tokens, divergences, log-probabilities."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tests.engines.drivers.decoding import decode
from tests.engines.drivers.jobs import Job, summary
from tests.engines.helpers.cases import Case
from tests.engines.helpers.environments import environment

DRIVERS = Path(__file__).parents[1] / "drivers"
STEPS = 32
NO_WINDOWS = np.zeros((0, 0), np.int64)


@dataclass(frozen=True)
class Reference:
    """What our model does in float32, greedily.

    Attributes:
        logits: float32 [prompts, STEPS, vocabulary].
        tokens: int64 [prompts, STEPS], their argmax and the continuation that every engine is made to follow.
        logprobs: float32 [prompts, STEPS] of these tokens.
    """

    logits: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray


def reference(case: Case, causal_pictures: bool = False) -> Reference:
    logits = decode(case.ours(torch.float32), case.prompts, STEPS, causal_pictures=causal_pictures).numpy()
    return Reference(logits, **summary(logits, logits.argmax(-1)))


def run(
    engine: str, driver: str, model: Path, case: Case, ours: Reference, folder: Path, *words: str, windows=NO_WINDOWS
) -> dict:
    """Runs a driver on the prompts of a case; as `run_driver`."""
    return run_driver(engine, driver, model, Job(case.prompts, ours.tokens, case.soft_token, windows), folder, *words)


def run_driver(engine: str, driver: str, model: Path, job: Job, folder: Path, *words: str) -> dict[str, np.ndarray]:
    """Runs a driver in its engine's environment, with further words where it takes some; returns its result.

    Raises:
        AssertionError: the driver failed; the message is the end of what it printed.
        Unavailable: the environment cannot be made.
    """
    python = environment(engine)
    result = folder / "result.npz"
    job.write(folder / "job.npz")
    command = [python, DRIVERS / driver, model, folder / "job.npz", result, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{driver} failed:\n{(done.stdout + done.stderr)[-5000:]}"
    with np.load(result) as arrays:
        return dict(arrays)


@dataclass
class Agreement:
    """An engine beside the reference.

    Attributes:
        same: greedy tokens that are equal, of `total`.
        whole: prompts with every token equal, of `prompts`.
        logprob: largest difference of the log-probabilities of the reference's tokens.
        divergences: (prompt, step, our token, the engine's, by how much our logits prefer ours).
    """

    same: int
    total: int
    whole: int
    prompts: int
    logprob: float
    divergences: list[tuple[int, int, int, int, float]] = field(default_factory=list)

    @property
    def widest(self) -> float:
        """The largest preference that the engine did not share."""
        return max((preference for *_, preference in self.divergences), default=0.0)

    def lines(self) -> list[str]:
        """What there is to report."""
        text = f"{self.same} of {self.total} greedy tokens equal, {self.whole} of {self.prompts} prompts whole"
        listed = [
            f"  prompt {p:2}, step {s:2}: ours {o}, its {i}, float32 gap {g:.3f}" for p, s, o, i, g in self.divergences
        ]
        return [f"{text}; log-probabilities within {self.logprob:.4f}; widest gap {self.widest:.3f}", *listed]


def agreement(ours: Reference, result: dict) -> Agreement:
    """Compares a driver's result with the reference."""
    same = result["tokens"] == ours.tokens
    divergences = []
    for prompt, step in np.argwhere(~same).tolist():
        mine, its = int(ours.tokens[prompt, step]), int(result["tokens"][prompt, step])
        logits = ours.logits[prompt, step]
        divergences.append((prompt, step, mine, its, float(logits[mine] - logits[its])))
    apart = float(np.abs(result["logprobs"] - ours.logprobs).max())
    return Agreement(int(same.sum()), same.size, int(same.all(1).sum()), len(same), apart, divergences)


def answered_alike(case: Case, one: np.ndarray, other: np.ndarray) -> int:
    """Prompts whose tokens are equal in both [prompts, STEPS] up to the first end token of `one`."""
    ended = np.isin(one, case.ends)
    answer = np.cumsum(ended, axis=1) - ended == 0
    return int(((one == other) | ~answer).all(1).sum())
