"""The GPU backend: its kernels against float64, its layout element by element, and who gets to use it.

With a GPU the kernels run there. Without, `test_kernels_in_tritons_interpreter` runs this file, the contract of all
backends and their proof a second time in a process of its own, where TRITON_INTERPRET=1 is set before anything imports
triton, and the kernels run as NumPy:

    TRITON_INTERPRET=1 python -m pytest tests/modeling/test_int4_gpu.py
"""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from gemma3_int4 import (
    int4_backend,
    int4_codes,
    int4_fused,
    int4_gpu_fused,
    int4_gpu_triton,
    int4_gpu_tuning,
    int4_layers,
)
from gemma3_int4.int4_backend import choose_backend
from gemma3_int4.int4_codes import Reference, dequantize
from gemma3_int4.int4_gpu_triton import Triton
from gemma3_int4.int4_gpu_tuning import Dequantize, ManyRows, OneRow
from peft import LoraConfig, get_peft_model
from transformers import DynamicCache, StaticCache
from transformers.dynamic_module_utils import get_imports, get_relative_import_files
from transformers.models.gemma3 import modeling_gemma3 as stock

from tests.conftest import ROOT
from tests.modeling.matrices import DTYPES, linear_from, random_matrix, random_rows
from tests.modeling.triton_kernels import CUDA, DEVICE, INTERPRETED, PLANS, on_kernels, patch_interpreter

SHAPES = [(40, 96), (24, 288), (20, 160)]
BACKENDS = {torch.bfloat16: Triton, torch.float32: Reference}


@pytest.fixture(autouse=True)
def true_bfloat16(monkeypatch):
    patch_interpreter(monkeypatch)


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that a kernel forgets to write is NaN, and memory beside a tensor that it should not read is, too."""
    empty = torch.empty

    def nan(*size, **kwargs):
        tensor = empty(*size, **kwargs)
        return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", nan)


@pytest.fixture
def triton_everywhere(monkeypatch):
    """The backend for bfloat16 on this device, with blocks that suit tiny matrices."""
    for module in (int4_backend, int4_layers):  # the first is asked by benchmarks.gpu.models
        monkeypatch.setattr(module, "choose_backend", lambda _, dtype, *shape: BACKENDS[dtype])
    monkeypatch.setattr(int4_gpu_triton, "_plan", lambda m, n, k, device: PLANS[0] if m == 1 else PLANS[3])


def matrix(outputs: int, inputs: int, scale_dtype: torch.dtype, seed: int = 0):
    """The backend's tensors, and the weight that they are, in float64."""
    _, rows, scales, _ = random_matrix(outputs, inputs, scale_dtype, seed)
    weight = dequantize(rows, scales, torch.float32).double()
    return Triton.pack(rows.to(DEVICE), scales.to(DEVICE)), weight


def assert_close(y: torch.Tensor, exact: torch.Tensor) -> None:
    """||y - exact|| / ||exact|| < 1e-2, and no element off by more than 2 bfloat16 ulp of its row's largest."""
    assert y.dtype == torch.bfloat16
    error = (y.cpu().double() - exact).abs()
    assert error.norm() < 1e-2 * exact.norm()
    ulp = torch.exp2(exact.abs().amax(dim=1, keepdim=True).log2().floor() - 7)
    assert (error <= 2 * ulp).all()


