"""vLLM on the CPU, bfloat16: the AWQ repo unchanged, and its compressed-tensors twin; in one process, and cut over two.

On pictures this build lets soft tokens see only what is before them, so there it is compared with our model doing the
same, and then with our model as it should be, by answers.
"""

from collections.abc import Callable

import numpy as np
import pytest

from tests.engines.helpers.agreement import Reference, agreement, answered_alike, reference, run
from tests.engines.helpers.cases import Case, cut_in_two

EXCUSED = 0.25


@pytest.fixture(scope="module")
def causal_reference_of() -> Callable[[Case, Reference], Reference]:
    """The reference whose soft tokens see only what is before them, computed once; any other if there are none."""
    known = {}

    def causal(case: Case, proper: Reference) -> Reference:
        if not any(len(prompt.pictures) for prompt in case.prompts):
            return proper
        if case.repo not in known:
            known[case.repo] = reference(case, causal_pictures=True)
        return known[case.repo]

    return causal


@pytest.fixture(scope="module")
def results() -> dict[tuple, dict[str, np.ndarray]]:
    """What runs found, by repo, format and processes."""
    return {}


@pytest.mark.parametrize("kind", ["awq", "compressed-tensors"])
@pytest.mark.parametrize("processes", [1, 2])
def test_vllm_cpu(case, kind, processes, reference_of, causal_reference_of, results, report, tmp_path):
    proper = reference_of(case)
    ours = causal_reference_of(case, proper)
    cut = case if processes == 1 else cut_in_two(case, tmp_path)
    model = cut.repo if kind == "awq" else cut.exported(kind, tmp_path)
    result = run("vllm-cpu", "run_vllm.py", model, case, ours, tmp_path, str(processes))
    found = agreement(ours, result)
    report(*found.lines())
    if ours is not proper:
        alike = answered_alike(case, proper.tokens, result["tokens"])
        report(f"{alike} of {len(case.prompts)} answers are those of our model with its soft tokens seeing each other")
    results[case.repo, kind, processes] = result
    if (alone := results.get((case.repo, kind, 1))) is not None and processes > 1:
        same = result["tokens"] == alone["tokens"]
        report(f"{same.sum()} of {same.size} tokens are those of one process")
    assert found.widest < EXCUSED
