"""What goes to an engine and comes back, as .npz files: the one module that both sides import (numpy only).

A driver `run_ENGINE.py` is started inside its engine's environment as

    python run_ENGINE.py MODEL JOB RESULT

where MODEL is a folder or file that the engine loads. For every prompt it decodes as many tokens as the job's
continuations are long, feeding the token of the continuation after each step, whatever it chose itself. The result:

    tokens      int64 [prompts, steps]      what the engine chose, greedily
    logprobs    float32 [prompts, steps]    its log-probability of the continuation's token
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        ids: [n] token ids as transformers' processor writes them, soft tokens in place.
        compact: [m] the same with one begin-of-image token per picture instead.
        pictures: uint8 [p, side, side, 3] at the model's own size, so that no engine resizes them.
    """

    ids: np.ndarray
    compact: np.ndarray
    pictures: np.ndarray


@dataclass(frozen=True)
class Job:
    """What an engine is to do.

    Attributes:
        prompts: the prompts.
        continuations: int64 [prompts, steps], the tokens after each; soft tokens only where the driver takes them.
        soft_token: the id that stands for a soft token in `Prompt.ids`; -1 if the model does not see.
        windows: int64 [windows, tokens], text whose likelihood is asked for; often none.
    """

    prompts: list[Prompt]
    continuations: np.ndarray
    soft_token: int
    windows: np.ndarray

    def write(self, path: Path) -> None:
        arrays = {
            f"{name}_{n}": getattr(p, name) for n, p in enumerate(self.prompts) for name in Prompt.__annotations__
        }
        np.savez(path, continuations=self.continuations, soft_token=self.soft_token, windows=self.windows, **arrays)

    @classmethod
    def read(cls, path: str) -> Job:
        job = np.load(path)
        prompts = range(len(job["continuations"]))
        prompts = [Prompt(*(job[f"{name}_{n}"] for name in Prompt.__annotations__)) for n in prompts]
        return cls(prompts, job["continuations"], int(job["soft_token"]), job["windows"])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis, in float32."""
    shifted = logits.astype(np.float32) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def summary(logits: np.ndarray, continuations: np.ndarray) -> dict[str, np.ndarray]:
    """The result for logits [prompts, steps, vocabulary]."""
    rows = zip(logits, continuations[..., None], strict=True)  # one prompt at a time: a vocabulary is large
    logprobs = np.stack([np.take_along_axis(log_softmax(row), tokens, -1)[:, 0] for row, tokens in rows])
    return {"tokens": logits.argmax(-1), "logprobs": logprobs}