# Layout


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_layout_word_by_word(shape, scale_dtype, monkeypatch):
    monkeypatch.setattr(int4_codes, "BLOCK_WEIGHTS", 3000)  # several blocks of rows, the last of them smaller
    codes, rows, scales, _ = random_matrix(*shape, scale_dtype)
    packed = Triton.pack(rows, scales)
    expected = np.zeros((shape[0], shape[1] // 8), dtype=np.uint32)
    for (n, k), code in np.ndenumerate(codes.numpy()):
        group, nibble, word = k // 32, k % 32 // 4, k % 4
        expected[n, 4 * group + word] |= np.uint32(code + 8) << np.uint32(4 * nibble)
    assert torch.equal(packed["group_codes"], torch.from_numpy(expected.view(np.int32)))
    assert packed["group_scales"].dtype == scale_dtype
    assert torch.equal(packed["group_scales"], scales)


# Kernels


@on_kernels
@pytest.mark.parametrize(("shape", "scale_dtype"), zip(SHAPES, DTYPES, strict=True))
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_every_plan_against_float64(plan, shape, scale_dtype, poisoned):
    packed, weight = matrix(*shape, scale_dtype, seed=shape[0])
    x = random_rows(1 if isinstance(plan, OneRow) else 19, shape[1], seed=shape[1])
    y = int4_gpu_triton.run_plan(plan, x.to(DEVICE), *([tensor] for tensor in packed.values()))
    assert_close(y, x.double() @ weight.T)


@on_kernels
@pytest.mark.parametrize(("of_x", "of_scales"), [(2.0**41, 1), (2.0**-60, 1), (1, 2.0**40), (1, 2.0**-50)])
@pytest.mark.parametrize("plan", [PLANS[0], PLANS[3]], ids=str)
def test_the_largest_and_smallest_numbers(plan, of_x, of_scales):
    """The kernels read codes as denormal floats: what makes up for it must neither overflow nor be lost."""
    _, rows, scales, _ = random_matrix(24, 288, torch.float32)
    scales *= of_scales / scales.max()
    packed = Triton.pack(rows.to(DEVICE), scales.to(DEVICE))
    x = random_rows(1 if isinstance(plan, OneRow) else 5, 288)
    x *= of_x / x.abs().max()
    y = int4_gpu_triton.run_plan(plan, x.to(DEVICE), *([tensor] for tensor in packed.values()))
    assert_close(y, x.double() @ dequantize(rows, scales, torch.float32).double().T)


@on_kernels
@pytest.mark.parametrize("outputs", [(24, 40), (40, 8, 24), (8, 64, 16)], ids=str)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_matrices_that_share_an_input_in_one_launch(plan, outputs, poisoned):
    packed, weights = zip(*(matrix(n, 160, torch.float16, seed=n) for n in outputs), strict=True)
    codes, scales = ([tensors[name] for tensors in packed] for name in ("group_codes", "group_scales"))
    x = random_rows(1 if isinstance(plan, OneRow) else 19, 160)
    y = int4_gpu_triton.run_plan(plan, x.to(DEVICE), codes, scales)
    for part, weight, *tensors in zip(y.split(outputs, dim=1), weights, codes, scales, strict=True):
        assert_close(part, x.double() @ weight.T)
        alone = int4_gpu_triton.run_plan(plan, x.to(DEVICE), *([tensor] for tensor in tensors))
        assert torch.equal(part, alone)  # the sums are in the same order


@on_kernels
@pytest.mark.parametrize("m", range(1, 65))
def test_every_number_of_rows(m, poisoned):
    packed, weight = matrix(24, 96, DTYPES[m % 3], seed=m)
    x = random_rows(m, 96, seed=m)
    for plan in [OneRow(16, 32, 1, 3)] if m == 1 else [ManyRows(32, 32, 1, 4, 2, m % 2 == 0)]:
        y = int4_gpu_triton.run_plan(plan, x.to(DEVICE), *([tensor] for tensor in packed.values()))
        assert_close(y, x.double() @ weight.T)


@on_kernels
def test_an_id_outside_the_vocabulary_gives_nan():
    packed, _ = matrix(48, 64, torch.bfloat16)
    rows = Triton.embedding(torch.tensor([3, 48, -1, 1 << 40]).to(DEVICE), packed, torch.bfloat16)
    assert rows.isnan().all(dim=1).tolist() == [False, True, True, True]


@on_kernels
def test_spikes_of_the_residual_that_overflow_float16(triton_everywhere):
    """Gemma 3's residual reaches some 100,000, its norms' weights some hundred: an MLP with both, against float64."""
    generator = torch.Generator().manual_seed(3)
    residual = torch.randn(4, 64, generator=generator)
    residual[:, 7] = 3e5
    norm = 1 + 200 * torch.rand(64, generator=generator)
    up, down = (random_matrix(*shape, torch.bfloat16, seed=shape[0]) for shape in [(96, 64), (64, 96)])

    def mlp(residual, norm, up, down):
        normed = residual * residual.pow(2).mean(-1, keepdim=True).rsqrt() * norm
        hidden = up(normed)
        return residual + down(hidden * hidden)

    linears = [linear_from(codes, scales, torch.bfloat16).to(DEVICE) for codes, _, scales, _ in (up, down)]
    y = mlp(residual.bfloat16().to(DEVICE), norm.bfloat16().to(DEVICE), *linears)
    dense = [lambda x, w=w: x @ w.to(x).T for *_, w in (up, down)]
    exact = mlp(residual.bfloat16().double(), norm.bfloat16().double(), *dense)
    assert exact.abs().max() > 2 * torch.finfo(torch.float16).max
    assert y.isfinite().all()
    assert (y.cpu().double() - exact).norm() < 2e-2 * exact.norm()
    assert not mlp(residual.half(), norm.half(), *dense).isfinite().all()


# Between the products


@on_kernels
@pytest.mark.parametrize("shape", [(1, 96), (3, 5, 640)], ids=str)
def test_norm_rounds_once(shape, poisoned):
    x, gain = 30 * random_rows(math.prod(shape[:-1]), shape[-1]).view(shape), random_rows(1, shape[-1], seed=1)[0]
    y = int4_gpu_triton.rms_norm(x.to(DEVICE), gain.to(DEVICE), 1e-6).cpu()
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + gain.double())
    assert ((y.double() - exact).abs() <= exact.abs() * (2**-8 + 1e-5)).all()


@on_kernels
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("head_dim", [32, 48])
def test_norm_and_position_of_the_heads(batch, head_dim, poisoned):
    queries, keys, length = 4, 2, 3
    projected = random_rows(batch * length, (queries + 2 * keys) * head_dim).view(batch, length, -1, head_dim)
    gains = random_rows(2, head_dim, seed=1)
    angle = torch.rand(1, length, head_dim // 2).repeat(1, 1, 2) * 6
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()
    arguments = (projected, queries, keys, *gains, cos, sin)
    found = int4_gpu_triton.heads(*(a.to(DEVICE) if isinstance(a, torch.Tensor) else a for a in arguments), 1e-6)
    norms = [stock.Gemma3RMSNorm(head_dim) for _ in range(2)]
    for norm, gain in zip(norms, gains, strict=True):
        norm.weight.data = gain.float()
    parts = projected.float().transpose(1, 2).split([queries, keys, keys], dim=1)
    with torch.no_grad():
        normed = [norm(part) for norm, part in zip(norms, parts, strict=False)]
    for y, exact in zip(found, stock.apply_rotary_pos_emb(*normed, cos.float(), sin.float()), strict=True):
        assert_close(y.transpose(1, 2).reshape(-1, head_dim), exact.reshape(-1, head_dim).double())


@on_kernels
def test_gated_is_gelu_times_up(poisoned):
    both = 4 * random_rows(3, 2 * 1100)
    both[0, :4] = torch.tensor([-300.0, 300.0, -0.0, 1e-30])
    gate, up = both.double().chunk(2, dim=1)
    exact = torch.nn.functional.gelu(gate, approximate="tanh").bfloat16().double() * up
    y = int4_gpu_triton.gated(both.to(DEVICE)).cpu()
    assert ((y.double() - exact).abs() <= exact.abs() * 2**-7 + 1e-4).all()


# Whole models, whose projections of one input are one launch


@pytest.fixture
def whole_models(triton_everywhere, monkeypatch):
    """All kernels on this device, with large blocks: the interpreter's time is by block."""
    few, many = OneRow(128, 4, 4, 3), ManyRows(128, 16, 1, 4, 2, False)
    monkeypatch.setattr(int4_gpu_triton, "_plan", lambda m, n, k, device: few if m == 1 else many)
    monkeypatch.setattr(int4_gpu_fused, "DEVICE_TYPE", DEVICE.type)


@pytest.fixture
def model(whole_models):
    from benchmarks.gpu.models import int4_model
    from benchmarks.gpu.products import TINY

    return int4_model(TINY, DEVICE)


@pytest.fixture
def launches(monkeypatch):
    """A list that grows with every product: of how many matrices it is."""
    counts, linears = [], int4_gpu_triton._linears
    monkeypatch.setattr(int4_gpu_triton, "_linears", lambda x, q, s: counts.append(len(q)) or linears(x, q, s))
    return counts


@pytest.fixture
def between(monkeypatch):
    """Counts the kernels between the products, by name."""
    counts = Counter()

    def counted(name: str, function):
        return lambda *arguments: counts.update([name]) or function(*arguments)

    for name in ("rms_norm", "heads", "gated"):
        monkeypatch.setattr(int4_gpu_fused, name, counted(name, getattr(int4_gpu_fused, name)))
    return counts


@torch.no_grad()
def step_by_step(model, cache=None) -> torch.Tensor:
    """Logits of a prompt of five tokens and after each of two more, [7, V]."""
    cache = cache or DynamicCache(config=model.config)
    ids = torch.tensor([[7, 300, 12, 99, 250, 41, 5]], device=DEVICE)
    parts = [model(part, past_key_values=cache).logits[0] for part in ids.split([5, 1, 1], dim=1)]
    return torch.cat(parts).float().cpu()


def unfused(model):
    for module in model.modules():
        module.__class__ = int4_fused.ORIGINAL.get(type(module), type(module))
    return model


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for bfloat16 rounding."""
    assert (found - expected).norm() < 0.02 * expected.norm()


@on_kernels
def test_a_fused_model_computes_as_the_stock_modules(model, launches, between):
    names = list(model.state_dict())
    nbytes = model.int4_bytes
    found = step_by_step(model)
    assert launches == 3 * ([3, 1, 2, 1] * 2 + [1])  # q k v, o, gate up, down; the head
    assert between == {"rms_norm": 3 * (4 * 2 + 1), "heads": 3 * 2, "gated": 3 * 2}
    assert (list(model.state_dict()), model.int4_bytes) == (names, nbytes)
    assert_same(step_by_step(model, StaticCache(config=model.config, max_cache_len=16)), found)
    launches.clear()
    between.clear()
    assert_same(step_by_step(unfused(model)), found)
    assert set(launches) == {1}
    assert not between
    assert list(model.state_dict()) == names


@on_kernels
def test_a_compiled_model_is_one_graph_with_joint_products(model, monkeypatch):
    expected = step_by_step(model)
    counts, op = [], int4_gpu_triton._linears_op
    monkeypatch.setattr(int4_gpu_triton, "_linears_op", lambda x, q, s: counts.append(len(q)) or op(x, q, s))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    compiled.config = model.config
    assert_same(step_by_step(compiled, StaticCache(config=model.config, max_cache_len=16)), expected)
    assert {2, 3} <= set(counts)


@on_kernels
def test_adapters_are_computed(model, launches):
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"], layers_to_transform=[0], r=4)).eval()
    plain = step_by_step(adapted)
    launches.clear()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    found = step_by_step(adapted)
    assert launches == 3 * ([1, 1, 1, 1, 2, 1] + [3, 1, 2, 1] + [1])
    assert (found - plain).norm() > 0.05 * plain.norm()
    assert_same(step_by_step(unfused(adapted)), found)


@on_kernels
def test_hooks_are_called_and_gradients_are_not_fused(model, launches):
    layer, seen = model.model.layers[0], []
    watched = [layer.self_attn.k_proj, layer.self_attn.q_norm, layer.mlp.up_proj, layer.mlp.act_fn, layer.self_attn]
    handles = [module.register_forward_hook(lambda module, *_: seen.append(module)) for module in watched]
    found = step_by_step(model)
    assert all(seen.count(module) == 3 for module in watched)
    for handle in handles:
        handle.remove()
    assert_same(step_by_step(model), found)
    launches.clear()
    model(torch.tensor([[7, 300]], device=DEVICE))  # gradients enabled
    assert set(launches) == {1}


@on_kernels
def test_each_move_chooses_the_classes_anew(model):
    fused, layer = type(model.model.norm), model.model.layers[0]
    assert fused is int4_gpu_fused.Gemma3RMSNorm
    expected = step_by_step(model)
    assert_same(step_by_step(model.float()), expected)
    assert (type(layer.mlp), type(model.model.norm)) == (stock.Gemma3MLP, stock.Gemma3RMSNorm)
    assert_same(step_by_step(model.bfloat16()), expected)
    assert (type(layer.self_attn), type(model.model.norm)) == (int4_gpu_fused.Gemma3Attention, fused)


# Compiling


@pytest.mark.skipif(INTERPRETED or not int4_gpu_triton.HAS_TRITON, reason="needs triton's compiler")
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_from_ampere_to_blackwell(capability):
    """No GPU needed: down to machine code, with shared memory that the smallest of these GPUs has (99 KB)."""
    import triton
    from gemma3_int4.int4_gpu_kernels import many_rows_kernel, one_row_kernel
    from triton.backends.compiler import GPUTarget

    pointers = {"x": "*bf16", "y": "*bf16"}
    for name in "abc":
        pointers |= {f"codes_{name}": "*i32", f"scales_{name}": "*fp16", f"outputs_{name}": "i32"}
    for rows in (1, 16, 32, 64):
        plan = int4_gpu_tuning.by_rule(rows, 8192, 5376, divmod(capability, 10), 132)
        if isinstance(plan, OneRow):
            kernel = one_row_kernel
            blocks = {"INPUTS": 5376, "BLOCK_N": plan.block_n, "BLOCK_G": plan.block_g, "STAGES": plan.num_stages}
        else:
            kernel = many_rows_kernel
            blocks = {"INPUTS": 5376, "PERMUTED": plan.permuted, "SPLIT_K": 1}
            blocks |= {"BLOCK_N": plan.block_n, "BLOCK_M": plan.block_m}
        types = pointers | {"rows": "i32"} | dict.fromkeys(blocks, "constexpr")
        signature = {name: types[name] for name in kernel.arg_names}
        constants = {(kernel.arg_names.index(name),): value for name, value in blocks.items()}
        aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind != "constexpr"}
        source = triton.compiler.ASTSource(kernel, signature, constants, aligned)
        options = {"num_warps": plan.num_warps, "num_stages": plan.num_stages, "enable_fp_fusion": False}
        compiled = triton.compile(source, GPUTarget("cuda", capability, 32), options)
        assert compiled.metadata.shared <= 99 << 10
        assert len(compiled.asm["cubin"]) > 1000
        assert ".ftz" not in compiled.asm["ptx"]  # which would flush the codes, denormal floats, to zero
        assert compiled.asm["ptx"].count("fma.rn.f32") >= 64  # one instruction a weight, whatever Triton does unasked
        assert "tcgen05" not in compiled.asm["ptx"]  # Blackwell's tensor memory: three times the instructions
        # weights stay in registers; if not, the warps wait for each other at each of the eight products, 15 times more
        assert compiled.asm["ptx"].count("bar.sync") < 19


# Operators


@on_kernels
def test_operators_keep_their_contracts(triton_everywhere):
    packed, _ = matrix(24, 64, torch.bfloat16)
    codes, scales = packed.values()
    checks = ("test_schema", "test_faketensor")
    for m in (0, 3):
        x = random_rows(m, 64).to(DEVICE)
        for count in (1, 2, 3):
            arguments = (x, [codes] * count, [scales] * count)
            torch.library.opcheck(int4_gpu_triton._linears_op, arguments, test_utils=checks)
    torch.library.opcheck(int4_gpu_triton._dequantize_op, (codes, scales, 3, 9, torch.float32), test_utils=checks)
    ids = torch.tensor([1, 2], device=DEVICE)
    torch.library.opcheck(int4_gpu_triton._embedding_op, (ids, codes, scales, torch.bfloat16), test_utils=checks)


def another_copy(name: str, module: str) -> ModuleType:
    """One of our modules once more, from another package, as of another revision of a repo."""
    package = sys.modules[name] = ModuleType(name)
    package.__path__ = [str(ROOT)]
    return importlib.import_module(f"{name}.{module}")


def test_a_second_import_registers_operators_of_its_own():
    second = another_copy("second_revision", "int4_gpu_triton")
    assert second._linears_op._qualname != int4_gpu_triton._linears_op._qualname
    with torch.device("meta"):
        x, codes, scales = torch.empty(3, 64).bfloat16(), torch.empty(24, 8).int(), torch.empty(24, 2)
    assert second._linears_op(x, [codes, codes], [scales, scales]).shape == (3, 48)


# Choosing


@pytest.fixture
def a_gpu(monkeypatch, tmp_path):
    """A GPU, and a compiler, as far as choosing goes; `capability` may be changed."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    gpu = SimpleNamespace(capability=(9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpu.capability)
    monkeypatch.setattr(int4_gpu_triton, "HAS_TRITON", True)
    monkeypatch.setenv("CC", "cc")
    return gpu


@pytest.mark.parametrize(("capability", "fits"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)])
def test_from_ampere_on_in_bfloat16_only(a_gpu, capability, fits):
    a_gpu.capability = capability
    reason = Triton.why_not(CUDA, torch.bfloat16, 64, 64)
    assert reason is None if fits else "older than Ampere" in reason
    assert "bfloat16" in Triton.why_not(CUDA, torch.float32, 64, 64)
    assert "NVIDIA" in Triton.why_not(torch.device("cpu"), torch.bfloat16, 64, 64)


def test_without_triton_or_a_compiler_or_on_amd_another_backend(a_gpu, monkeypatch):
    monkeypatch.setenv("GEMMA3_INT4_BACKEND", "triton")
    assert choose_backend(CUDA, torch.bfloat16, 64, 64) is Triton
    assert reasons_without(monkeypatch, torch.version, "cuda", None) == "runs on NVIDIA GPUs"
    assert "header files" in reasons_without(monkeypatch, sysconfig, "get_path", lambda *_: "no/such/folder")
    assert reasons_without(monkeypatch, int4_gpu_triton, "HAS_TRITON", False) == "triton is not installed"
    monkeypatch.delenv("CC")
    assert "C compiler" in reasons_without(monkeypatch, shutil, "which", lambda name: None)


def reasons_without(monkeypatch, owner, name: str, value) -> str:
    """Why Triton's backend is not chosen where this is so."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, value)
        assert choose_backend(CUDA, torch.bfloat16, 64, 64) is not Triton
        return Triton.why_not(CUDA, torch.bfloat16, 64, 64)


def test_only_on_request(a_gpu, monkeypatch):
    monkeypatch.delenv("GEMMA3_INT4_BACKEND", raising=False)
    assert choose_backend(CUDA, torch.bfloat16, 64, 64) is Reference


def test_transformers_finds_all_files_and_asks_for_no_package():
    files = {Path(file).stem for file in get_relative_import_files(ROOT / "modeling_gemma3_int4.py")}
    assert {"int4_gpu_triton", "int4_gpu_kernels", "int4_gpu_tuning"} <= files
    for file in files:
        assert "triton" not in get_imports(ROOT / f"{file}.py")


def test_importing_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert not another_copy("without_triton", "int4_gpu_triton").HAS_TRITON


@pytest.mark.parametrize("inputs", [64, 640, 5376, 21504])
@pytest.mark.parametrize("outputs", [8, 256, 5376, 262208])
def test_the_rule_gives_plans_that_every_gpu_can_run(outputs, inputs):
    for rows in (1, 2, 16, 17, 33, 64, 100, 512, 513, 8192):
        plan = int4_gpu_tuning.choose(rows, outputs, inputs, (8, 6), 84)
        assert isinstance(plan, OneRow) == (rows == 1)
        assert isinstance(plan, Dequantize) == (rows > 512)
        if isinstance(plan, ManyRows):
            activations, words = 8 * 32 * plan.block_m * 2, 32 * plan.block_n * 4
            assert plan.num_stages * (activations + words) <= 90 << 10
            assert 1 <= plan.split_k <= max(inputs // 256, 1)


def test_tables_go_by_capability_and_nearest_shape(monkeypatch):
    few, many = OneRow(1, 32, 1, 3), Dequantize(7)
    other = [(math.inf, Dequantize(8))]
    tables = {(9, 0): {(4096, 5376): [(1, few), (math.inf, many)], (5376, 21504): other}}
    monkeypatch.setattr(int4_gpu_tuning, "TABLES", tables)
    assert int4_gpu_tuning.choose(1, 4096, 5376, (9, 0), 132) == few
    assert int4_gpu_tuning.choose(2, 4000, 5000, (9, 0), 132) == many
    assert int4_gpu_tuning.choose(1, 5376, 20000, (9, 0), 132) == Dequantize(8)
    assert int4_gpu_tuning.choose(1, 4096, 5376, (8, 0), 108) == int4_gpu_tuning.by_rule(1, 4096, 5376, (8, 0), 108)


def test_measured_tables_are_complete():
    for table in int4_gpu_tuning.TABLES.values():
        for steps in table.values():
            limits = [up_to for up_to, _ in steps]
            assert limits == sorted(limits)
            assert limits[-1] == math.inf
            assert all(up_to == 1 for up_to, plan in steps if isinstance(plan, OneRow))


# Benchmarks


@on_kernels
def test_a_whole_model_prefills_and_decodes_as_the_reference_does(model):
    assert model.int4_backend == "triton"
    ids = torch.randint(3, 500, (1, 6), device=DEVICE)
    new = model.generate(ids, max_new_tokens=3, do_sample=False, cache_implementation="static")
    with torch.no_grad():
        logits = model(new).logits.float()
        for matrix in model.modules():
            if isinstance(matrix, int4_layers._Int4Matrix):
                matrix._hold(torch.bfloat16, Reference, Reference.pack(*matrix.codes_and_scales()))
        expected = model(new).logits.float()
    assert model.int4_backend == "reference"
    assert (logits - expected).norm() < 2e-2 * expected.norm()
    chosen = expected[0, 5:8].gather(1, new[0, 6:].unsqueeze(1)).squeeze(1)
    assert (expected[0, 5:8].amax(dim=1) - chosen < 0.1).all()  # greedy, but for near-ties


def benchmark(arguments: str, out: Path, monkeypatch) -> list[dict]:
    """What `python -m benchmarks.bench_gpu` writes, run in this process on tiny shapes on the CPU."""
    from benchmarks import bench_gpu

    monkeypatch.setenv("GEMMA3_INT4_BACKEND", "triton")
    monkeypatch.setattr(int4_backend, "choose_backend", int4_layers.choose_backend)
    monkeypatch.setattr(sys, "argv", f"bench_gpu {arguments} --tiny --device cpu --out {out}".split())
    bench_gpu.main()
    return [json.loads(line) for line in out.read_text().splitlines()]


@on_kernels
@pytest.mark.skipif(DEVICE == CUDA, reason="run benchmarks.bench_gpu")
def test_the_benchmark_of_the_kernels_runs(whole_models, monkeypatch, tmp_path):
    lines = benchmark("kernels --peers cublas", tmp_path / "lines", monkeypatch)
    kernels = [line for line in lines if line["part"] == "kernels"]
    assert {(line["projection"], line["rows"]) for line in kernels} == {
        (projection, rows) for projection in ("q, k, v", "o", "gate, up", "down", "head") for rows in (1, 5)
    }
    assert all(line["backend"] == "triton" and line["error"] < 1e-2 for line in kernels)


@pytest.mark.skipif(INTERPRETED or DEVICE == CUDA, reason="needs no kernels")
@pytest.mark.parametrize("part", ["prefill", "decode"])
def test_the_benchmarks_of_whole_models_run(part, monkeypatch, tmp_path):
    lines = [line for line in benchmark(part, tmp_path / "lines", monkeypatch) if line["part"] == part]
    assert {line["model"] for line in lines} == {"int4", "bf16"}
    assert all(line["tokens_per_s"] > 0 for line in lines)


def test_steps_are_timed_from_one_token_to_the_next(monkeypatch):
    from benchmarks.gpu import generation

    moments = iter([10.0, 12.0, 12.5, 13.5])
    monkeypatch.setattr(generation.time, "perf_counter", lambda: next(moments))
    times = generation.StepTimes()
    for tokens in (torch.zeros(1, 20), *torch.zeros(3, 1)):  # the prompt, then one token each
        times.put(tokens)
    assert times.steps == [2.0, 0.5, 1.0]


@on_kernels
@pytest.mark.skipif(DEVICE == CUDA, reason="times real candidates: run benchmarks.tune_gpu")
def test_tuning_checks_every_plan_and_writes_a_module_that_reads_back(triton_everywhere, monkeypatch, tmp_path):
    from benchmarks.gpu import tuning

    timed = []

    class Clock:
        device = DEVICE

        def copies(self, nbytes):
            return 2

        def seconds(self, calls):
            timed.append(len(calls))
            return 1 / len(timed)  # the last candidate is the fastest

    slow = OneRow(16, 32, 1, 3)
    ways = {1: [slow, PLANS[0]], 2: [PLANS[2], PLANS[3]], 4: [PLANS[2], PLANS[3]], 64: [PLANS[4], Dequantize(3000)]}
    monkeypatch.setattr(tuning, "ROWS", tuple(ways))
    monkeypatch.setattr(tuning, "candidates", lambda rows, inputs: ways[rows])
    steps = tuning.tune_shape((24, 288), math.inf, Clock())
    assert steps == [(1, PLANS[0]), (4, PLANS[3]), (math.inf, Dequantize(3000))]
    assert timed == [2] * 8
    known = {(8, 0): {(8, 32): steps}, (9, 0): {(8, 32): steps}}
    monkeypatch.setattr(tuning.int4_gpu_tuning, "TABLES", known)
    tuning.write_table(tmp_path / "written.py", (9, 0), {(24, 288): steps}, "a GPU")
    spec = importlib.util.spec_from_file_location("gemma3_int4.written", tmp_path / "written.py")
    written = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(written)
    tables = written.TABLES
    assert tables == {(8, 0): {(8, 32): steps}, (9, 0): {(8, 32): steps, (24, 288): steps}}
    assert written.choose(3, 24, 288, (9, 0), 1) == PLANS[3]


@on_kernels
def test_tuning_refuses_a_plan_that_is_wrong(monkeypatch):
    from benchmarks.gpu import tuning

    packed, _ = matrix(24, 64, torch.bfloat16)
    x, other = random_rows(1, 64).to(DEVICE), random_matrix(24, 64, torch.bfloat16, seed=9)
    with pytest.raises(RuntimeError, match="is wrong"):
        tuning.runs(PLANS[0], x, packed, other[1].to(DEVICE), other[2].to(DEVICE))


@pytest.mark.parametrize("inputs", [640, 1152, 5376, 21504])
def test_candidates_exist_for_every_number_of_rows(inputs):
    tuning = pytest.importorskip("benchmarks.gpu.tuning", exc_type=ImportError)
    for rows in tuning.ROWS:
        plans = list(tuning.candidates(rows, inputs))
        assert len(plans) == len(set(plans)) >= 3
        assert all(isinstance(plan, OneRow) == (rows == 1) for plan in plans)


# The process of its own


@pytest.mark.skipif(INTERPRETED or DEVICE == CUDA, reason="the kernels run in this very process")
@pytest.mark.skipif(not int4_gpu_triton.HAS_TRITON, reason="needs triton")
@pytest.mark.timeout(1200)  # three minutes on a quiet machine
def test_kernels_in_tritons_interpreter():
    others = [Path(__file__).with_name(f"test_{name}.py") for name in ("backend_contract", "int4_gpu_proof")]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        __file__,
        *others,
        "-k",
        "(gpu or triton) and not aten",
    ]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "passed" in run.stdout
