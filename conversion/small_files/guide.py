"""What a card says of use beyond a first answer: serving, training, other engines, memory."""

from __future__ import annotations

import math
from collections.abc import Iterable

from transformers import Gemma3Config, Gemma3TextConfig

from conversion.codes import GROUP_SIZE
from conversion.part import Part

FLOAT, CODE, SCALE = 2, 1 / 2, 2  # bytes, as the model holds them in bfloat16
CONTEXTS = (8_192, 32_768, 131_072)  # tokens

GUIDE = """\
## Serve

{serve}
## Train

An adapter is trained beside the weights, which stay as they are; PEFT and TRL take the model as it loads:

```python
from peft import LoraConfig, get_peft_model

model = get_peft_model(model, LoraConfig(target_modules={targets}, task_type="CAUSAL_LM"))
```

TRL's trainers take the repo by its name too, with `trust_remote_code=True` and `model_init_kwargs={{"dtype":
"bfloat16"}}` among their settings. The adapter stays beside the model: merged, it would have to be quantized anew.

## Other engines

vLLM loads this repo unchanged: `vllm serve PATH_OR_REPO_ID --dtype bfloat16`; on a CPU with AMX set
`VLLM_CPU_INT4_W4A8=0`, which keeps the activations in bfloat16. mlx-lm loads it too{blind}, and computes in the dtype
of its scales: where that is float16, sums of Gemma 3 are clipped. For llama.cpp, for MLX with the embedding in int4,
and for vLLM's compressed-tensors, the converter that made this repo writes the same codes in their formats:
`python convert_flax.py export REPO --format gguf`, `mlx` or `compressed-tensors`.

## Memory

Computed, in bfloat16: the weights, the embedding {embedding}, and the cache of one sequence, of which only one layer
in {period} keeps more than {window:,} tokens.

| | GB |
|---|---|
| weights | {weights} |
{caches}
"""

SERVE_PICTURES = """\
```
pip install "transformers[serving]"
transformers serve PATH_OR_REPO_ID --trust-remote-code
```

answers OpenAI's API at http://localhost:8000/v1, with pictures and streaming.
"""

SERVE_TEXT = """\
`vllm serve PATH_OR_REPO_ID --dtype bfloat16` answers OpenAI's API at http://localhost:8000/v1. (`transformers serve`
looks for the class of a text model in transformers alone.)
"""


def guide(config: Gemma3Config | Gemma3TextConfig, parts: Iterable[Part], int4_embedding: bool) -> str:
    """The sections of a card.

    Args:
        config: multimodal or text-only.
        parts: what the repo was made from.
        int4_embedding: whether the model holds its embedding as int4.
    """
    text, multimodal = config.get_text_config(), isinstance(config, Gemma3Config)
    kinds = text.layer_types
    full = kinds.count("full_attention")
    contexts = sorted({min(tokens, text.max_position_embeddings) for tokens in CONTEXTS})
    rows = (f"| cache of {tokens:,} tokens | {_gigabytes(cache_bytes(text, tokens))} |" for tokens in contexts)
    return GUIDE.format(
        serve=SERVE_PICTURES if multimodal else SERVE_TEXT,
        targets='r".*language_model.*_proj"' if multimodal else '"all-linear"',
        blind=", text only" if multimodal else "",
        embedding="in int4" if int4_embedding else "in floats",
        period=round(len(kinds) / full) if full else len(kinds),
        window=text.sliding_window,
        weights=_gigabytes(weight_bytes(parts, int4_embedding)),
        caches="\n".join(rows),
    )


def weight_bytes(parts: Iterable[Part], int4_embedding: bool) -> float:
    """Bytes of the weights in memory."""
    int4 = CODE + SCALE / GROUP_SIZE
    return sum(part.size * (int4 if (int4_embedding if part.is_embedding else part.int4) else FLOAT) for part in parts)


def cache_bytes(text: Gemma3TextConfig, tokens: int) -> int:
    """Bytes of the keys and values of one sequence: layers with a window keep no more than that."""
    kept = (tokens if kind == "full_attention" else min(tokens, text.sliding_window) for kind in text.layer_types)
    return sum(kept) * 2 * text.num_key_value_heads * text.head_dim * FLOAT


def _gigabytes(count: float) -> str:
    """Three digits, as `16.9` or `0.0042`."""
    digits = max(0, 2 - math.floor(math.log10(count / 1e9)))
    return f"{count / 1e9:.{digits}f}"
