"""The proof of the Triton kernels: chosen where they are right, refused where one instruction of them is another.

`test_int4_gpu.py` runs this file in Triton's interpreter too, which then stands for a GPU.
"""

import importlib
import shutil
import sys
from types import ModuleType

import pytest
import torch
from gemma3_int4 import int4_backend, int4_gpu_fused, int4_proof, int4_record
from gemma3_int4.int4_codes import Reference
from gemma3_int4.int4_compiled import Compiled
from gemma3_int4.int4_cpu_aten import AtenCpu
from gemma3_int4.int4_cpu_native import NativeCpu
from gemma3_int4.int4_gpu_triton import Triton
from gemma3_int4.int4_proof import Sample, examine
from gemma3_int4.modeling_gemma3_int4 import Gemma3ForCausalLM

from tests.conftest import ROOT
from tests.modeling.matrices import random_matrix
from tests.modeling.triton_kernels import DEVICE, on_kernels, patch_interpreter

BROKEN = ROOT / "tests" / "modeling" / "broken_kernels.py"
on_a_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs an NVIDIA GPU")

# In the text of the kernels: what stands there, and what a slip would make of it.
MUTATIONS = {
    "the zero point": ("excess * (8 / UNITS)) * scale", "excess * (7 / UNITS)) * scale"),
    "a mask of bits": ("words & (0xF << (4 * i", "words & (0x7 << (4 * i"),
    "an activation's place": ("k = w // 4 * 32 + 4 * i + w % 4", "k = w // 4 * 32 + 4 * i + (w ^ 1) % 4"),
    "a tail": ("& (w < INPUTS // 8)[None, :]", "& (w < INPUTS // 8 - 1)[None, :]"),
    "a row": ("at = y + (part * rows + m) *", "at = y + (part * rows + m - m // 31) *"),
    "a scale of the embedding": (
        "(INPUTS // 32) + g, mask=here, other=float",
        "(INPUTS // 32) + g // 2, mask=here, other=float",
    ),
}


@pytest.fixture(autouse=True)
def true_bfloat16(monkeypatch):
    patch_interpreter(monkeypatch)


def as_a_gpu(monkeypatch, package: str) -> None:
    """Lets a package's Triton backend run on this device, with the plans of a GPU that was never measured."""
    triton, tuning = (sys.modules[f"{package}.{name}"] for name in ("int4_gpu_triton", "int4_gpu_tuning"))
    monkeypatch.setattr(triton.Triton, "why_not", lambda device, dtype, *shape: _only_bfloat16(dtype))
    monkeypatch.setattr(triton, "_plan", lambda m, n, k, device: tuning.by_rule(m, n, k, (9, 0), 1))


def _only_bfloat16(dtype: torch.dtype) -> str | None:
    return None if dtype == torch.bfloat16 else "computes in bfloat16"


def sample(outputs: int = 72, inputs: int = 288) -> Sample:
    _, rows, scales, _ = random_matrix(outputs, inputs, torch.bfloat16)
    return Sample(outputs, inputs, 1, rows, scales)


@on_kernels
def test_the_kernels_are_right(monkeypatch):
    as_a_gpu(monkeypatch, "gemma3_int4")
    monkeypatch.setattr(int4_proof, "needs_proof", lambda device: True)
    monkeypatch.setattr(int4_proof, "_timed", lambda call, device: (1e-6, call()))  # the interpreter's says nothing
    verdict = examine(Triton, sample(), DEVICE, torch.bfloat16)
    assert (verdict.state, verdict.why) == ("right", "")
    assert set(verdict.gemm_seconds) == set(int4_proof.GEMM_ROWS)


