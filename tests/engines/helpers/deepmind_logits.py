"""The golden cases' logits from DeepMind's own `gemma` once more."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from tests.engines.drivers.jobs import Job, Prompt
from tests.engines.helpers.agreement import NO_WINDOWS, run_driver
from tests.goldens import build


def golden_logits(case: Path, folder: Path) -> dict[str, np.ndarray]:
    """What DeepMind's code computes for a case.

    Args:
        case: a folder as `tests.goldens.build.build` makes it.
        folder: scratch.

    Returns:
        float32 [length, rows of the embedding] for `text` and, where there is one, `mm`.
    """
    config = json.loads((case / "case.json").read_text())["transformers_config"]
    (case / "config.json").write_text(json.dumps(config))
    expected = np.load(case / "expected.npz")
    found = {}
    for kind in ("text", "mm"):
        if f"{kind}_logits" not in expected:
            continue
        ids = expected[f"{kind}_hf_input_ids"].astype(np.int64)
        pictures = expected["mm_images"] if kind == "mm" else np.zeros((0, 0, 0, 3), np.uint8)
        # The first token is the prompt, so that there are logits for every position; one more token ends the sequence.
        continuation = np.append(ids[1:], 1)[None]
        job = Job([Prompt(ids[:1], ids[:1], pictures)], continuation, config.get("image_token_index", -1), NO_WINDOWS)
        found[kind] = run_driver("gemma-flax", "run_gemma_flax.py", case, job, folder)["logits"][0]
    return found


def renew() -> None:
    """Writes every tests/goldens/*/expected.npz anew, the inputs as they are."""
    for name in build.CASES:
        with tempfile.TemporaryDirectory() as folder:
            logits = golden_logits(build.build(name, Path(folder)), Path(folder))
        file = build.FOLDER / name / "expected.npz"
        arrays = dict(np.load(file))
        for kind, found in logits.items():
            largest = np.sort(found, axis=-1)[:, -2:]
            arrays[f"{kind}_logits"] = found[arrays[f"{kind}_logit_positions"]]
            arrays[f"{kind}_argmax"] = found.argmax(-1).astype(np.int32)
            arrays[f"{kind}_argmax_margin"] = largest[:, 1] - largest[:, 0]
        np.savez_compressed(file, **arrays)
