"""OpenVINO's runtime on our GGUF file, text alone: as it computes by default, and in float32."""

import pytest

from tests.engines.helpers.agreement import agreement, reference, run
from tests.engines.helpers.cases import with_rope_factor

# By default it quantizes activations to int8, as llama.cpp does; in float32 only our scales are rounded, to float16.
EXCUSED = {"default": 0.5, "exact": 0.05}


@pytest.mark.parametrize("settings", ["default", "exact"])
def test_openvino(settings, case, report, tmp_path):
    text = case.text_alone
    ours = reference(text)
    words = [] if settings == "default" else [settings]
    found = agreement(
        ours, run("openvino", "run_openvino.py", text.exported("gguf", tmp_path), text, ours, tmp_path, *words)
    )
    report(*found.lines())
    assert found.widest < EXCUSED[settings]


def test_openvino_has_the_rope_factor_of_the_large_sizes_in_every_layer(real_270m, report, tmp_path):
    """Only global layers should have it. Where this fails, OpenVINO has become better than docs/engines.md says."""
    case = with_rope_factor(real_270m, tmp_path, "full_attention")
    ours = reference(with_rope_factor(real_270m, tmp_path, "full_attention", "sliding_attention"))
    folder = case.exported("gguf", tmp_path)
    found = agreement(ours, run("openvino", "run_openvino.py", folder, case, ours, tmp_path, "exact"))
    report(found.lines()[0])
    assert found.widest < EXCUSED["exact"]
