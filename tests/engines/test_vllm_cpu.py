"""vLLM on the CPU, bfloat16: the AWQ repo unchanged, and its compressed-tensors twin.

On pictures this build lets soft tokens see only what is before them, so there it is compared with our model doing the
same, and then with our model as it should be, by answers.
"""

import pytest

from tests.engines.helpers.agreement import agreement, answered_alike, reference, run

EXCUSED = 0.25


@pytest.mark.parametrize("kind", ["awq", "compressed-tensors"])
def test_vllm_cpu(case, kind, reference_of, report, tmp_path):
    proper = reference_of(case)
    sees = any(len(prompt.pictures) for prompt in case.prompts)
    ours = reference(case, causal_pictures=True) if sees else proper
    model = case.repo if kind == "awq" else case.exported(kind, tmp_path)
    result = run("vllm-cpu", "run_vllm.py", model, case, ours, tmp_path)
    found = agreement(ours, result)
    report(*found.lines())
    if sees:
        alike = answered_alike(case, proper.tokens, result["tokens"])
        report(f"{alike} of {len(case.prompts)} answers are those of our model with its soft tokens seeing each other")
    assert found.widest < EXCUSED
