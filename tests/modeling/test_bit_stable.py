"""What is the same to the bit, as docs/cpu.md tells it in a table: each cell of it is tried here."""

import os
import re
import subprocess
import sys

import pytest
import torch
from gemma3_int4.int4_cpu_hardware import cpu
from transformers import AutoModelForCausalLM, DynamicCache

from tests.conftest import ROOT
from tests.modeling.hardware import cpu_with
from tests.modeling.tiny_repo import build, text_config

LENGTH, NEXT = 40, (11, 47, 5, 9)
# A row of the table -> how the prompt is read otherwise than alone, at once and on one thread.
CASES = {
    "again, in the same process": {},
    "on 2 or 3 threads": {"threads": 3},
    "in a batch of prompts of its length": {"rows": 3},
    "in a batch, padded on the left": {"rows": 3, "padding": 5},
    "with the beginning in a kept cache": {"kept": 17},
    "with all but a token in a kept cache": {"kept": LENGTH - 1},
    "in chunks": {"chunk": 16},
}
BACKENDS = {
    "native-cpu": ("native-cpu", torch.bfloat16),
    "aten-cpu": ("aten-cpu", torch.bfloat16),
    "reference, bfloat16": ("reference", torch.bfloat16),
    "reference, float32": ("reference", torch.float32),
}


def told() -> dict[str, dict[str, str]]:
    """The table: of each row, what each backend keeps: "all", "prompt" (the logits of the prompt) or "close"."""
    text = (ROOT / "docs" / "cpu.md").read_text()
    lines = re.findall(r"^\|(.+)\|$", text[text.index("## What is the same to the bit") :], re.MULTILINE)
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request, tmp_path_factory):
    """Its name in the table, a model on it, and the logits that all others are compared with."""
    asked, dtype = BACKENDS[request.param]
    repo = build(tmp_path_factory.mktemp("stable"), text_config(sliding_window=64))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GEMMA3_INT4_BACKEND", asked)
        model = AutoModelForCausalLM.from_pretrained(repo.path, trust_remote_code=True, dtype=dtype)
        if model.int4_backend != asked:
            pytest.skip(f"{asked} does not run here")
        yield request.param, model, logits(model), repo.path


@torch.no_grad()
def logits(model, rows=1, padding=0, kept=0, threads=1, chunk=None) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the prompt [LENGTH, V], and of each token that follows it [tokens, V]: the same sequence, read in any way."""
    ids = torch.randint(3, 250, (3, LENGTH + padding), generator=torch.Generator().manual_seed(3))[:rows]
    ids[0] = torch.cat([torch.zeros(padding), torch.arange(3, 3 + LENGTH) * 7 % 250])
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    cache, read = DynamicCache(config=model.config), []
    prefill = sys.modules[next(c.__module__ for c in type(model.get_decoder()).__mro__ if "prefill" in c.__module__)]
    before = torch.get_num_threads(), prefill._tokens
    torch.set_num_threads(threads)
    if chunk:
        prefill._tokens = lambda new: chunk
    try:
        with cpu_with(prefill.__name__.rpartition(".")[0]):
            for part in [slice(0, kept), slice(kept, None)] if kept else [slice(None)]:
                end = ids[:, : part.stop].shape[1]
                positions = (mask[:, :end].cumsum(1) - 1).clamp(min=0)[:, part]
                out = model(ids[:, part], attention_mask=mask[:, :end], position_ids=positions, past_key_values=cache)
                read.append(out.logits[0])
            steps = []
            for token in NEXT:
                mask = torch.cat([mask, torch.ones(rows, 1).long()], dim=1)
                new = torch.full((rows, 1), token)
                positions = mask.sum(1, keepdim=True) - 1
                steps.append(
                    model(new, attention_mask=mask, position_ids=positions, past_key_values=cache).logits[0, -1]
                )
    finally:
        torch.set_num_threads(before[0])
        prefill._tokens = before[1]
    return torch.cat(read)[padding:], torch.stack(steps)


@pytest.mark.parametrize("case", CASES)
def test_what_the_table_tells_of_a_way_to_read(backend, case):
    name, model, expected, _ = backend
    if cpu().amx and name != "reference, float32":
        pytest.skip("torch's units for bfloat16 multiply here, and the table does not tell of them")
    compare(told()[case][name], model, logits(model, **CASES[case]), expected)


def test_what_the_table_tells_of_another_process(backend, tmp_path):
    name, model, expected, path = backend
    code = f"""if True:
        import sys, torch
        sys.path.insert(0, {str(ROOT)!r})
        import tests.conftest
        from tests.modeling.test_bit_stable import AutoModelForCausalLM, logits
        dtype = torch.{str(model.dtype).removeprefix("torch.")}
        model = AutoModelForCausalLM.from_pretrained({str(path)!r}, trust_remote_code=True, dtype=dtype)
        torch.save(logits(model), {str(tmp_path / "logits")!r})
        """
    environment = os.environ | {"GEMMA3_INT4_BACKEND": BACKENDS[name][0]}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    compare(told()["in another process"][name], model, torch.load(tmp_path / "logits"), expected)


def compare(word: str, model, found: tuple[torch.Tensor, torch.Tensor], expected: tuple) -> None:
    assert word in ("all", "prompt", "close")
    same = {"all": 2, "prompt": 1, "close": 0}[word]
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        if number < same:
            assert torch.equal(one, other)
        else:
            assert (one - other).norm() / other.norm() < (0.02 if model.dtype == torch.bfloat16 else 1e-5)


def test_the_table_is_of_these_cases_and_backends():
    table = told()
    assert set(table) == set(CASES) | {"in another process"}
    assert all(set(row) == set(BACKENDS) for row in table.values())
