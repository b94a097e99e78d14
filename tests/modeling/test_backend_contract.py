"""What every backend promises, the same checks for all: a layout that loses nothing, and products as close as they say.

What only one of them promises stands in a file of its own: `test_int4_cpu_native.py`,
`test_int4_cpu_aten.py`, `test_int4_gpu.py`, `test_int4_gpu_aten.py`.
"""

import contextlib
import inspect
from dataclasses import dataclass, field

import pytest
import torch
from gemma3_int4 import (
    int4_codes,
    int4_compiled,
    int4_cpu_aten,
    int4_cpu_native,
    int4_gpu_aten,
    int4_gpu_triton,
    int4_layers,
)
from gemma3_int4.int4_backend import BACKENDS, Backend
from gemma3_int4.int4_codes import Packed, Reference, dequantize
from gemma3_int4.int4_compiled import Compiled
from gemma3_int4.int4_cpu_aten import AtenCpu
from gemma3_int4.int4_cpu_native import NativeCpu
from gemma3_int4.int4_gpu_aten import AtenGpu, Layout
from gemma3_int4.int4_gpu_triton import Triton
from gemma3_int4.int4_layers import Int4LMHead

from tests.modeling import aten_gpu_operator, triton_kernels
from tests.modeling.hardware import cpu_with, only
from tests.modeling.matrices import (
    DTYPES,
    assert_rounded_to_bfloat16,
    embedding_from_plain,
    linear_from,
    random_matrix,
    random_rows,
    stored_linear,
)

CPU = torch.device("cpu")
BFLOAT16_SUM = 2**-8  # of terms that are rounded to bfloat16, weights say


@dataclass(frozen=True)
class Case:
    """A backend, and the machine that it shall think it is on."""

    backend: type[Backend]
    instruction_set: str | None = None
    cpu: dict = field(default_factory=dict)  # attributes of `Cpu`
    gpu: Layout | None = None  # whose operator of PyTorch's is to be written out
    exact_rows: int = 0  # up to so many rows, weights are not rounded to bfloat16
    device: torch.device = CPU
    outputs: int = 192
    inputs: int = 128

    def __str__(self) -> str:
        changes = (f"{name}={value}" for name, value in self.cpu.items())
        gpu = self.gpu and self.gpu.name
        return " ".join(filter(None, [self.backend.name, self.instruction_set, gpu, *changes]))


CASES = [
    Case(Reference),
    Case(Compiled, exact_rows=1),
    *(Case(AtenGpu, gpu=layout) for layout in Layout),
    Case(AtenCpu, cpu={"aten_rows": 8, "bf16_gemm": True}),
    Case(AtenCpu, cpu={"aten_rows": 8, "bf16_gemm": False}),
    Case(AtenCpu, cpu={"aten_rows": 256}),
    Case(NativeCpu, "AVX512_BF16", cpu={"amx": False}, exact_rows=16),
    Case(NativeCpu, "AVX512_BF16", cpu={"amx": True, "native_rows": 24}, exact_rows=24),
    Case(NativeCpu, "AVX512_VNNI", cpu={"amx": False}, exact_rows=1 << 10),
    Case(NativeCpu, "AVX512", cpu={"amx": False}, exact_rows=1 << 10),
    Case(NativeCpu, "AVX2_VNNI", cpu={"amx": False}, exact_rows=1 << 10),
    Case(NativeCpu, "AVX2", cpu={"amx": False}, exact_rows=1 << 10),
    Case(NativeCpu, "AVX2", cpu={"amx": True}, exact_rows=1),
    Case(NativeCpu, "NEON_BF16", exact_rows=11),
    Case(NativeCpu, "NEON_DOTPROD", exact_rows=1 << 10),
    Case(NativeCpu, "NEON", exact_rows=1 << 10),
    Case(Triton, exact_rows=1, device=triton_kernels.DEVICE, outputs=40, inputs=96),
]


@pytest.fixture(params=CASES, ids=str)
def packing(request, monkeypatch):
    """A case whose backend can pack: Triton's can anywhere."""
    case: Case = request.param
    monkeypatch.setattr(int4_codes, "BLOCK_WEIGHTS", 5000)  # several blocks, the last of them smaller
    monkeypatch.setattr(int4_cpu_aten, "BLOCK_WEIGHTS", 1 << 14)
    monkeypatch.setattr(int4_cpu_native, "TILE_WEIGHTS", 5000)
    monkeypatch.setattr(int4_layers, "choose_backend", lambda *shape: case.backend)
    if case.gpu:
        monkeypatch.setattr(int4_gpu_aten, "layout_of", lambda device: case.gpu)
        monkeypatch.setattr(int4_gpu_aten, "FEW_ROWS", {"cpu": 24})
        monkeypatch.setattr(int4_gpu_aten, "_operator", aten_gpu_operator.operator(case.gpu))
    with contextlib.ExitStack() as stack:
        if case.instruction_set:
            stack.enter_context(only(case.instruction_set, "gemma3_int4"))
        stack.enter_context(cpu_with("gemma3_int4", **case.cpu))
        yield case


