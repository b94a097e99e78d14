"""Which backend is chosen, and what is said of the others."""

import logging

import pytest
import torch
from gemma3_int4 import int4_backend
from gemma3_int4.int4_backend import choose_backend, reasons
from gemma3_int4.int4_codes import Reference
from gemma3_int4.int4_cpu_aten import AtenCpu
from gemma3_int4.int4_cpu_native import NativeCpu

from tests.modeling.hardware import cpu_with

CPU = torch.device("cpu")


@pytest.fixture
def warned(monkeypatch, caplog):
    """caplog, in which our module's warnings arrive."""
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(int4_backend.logger, "parent", logging.getLogger())
    int4_backend.logger.warning_once.cache_clear()
    return caplog


@pytest.mark.parametrize("backend", [NativeCpu, AtenCpu, Reference])
def test_the_environment_names_the_first_backend_to_consider(backend, monkeypatch, warned):
    monkeypatch.setenv("GEMMA3_INT4_BACKEND", backend.name)
    if reason := backend.why_not(CPU, torch.bfloat16, 64, 64):
        pytest.skip(reason)
    assert choose_backend(CPU, torch.bfloat16, 64, 64) is backend
    assert warned.messages == []
    assert choose_backend(CPU, torch.float32, 64, 64) is Reference


def test_a_backend_that_was_asked_for_and_cannot_is_not_replaced_silently(monkeypatch, warned):
    monkeypatch.setenv("GEMMA3_INT4_BACKEND", "aten-cpu")
    for _ in range(3):
        assert choose_backend(CPU, torch.float32, 64, 64) is Reference
    assert warned.messages == ["GEMMA3_INT4_BACKEND=aten-cpu: computes in bfloat16; reference is used instead."]


def test_a_misspelled_backend_is_an_error_that_says_what_each_lacks(monkeypatch):
    monkeypatch.setenv("GEMMA3_INT4_BACKEND", "fast")
    with pytest.raises(ValueError, match="GEMMA3_INT4_BACKEND=fast") as caught:
        choose_backend(CPU, torch.float32, 64, 64)
    assert "triton (runs on NVIDIA GPUs)" in str(caught.value)
    assert "aten-cpu (computes in bfloat16), reference (usable)" in str(caught.value)


def test_float16_is_refused():
    with pytest.raises(TypeError, match="overflows float16"):
        choose_backend(CPU, torch.float16, 64, 64)


def test_outputs_that_do_not_fill_the_blocks_go_elsewhere(monkeypatch):
    monkeypatch.delenv("GEMMA3_INT4_BACKEND", raising=False)
    assert choose_backend(CPU, torch.bfloat16, 72, 64) is Reference
    assert reasons(CPU, torch.bfloat16, 72, 64)["native-cpu"] == "wants outputs in 32s, not 72"


def test_a_pytorch_without_the_operator():
    with cpu_with("gemma3_int4", aten_layout=None):
        assert "lacks the operator" in AtenCpu.why_not(CPU, torch.bfloat16, 64, 64)
