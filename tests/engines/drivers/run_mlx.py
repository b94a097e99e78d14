"""Driver: an MLX repo, text alone in mlx-lm, pictures in mlx-vlm, on whatever device MLX has here; an AWQ repo too,
text alone. A dtype at the end, "float32", is what mlx-lm's model is cast to after loading.
"""

import json
import sys
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import mlx_vlm.utils
import numpy as np
from jobs import Job, Prompt, summary


def pixels(prompt: Prompt) -> mx.array:
    """Of its pictures, -1 to 1: [p, 3, side, side]."""
    return mx.array((prompt.pictures.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32))


def main() -> None:
    folder, job, result, *dtype = sys.argv[1:]
    job = Job.read(job)
    config = json.loads((Path(folder) / "config.json").read_text())
    # mlx-lm takes the vocabulary to be Google's where the size is not at the top of config.json.
    sizes = {"vocab_size": config.get("text_config", config)["vocab_size"]}
    blind, _ = mlx_lm.utils.load_model(Path(folder), model_config=sizes)
    if dtype:
        blind.set_dtype(getattr(mx, *dtype))
    sees = any(len(prompt.pictures) for prompt in job.prompts)
    model = mlx_vlm.utils.load_model(Path(folder)) if sees else None

    rows = []
    for prompt, continuation in zip(job.prompts, job.continuations, strict=True):
        ids = mx.array(np.concatenate([prompt.ids, continuation[:-1]]))[None]
        if len(prompt.pictures):
            # As its `generate` does, which gives the language model no mask for pictures.
            embedded = model.get_input_embeddings(ids, pixels(prompt), mask=mx.ones(ids.shape, mx.int32))
            logits = model.language_model(ids, inputs_embeds=embedded.inputs_embeds).logits
        else:
            logits = blind(ids)
        rows.append(np.array(logits[0, len(prompt.ids) - 1 :].astype(mx.float32)))
    np.savez(result, **summary(np.stack(rows), job.continuations))


if __name__ == "__main__":
    main()
