"""How well a model predicts a text: perplexity per token, and bits per byte, which compare across tokenizers.

* `perplexity`: of any causal language model, on token ids.
* `measure`: loads a converted repo, measures it on a text, and names the lm-eval command for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from conversion.arguments import check_has_tokenizer
from conversion.errors import BadInput, first_line

BOS = 2
UNK = "<unk>"
LEAST, FEW = 32, 1000  # tokens: fewer are refused; fewer are warned of
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
    repo: Path, text: str, *, window: int, stride: int, device: str, dtype: str, report: Callable[[str], None]
) -> None:
    """Measures a converted repo on a text.

    Args:
        repo: folder of the repo, tokenizer included. Its Python files are run.
        text: the text, as one string.
        window, stride: as for `perplexity`.
        device: transformers' `device_map`: auto, cpu, cuda, cuda:1, ...
        dtype: bfloat16 or float32.
        report: takes one line per finding.

    Raises:
        BadInput: the repo cannot be loaded or lacks its tokenizer, the tokenizer does not belong to the model or does
            not know the text, or the text is too short.
    """
    check_has_tokenizer(repo)
    try:
        tokenizer = AutoTokenizer.from_pretrained(repo)
        tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"][0].long()
        config = AutoConfig.from_pretrained(repo).get_text_config()
    except Exception as error:  # the libraries have no class of their own
        raise BadInput(f"{repo}: cannot be loaded ({first_line(error)})") from error
    _check_tokens(repo, tokenizer, tokens, config)
    try:
        model = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True, dtype=dtype, device_map=device)
    except Exception as error:  # the repo's code has error classes of its own
        raise BadInput(f"{repo}: cannot be loaded ({first_line(error)})") from error
    size = len(text.encode())
    report(f"model       {repo}, {dtype} on {model.device}, {getattr(model, 'int4_backend', 'not int4')}")
    report(f"text        {size} bytes, {len(tokens)} tokens, windows of {window}, stride {stride}")
    if len(tokens) < FEW:
        report(f"WARNING: {len(tokens)} tokens are few, another text of this length can give quite another number")
    found = perplexity(model, tokens, window, stride)
    report(f"perplexity  {found:.4f} per token")
    report(f"            {math.log2(found) * len(tokens) / size:.4f} bits per byte")
    report(LM_EVAL.format(repo=repo, dtype=dtype, device=model.device.type))


def _check_tokens(
    repo: Path, tokenizer: PreTrainedTokenizerBase, tokens: torch.Tensor, config: PretrainedConfig
) -> None:
    """Raises BadInput if numbers measured on these tokens would say nothing of the model."""
    another = "it is another model's; copy the tokenizer's files of this model into the folder"
    last = int(tokens.max()) if len(tokens) else 0
    if last >= config.vocab_size:
        raise BadInput(
            f"{repo}: its tokenizer makes token {last}, the embedding has {config.vocab_size} rows: {another}"
        )
    if tokenizer.bos_token_id not in (None, BOS):
        raise BadInput(f"{repo}: <bos> is token {tokenizer.bos_token_id} of its tokenizer, expected {BOS}: {another}")
    unknown = int((tokens == tokenizer.get_vocab().get(tokenizer.unk_token or UNK, -1)).sum())
    if 2 * unknown > len(tokens):
        raise BadInput(
            f"{repo}: {unknown} of {len(tokens)} tokens of the text are {UNK}: its tokenizer does not "
            "know the text; give the one of the model, or a text in its language"
        )
    if len(tokens) < LEAST:
        raise BadInput(
            f"--text: {len(tokens)} tokens are too few to measure on; give some thousand words of plain text"
        )