@on_kernels
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_kernels_with_one_instruction_changed_are_refused(mutation, monkeypatch, tmp_path):
    for file in ROOT.glob("int4_*.py"):
        shutil.copy(file, tmp_path)
    kernels = tmp_path / "int4_gpu_kernels.py"
    before, after = MUTATIONS[mutation]
    assert before in kernels.read_text()
    kernels.write_text(kernels.read_text().replace(before, after))
    name = f"mutated_{list(MUTATIONS).index(mutation)}"
    package = ModuleType(name)
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, name, package)
    mutated = importlib.import_module(f"{name}.int4_proof")
    as_a_gpu(monkeypatch, name)
    monkeypatch.setattr(mutated, "_timed", lambda call, device: (1e-6, call()))
    backend = sys.modules[f"{name}.int4_gpu_triton"].Triton
    verdict = mutated.examine(backend, sample(), DEVICE, torch.bfloat16)
    assert verdict.state == "wrong"
    chosen = mutated.choose([verdict, mutated.examine(mutated.Reference, sample(), DEVICE, torch.bfloat16)])
    assert [choice.backend for choice in chosen.values()] == ["reference"]


@on_kernels
def test_a_model_gets_them_by_proof(text_repo, monkeypatch, tmp_path):
    """Nothing is named. (That they are fast is made up, as is that other CPU backends run elsewhere.)"""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("GEMMA3_INT4_PROOF", "here")
    monkeypatch.delenv("GEMMA3_INT4_BACKEND", raising=False)
    as_a_gpu(monkeypatch, "gemma3_int4")
    for module in (int4_backend, int4_proof, int4_record):
        monkeypatch.setattr(module, "needs_proof", lambda device: True)
    for backend in (NativeCpu, AtenCpu):
        monkeypatch.setattr(backend, "why_not", lambda *shape: "runs on a CPU")
    monkeypatch.setattr(int4_gpu_fused, "DEVICE_TYPE", DEVICE.type)
    monkeypatch.setattr(int4_backend, "_SETTLED", {})
    clock = iter(range(1, 1 << 20))  # who is tried first is the fastest
    monkeypatch.setattr(int4_proof, "_timed", lambda call, device: (next(clock) * 1e-6, call()))
    model = Gemma3ForCausalLM.from_pretrained(text_repo.path, dtype=torch.bfloat16).to(DEVICE)
    assert model.int4_backend == "triton"
    assert type(model.model.norm) is int4_gpu_fused.Gemma3RMSNorm
    ids = torch.tensor([[2, 5, 9, 300, 17]], device=DEVICE)
    with torch.no_grad():
        found = model(ids).logits.float().cpu()
    expected = text_repo.reference(ids.cpu()).logits
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert "| triton | all | **chosen** |" in model.int4_report
    assert issubclass(model.model.layers[0].mlp.up_proj.backend, Triton)
    assert model.float().int4_backend == (Compiled if DEVICE.type == "cuda" else Reference).name


@on_a_gpu
def test_kernels_that_end_a_gpus_use_take_nobody_with_them(monkeypatch, tmp_path):
    """An illegal address, a device's assertion and a kernel without end cost the children that try them, not us."""
    for file in (*ROOT.glob("int4_*.py"), BROKEN):
        shutil.copy(file, tmp_path)
    with (tmp_path / "int4_backend.py").open("a") as file:
        print("from .broken_kernels import Endless, FailedAssertion, IllegalAddress", file=file)
        print("BACKENDS = (IllegalAddress, FailedAssertion, Endless, Reference)", file=file)
    package = ModuleType("poisoning")
    package.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "poisoning", package)
    trial = importlib.import_module("poisoning.int4_trial")
    monkeypatch.setattr(trial, "SECONDS", 25)
    before = torch.arange(1000.0, device=DEVICE)
    told = {v.backend: (v.state, v.why) for v in trial.try_in_children([sample()], DEVICE, torch.bfloat16)}
    assert told["illegal-address"][0] == told["failed-assertion"][0] == told["endless"][0] == "failed"
    assert "illegal memory access" in told["illegal-address"][1]
    assert "CUDA error" in told["failed-assertion"][1]
    assert told["endless"][1].startswith("no answer within 25 s")
    assert told["reference"] == ("right", "")
    assert (before.double() @ before.double()).item() == 332833500
