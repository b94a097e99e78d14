"""DeepMind's own `gemma` on the very checkpoint that a repo was converted from: float32 logits beside ours."""

import shutil

import numpy as np
import pytest

from tests.engines.drivers.jobs import summary
from tests.engines.helpers import cases
from tests.engines.helpers.agreement import Reference, agreement, run
from tests.engines.helpers.deepmind_logits import golden_logits
from tests.goldens.build import CASES


@pytest.fixture(scope="session")
def exact_270m(tmp_path_factory) -> cases.Case:
    """With float32 scales: every weight is what the checkpoint holds."""
    return cases.real_270m(tmp_path_factory.mktemp("exact_270m"), "float32")


# Logits of the 270M reach 42, where 1e-4 is a few units in the last place; its limit is that of `make real270m`.
@pytest.mark.parametrize(("name", "limit"), [("exact_270m", 1e-3), ("shipped", 1e-4)])
def test_gemma_flax(name, limit, request, reference_of, report, tmp_path):
    case = request.getfixturevalue(name)
    ours = reference_of(case)
    (tmp_path / "checkpoint").symlink_to(case.checkpoint)
    shutil.copy(case.repo / "config.json", tmp_path)
    result = run("gemma-flax", "run_gemma_flax.py", tmp_path, case, ours, tmp_path)
    # Our config appends 64 zero rows to the embedding of a model with pictures, as Google's published ones do.
    logits = ours.logits[..., : result["logits"].shape[-1]]
    apart = float(np.abs(result["logits"] - logits).max())
    found = agreement(Reference(logits, **summary(logits, ours.tokens)), result)
    report(f"float32 logits within {apart:.1e}", *found.lines())
    assert apart < limit
    assert found.same == found.total


@pytest.mark.parametrize("name", CASES)
def test_the_golden_logits_are_what_deepminds_code_computes(name, goldens, report, tmp_path):
    expected = np.load(goldens / name / "expected.npz")
    for kind, logits in golden_logits(goldens / name, tmp_path).items():
        apart = float(np.abs(logits[expected[f"{kind}_logit_positions"]] - expected[f"{kind}_logits"]).max())
        report(f"{kind}: within {apart:.1e}")
        assert apart < 5e-5
        assert (logits.argmax(-1) == expected[f"{kind}_argmax"]).all()