@pytest.fixture
def case(packing, monkeypatch):
    """A case whose backend can compute here."""
    torch.compiler.reset()  # which compiles for so many backends at most
    monkeypatch.setattr(int4_compiled, "_make", lambda function: torch.compile(function, backend="eager", dynamic=True))
    if packing.backend is Triton:
        if not triton_kernels.RUN_HERE:
            pytest.skip(triton_kernels.WHY_NOT)
        triton_kernels.patch_interpreter(monkeypatch)
        one, many = triton_kernels.PLANS[0], triton_kernels.PLANS[3]
        monkeypatch.setattr(int4_gpu_triton, "_plan", lambda m, n, k, device: one if m == 1 else many)
    return packing


def wild_scales(case: Case, scale_dtype: torch.dtype) -> torch.Tensor:
    """[N, K/32]: of either sign, some zero, float16's smallest and largest among them."""
    generator = torch.Generator().manual_seed(1)
    scales = torch.randn(case.outputs, case.inputs // 32, generator=generator) * 0.02
    scales[::7] = 0
    scales[1, 0], scales[2, 0], scales[3, 0], scales[4, 0] = 2**-24, -(2**-24), 65504, -65504
    return scales.to(scale_dtype)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.dtype == expected.dtype
    assert torch.equal(found.cpu(), expected.cpu())


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_a_backend_has_the_members_of_the_protocol_and_no_more_parameters(backend):
    for name, member in inspect.getmembers(Backend, inspect.isfunction):
        if not name.startswith("_"):
            expected, found = (inspect.signature(function) for function in (member, getattr(backend, name)))
            assert list(found.parameters) == list(expected.parameters), name
    assert isinstance(backend.name, str)
    assert backend in [case.backend for case in CASES]


@pytest.mark.parametrize("backend", [backend for backend in BACKENDS if backend is not Reference])
def test_a_reason_is_given(backend):
    device = triton_kernels.CUDA if backend in (Triton, AtenGpu) else CPU
    reason = backend.why_not(device, torch.float32, 64, 64)
    assert "bfloat16" in reason or (backend is Triton and torch.version.cuda is None) or backend is Compiled
    assert backend.why_not(torch.device("meta"), torch.bfloat16, 64, 64)


@pytest.mark.parametrize("wild", [False, True], ids=["scales", "wild scales"])
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_what_is_packed_is_unpacked_to_the_bit(packing, scale_dtype, wild):
    codes, rows, scales, _ = random_matrix(packing.outputs, packing.inputs, scale_dtype)
    scales = wild_scales(packing, scale_dtype) if wild else scales
    device = packing.device
    packed = packing.backend.pack(rows.to(device), scales.to(device))
    for found, expected in zip(packing.backend.unpack(packed), (rows, scales), strict=True):
        assert_same(found, expected)
    stored = stored_linear(codes, scales)
    from_words = packing.backend.repack_awq(stored.qweight.to(device), stored.scales.to(device))
    assert from_words.keys() == packed.keys()
    for name, expected in packed.items():
        assert_same(from_words[name], expected)
    state = linear_from(codes.to(device), scales.to(device), torch.bfloat16).state_dict()
    assert set(state) == {"qweight", "qzeros", "scales"}
    for name, found in state.items():
        assert_same(found, getattr(stored, name))


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_the_weights_are_in_memory_once(packing, scale_dtype):
    codes, rows, scales, _ = random_matrix(packing.outputs, packing.inputs, scale_dtype)
    beside = scales.numel() * 5 // 2  # for each scale a zero, and four bits more if it is float16
    overhead = {AtenCpu: beside, AtenGpu: beside}
    nbytes = linear_from(codes.to(packing.device), scales.to(packing.device), torch.bfloat16).int4_bytes()
    assert rows.nbytes + scales.nbytes <= nbytes <= rows.nbytes + scales.nbytes + overhead.get(packing.backend, 0)


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("m", [*range(1, 10), 12, 13, 16, 17, 23, 24, 25, 33, 64, 100])
def test_a_product_against_float64(case, m, scale_dtype):
    codes, _, scales, weight = random_matrix(case.outputs, case.inputs, scale_dtype, seed=m)
    scales = scales * torch.tensor([1, -1, 0.5, 0]).repeat(case.outputs // 4)[:, None].to(scale_dtype)
    weight = codes.double() * scales.double().repeat_interleave(32, dim=1)
    x = random_rows(m, case.inputs, seed=m)
    y = linear_from(codes.to(case.device), scales.to(case.device), torch.bfloat16)(x.to(case.device))
    exact, terms = x.double() @ weight.T, x.double().abs() @ weight.abs().T
    assert_rounded_to_bfloat16(y, exact, terms, 2**-18 if m <= case.exact_rows else BFLOAT16_SUM)
    assert (y.cpu().double() - exact).norm() < 5e-3 * exact.norm()


def test_slices_batches_and_no_rows(case):
    codes, _, scales, weight = random_matrix(case.outputs, case.inputs, torch.bfloat16)
    linear = linear_from(codes.to(case.device), scales.to(case.device), torch.bfloat16)
    x = random_rows(12, 2 * case.inputs).view(2, 6, -1)[:, ::2, 32 : 32 + case.inputs]
    y = linear(x.to(case.device))
    terms = x.double().abs() @ weight.double().abs().T
    assert_rounded_to_bfloat16(y, x.double() @ weight.double().T, terms, BFLOAT16_SUM)
    assert linear(x[:, :0].to(case.device)).shape == (2, 0, case.outputs)


@pytest.mark.parametrize("m", [1, 5, 40])
def test_outliers_do_not_drown_their_neighbors(case, m):
    codes = torch.zeros(case.outputs, case.inputs, dtype=torch.int64)
    codes[:, 1] = torch.arange(case.outputs) % 16 - 8  # reads the small activation only
    x = torch.zeros(m, case.inputs).bfloat16()
    x[:, 0], x[:, 1] = 64.0, 1.0
    scales = torch.ones(case.outputs, case.inputs // 32)
    y = linear_from(codes.to(case.device), scales.to(case.device), torch.bfloat16)(x.to(case.device))
    assert_same(y, codes[:, 1].bfloat16().expand(m, -1))


@pytest.mark.parametrize("m", [2, 5, 40])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_do_not_vanish(case, m, bad):
    codes, _, scales, _ = random_matrix(case.outputs, case.inputs, torch.bfloat16)
    x = random_rows(m, case.inputs)
    x[-1, 40] = bad
    y = linear_from(codes.to(case.device), scales.to(case.device), torch.bfloat16)(x.to(case.device))
    assert y[:-1].isfinite().all()
    assert not y[-1].isfinite().any()


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 40])
def test_the_gradient_of_the_input(case, m, scale_dtype):
    codes, _, scales, weight = random_matrix(case.outputs, case.inputs, scale_dtype)
    x, out = random_rows(m, case.inputs).to(case.device).requires_grad_(), random_rows(m, case.outputs, seed=1)
    linear_from(codes.to(case.device), scales.to(case.device), torch.bfloat16)(x).backward(out.to(case.device))
    exact, terms = out.double() @ weight.double(), out.double().abs() @ weight.double().abs()
    assert_rounded_to_bfloat16(x.grad, exact, terms, BFLOAT16_SUM)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_rows_of_the_embedding_to_the_bit(case, scale_dtype, dtype):
    _, rows, _, _ = random_matrix(case.outputs, case.inputs, scale_dtype)
    scales = wild_scales(case, scale_dtype)
    ids = torch.tensor([0, 15, 16, 39, case.outputs - 1, 0, 1, 2, 3, 4, 7])
    packed: Packed = case.backend.pack(rows.to(case.device), scales.to(case.device))
    assert_same(case.backend.embedding(ids.to(case.device), packed, dtype), dequantize(rows, scales, dtype)[ids])
    assert case.backend.embedding(ids[:0].to(case.device), packed, dtype).shape == (0, case.inputs)


def test_embedding_and_head_share_their_storage(case):
    _, _, scales, weight = random_matrix(case.outputs, case.inputs, torch.bfloat16)
    device = case.device
    embedding = embedding_from_plain(weight.bfloat16().to(device), scales.to(device), torch.bfloat16, embed_scale=8.0)
    assert embedding.backend is case.backend
    ids, head = torch.tensor([[5, 0], [39, 5]]), Int4LMHead(embedding)
    assert list(head.state_dict()) == []
    assert_same(embedding(ids.to(device)), weight[ids].bfloat16() * 8)
    x = random_rows(2, case.inputs)
    terms = x.double().abs() @ weight.double().abs().T
    assert_rounded_to_bfloat16(head(x.to(device)), x.double() @ weight.double().T, terms, BFLOAT16_SUM)


@pytest.mark.parametrize("m", [1, 40])
def test_compiled_in_one_graph_equals_eager(case, m):
    codes, _, scales, weight = random_matrix(case.outputs, case.inputs, torch.bfloat16)
    linear = linear_from(codes.to(case.device), scales.to(case.device), torch.bfloat16)
    embedding = embedding_from_plain(weight.bfloat16(), scales, torch.bfloat16, embed_scale=1.0).to(case.device)

    def model(ids):
        return linear(embedding(ids))

    ids = torch.arange(m, device=case.device)
    with torch.no_grad():
        assert_same(torch.compile(model, fullgraph=True, backend="aot_eager")(ids), model(ids))


@pytest.mark.parametrize("m", [1, 40])
def test_a_compiled_gradient_equals_the_eager_one(case, m):
    codes, _, scales, _ = random_matrix(case.outputs, case.inputs, torch.bfloat16)
    linear = linear_from(codes.to(case.device), scales.to(case.device), torch.bfloat16)
    gradients = []
    for run in (linear, torch.compile(linear, fullgraph=True, backend="aot_eager")):
        x = random_rows(m, case.inputs).to(case.device).requires_grad_()
        run(x).sum().backward()
        gradients.append(x.grad)
    assert_same(*gradients)
