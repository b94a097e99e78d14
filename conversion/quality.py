"""How well a model predicts a text: perplexity per token, and bits per byte, which compare across tokenizers.

* `perplexity`: of any causal language model, on token ids.
* `measure`: loads a converted repo, measures it on a text file, and names the lm-eval command for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from conversion.errors import BadInput

BOS = 2
ROWS = 128  # logits widened to float32 at a time: 134 MB with Gemma's vocabulary
LM_EVAL = """\
lm-eval (pip install lm-eval; 0.4.13 was seen to run) takes the folder as it is:
  lm_eval --model hf --model_args pretrained={repo},trust_remote_code=True,dtype={dtype},\
softmax_dtype=float32,max_length=4096 --device {device} --tasks TASKS
for tasks that score whole texts, as wikitext, append ,add_bos_token=False: before those it puts <bos> itself"""


@torch.inference_mode()
def perplexity(model: PreTrainedModel, tokens: torch.Tensor, window: int, stride: int) -> float:
    """Perplexity per token over windows that slide along a text, `<bos>` before each.

    Every token counts once, in the first window that holds it; so from the second window on it is predicted from at
    least `window - stride` tokens before it.

    Args:
        model: a causal language model.
        tokens: int64 [n], without `<bos>`.
        window: tokens of a window.
        stride: from window to window, 1 to `window` tokens.

    Returns:
        exp of the mean negative log-likelihood; logits in the model's dtype, the rest in float32.
    """
    losses, done = [], 0
    starts = range(0, max(1, len(tokens) - window + stride), stride)
    for start in tqdm(starts, desc="measuring", unit="window", disable=None):
        stop = min(start + window, len(tokens))
        ids = torch.cat([torch.tensor([BOS]), tokens[start:stop]]).unsqueeze(0).to(model.device)
        expected = ids[0, done - stop :]
        logits = model(ids, logits_to_keep=len(expected) + 1).logits[0, :-1]  # [expected, vocabulary]
        for some, targets in zip(logits.split(ROWS), expected.split(ROWS), strict=True):
            losses.append(torch.nn.functional.cross_entropy(some.float(), targets, reduction="none").cpu())
        done = stop
    return torch.cat(losses).mean().exp().item()


def measure(
    repo: Path, text: Path, *, window: int, stride: int, device: str, dtype: str, report: Callable[[str], None]
) -> None:
    """Measures a converted repo on a text file in UTF-8.

    Args:
        repo: folder of the repo, tokenizer included. Its Python files are run.
        text: the file.
        window, stride: as for `perplexity`.
        device: transformers' `device_map`: auto, cpu, cuda, cuda:1, ...
        dtype: bfloat16 or float32.
        report: takes one line per finding.

    Raises:
        BadInput: the repo cannot be loaded, or the file holds no text.
    """
    if not (repo / "config.json").is_file():
        raise BadInput(f"{repo}: no config.json there; quality takes the folder of a converted repo")
    if not 1 <= stride <= window:
        raise BadInput(f"--window {window} --stride {stride}: the stride is at least 1 and at most the window")
    try:
        content = text.read_bytes()
        characters = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"--text {text}: cannot be read as UTF-8 ({error})") from error
    if not characters.strip():
        raise BadInput(f"--text {text}: is empty; give a file with some thousand words of plain text")
    try:
        tokenizer = AutoTokenizer.from_pretrained(repo)
        model = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True, dtype=dtype, device_map=device)
    except Exception as error:  # the repo's code has error classes of its own
        raise BadInput(f"{repo}: cannot be loaded ({error})") from error
    tokens = tokenizer(characters, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    report(f"model       {repo}, {dtype} on {model.device}, {getattr(model, 'int4_backend', 'not int4')}")
    report(f"text        {text}, {len(content)} bytes, {len(tokens)} tokens, windows of {window}, stride {stride}")
    found = perplexity(model, tokens, window, stride)
    report(f"perplexity  {found:.4f} per token")
    report(f"            {math.log2(found) * len(tokens) / len(content):.4f} bits per byte")
    report(LM_EVAL.format(repo=repo, dtype=dtype, device=model.device.type))
