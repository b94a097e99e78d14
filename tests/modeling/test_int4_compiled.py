"""The reference's arithmetic in the hands of torch.compile, for real: on this CPU, where it is never chosen."""

import shutil

import pytest
import torch
from gemma3_int4 import int4_compiled
from gemma3_int4.int4_codes import dequantize
from gemma3_int4.int4_compiled import Compiled

from tests.modeling.matrices import assert_rounded_to_bfloat16, random_matrix, random_rows


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on CPUs")
def test_compiled_code_against_float64():
    for outputs, inputs, scale_dtype in [(40, 96, torch.bfloat16), (24, 160, torch.float16)]:
        _, rows, scales, weight = random_matrix(outputs, inputs, scale_dtype)
        packed = Compiled.pack(rows, scales)
        for m in (1, 4):
            x = random_rows(m, inputs)
            exact, terms = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
            assert_rounded_to_bfloat16(Compiled.linear(x, packed), exact, terms, 2**-20 if m == 1 else 2**-8)
    x = random_rows(1, 160).float()
    assert torch.allclose(Compiled.linear(x, packed), x @ dequantize(rows, scales, torch.float32).T, atol=1e-5)


def test_where_it_does_not_run(monkeypatch):
    assert "slower" in Compiled.why_not(torch.device("cpu"), torch.bfloat16, 64, 64)
    assert Compiled.why_not(torch.device("mps"), torch.float32, 64, 64) is None
    monkeypatch.setattr(int4_compiled, "HAS_TRITON", False)
    assert "triton" in Compiled.why_not(torch.device("cuda"), torch.bfloat16, 64, 64)
