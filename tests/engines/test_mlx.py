"""MLX, on its CPU backend: the exported repo, text in mlx-lm, pictures in mlx-vlm; and the AWQ repo in mlx-lm.

mlx-vlm lets the soft tokens of a picture see only what is before them, so there it is compared with our model doing the
same, and then with our model as it should be, by answers.
"""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.engines.drivers.decoding import decode
from tests.engines.drivers.jobs import Job, Prompt, summary
from tests.engines.helpers.agreement import (
    NO_WINDOWS,
    STEPS,
    agreement,
    answered_alike,
    reference,
    run,
    run_driver,
)
from tests.engines.helpers.cases import Case
from tests.test_goldens import convert

EXCUSED = 0.25


def test_mlx(case, reference_of, report, tmp_path):
    proper = reference_of(case)
    sees = any(len(prompt.pictures) for prompt in case.prompts)
    ours = reference(case, causal_pictures=True) if sees else proper
    result = run("mlx", "run_mlx.py", case.exported("mlx", tmp_path), case, ours, tmp_path)
    found = agreement(ours, result)
    report(*found.lines())
    if sees:
        alike = answered_alike(case, proper.tokens, result["tokens"])
        report(f"{alike} of {len(case.prompts)} answers are those of our model with its soft tokens seeing each other")
    assert found.widest < EXCUSED


def test_mlx_lm_on_the_awq_repo(case, report, tmp_path):
    text = dataclasses.replace(case, prompts=[prompt for prompt in case.prompts if not len(prompt.pictures)])
    ours = reference(text)
    found = agreement(ours, run("mlx", "run_mlx.py", text.repo, text, ours, tmp_path))
    report(*found.lines())
    assert found.widest < EXCUSED


@pytest.mark.parametrize("kind", ["awq", "mlx"])
def test_mlx_lm_has_the_rope_factor_of_the_large_sizes(kind, goldens, report, tmp_path):
    """In float32, on a model of the 27B's form, whose logits DeepMind's code gave. The text is longer than the window.

    MLX's sums in float32 move log-probabilities by 1e-3, with the head in int4 by 1.5e-2; a missing factor by 0.12.
    """
    repo = convert(goldens / "mm-27b-style", tmp_path, "--dtype", "float32", "--scale-dtype", "float32")
    scaling = json.loads((repo / "config.json").read_text())["text_config"]["rope_scaling"]
    assert scaling == {"rope_type": "linear", "factor": 8.0}
    ids = np.load(goldens / "mm-27b-style" / "expected.npz")["text_hf_input_ids"].reshape(-1)
    case = Case(repo, goldens, [Prompt(ids[:-STEPS], ids[:-STEPS], np.zeros((0, 0, 0, 3), np.uint8))])
    follow = torch.from_numpy(ids[None, -STEPS:]).long()
    ours = summary(decode(case.ours(torch.float32), case.prompts, STEPS, follow).numpy(), follow.numpy())
    model = repo if kind == "awq" else case.exported(kind, tmp_path)
    result = run_driver("mlx", "run_mlx.py", model, Job(case.prompts, follow.numpy(), -1, NO_WINDOWS), tmp_path)
    apart = float(np.abs(result["logprobs"] - ours["logprobs"]).max())
    report(f"{kind}: log-probabilities within {apart:.1e}")
    assert apart < 0.05
