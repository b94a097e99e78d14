"""transformers' stock classes with gptqmodel on the AWQ repo, unchanged: CPU, bfloat16."""

from tests.engines.helpers.agreement import agreement, reference, run
from tests.engines.helpers.cases import real_270m as real_270m_with

EXCUSED = 0.25


def test_gptqmodel(case, reference_of, report, tmp_path):
    ours = reference_of(case)
    result = run("gptqmodel", "run_gptqmodel.py", case.repo, case, ours, tmp_path)
    found = agreement(ours, result)
    report(f"kernels {', '.join(result['kernels'])}", *found.lines())
    assert len(result["kernels"]) > 0
    assert found.widest < EXCUSED


def test_gptqmodel_on_float16_scales(report, tmp_path):
    case = real_270m_with(tmp_path, "float16")
    ours = reference(case)
    found = agreement(ours, run("gptqmodel", "run_gptqmodel.py", case.repo, case, ours, tmp_path))
    report(*found.lines())
    assert found.widest < EXCUSED
