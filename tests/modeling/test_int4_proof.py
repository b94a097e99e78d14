"""The proof of backends: what is right, what is noticed, what is chosen, and what a process may die of."""

import importlib
import importlib.util
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from gemma3_int4 import int4_backend, int4_proof, int4_record, int4_trial
from gemma3_int4.int4_codes import Reference
from gemma3_int4.int4_cpu_aten import AtenCpu
from gemma3_int4.int4_proof import Choice, Sample, Verdict, choose, examine, with_gemm
from gemma3_int4.modeling_gemma3_int4 import Gemma3ForCausalLM, weight_files

from tests.conftest import ROOT
from tests.modeling.matrices import DTYPES, random_matrix, random_rows
from tests.modeling.test_int4_backend import warned  # noqa: F401

CPU = torch.device("cpu")
BROKEN = ROOT / "tests" / "modeling" / "broken_backends.py"


def load_broken(package: str) -> ModuleType:
    """`broken_backends.py` as one of a package's files."""
    spec = importlib.util.spec_from_file_location(f"{package}.broken_backends", BROKEN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


broken = load_broken("gemma3_int4")


def sample(outputs: int = 264, inputs: int = 128, scale_dtype: torch.dtype = torch.bfloat16, times: int = 1) -> Sample:
    _, rows, scales, _ = random_matrix(min(outputs, int4_proof.PERIOD), inputs, scale_dtype)
    return Sample(outputs, inputs, times, rows, scales)


# Right or wrong


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_reference_is_right(dtype, scale_dtype):
    for shape in [(264, 128), (8, 32), (1000, 96)]:
        verdict = examine(Reference, sample(*shape, scale_dtype), CPU, dtype)
        assert (verdict.state, verdict.why) == ("right", "")
        assert 0 < verdict.error <= 1
        assert set(verdict.seconds) == set(int4_proof.ROWS)
        assert not verdict.gemm_seconds


@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_so_is_pytorchs_operator(scale_dtype):
    assert examine(AtenCpu, sample(384, 128, scale_dtype), CPU, torch.bfloat16).state == "right"
    assert examine(AtenCpu, sample(384, 128, scale_dtype), CPU, torch.float32).why == "computes in bfloat16"


def test_large_matrices_are_cut_and_keep_their_last_block(monkeypatch):
    monkeypatch.setattr(int4_proof, "MOST_WEIGHTS", 512 * 128)
    verdict = examine(Reference, sample(2000, 128), CPU, torch.bfloat16)
    assert verdict.state == "right"
    assert verdict.nbytes == (512 + 2000 % 256) * (64 + 4 * 2)


@pytest.mark.parametrize(
    ("backend", "state", "why"),
    [
        (broken.Wrong, "wrong", "product of 4 rows is off by"),
        (broken.WrongAt32, "wrong", "product of 32 rows is off by"),
        (broken.Unwritten, "wrong", "product of 1 row is off by nan times the bound"),
        (broken.WrongAgain, "wrong", "product of 1 row is off by"),
        (broken.Imprecise, "wrong", "product of 1 row has a relative error of"),
        (broken.WrongEmbedding, "wrong", "rows of the embedding"),
        (broken.WrongGradient, "wrong", "gradient of the input is off by"),
        (broken.Lossy, "wrong", "not what was packed"),
        (broken.Throwing, "failed", "RuntimeError: an illegal memory access was encountered"),
        (broken.Slow, "right", ""),
    ],
    ids=lambda case: getattr(case, "name", ""),
)
def test_what_is_broken_is_noticed(backend, state, why):
    verdict = examine(backend, sample(264, 512), CPU, torch.bfloat16)
    assert verdict.state == state
    assert why in verdict.why


def test_a_float32_product_in_less_than_float32_is_wrong():
    class Rounding(Reference):
        @staticmethod
        def linear(x, packed):  # as TensorFloat-32: 10 bits
            return Reference.linear((x.view(torch.int32) & ~0x1FFF).view(torch.float32), packed)

    assert examine(Rounding, sample(), CPU, torch.float32).state == "wrong"


def test_memory_is_filled_as_before_afterwards():
    examine(Reference, sample(), CPU, torch.bfloat16)
    assert not torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        examine(Reference, sample(), CPU, torch.bfloat16)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


# The choice


def right(name: str, one: float, many: float, gemm: dict | None = None, shape=(64, 64), times: int = 1) -> Verdict:
    seconds = {1: one, 4: one, 32: one, 512: many}
    return Verdict(name, *shape, times, "right", seconds=seconds, gemm_seconds=gemm or {}, nbytes=1)


def test_the_fastest_over_an_answer_is_chosen():
    verdicts = [right("triton", 1, 600), right("aten-gpu", 2, 100), right("reference", 9, 90)]
    assert choose(verdicts) == {(64, 64): Choice("aten-gpu")}  # 256 * 2 + 100
    verdicts[0] = right("triton", 1, 300)
    assert choose(verdicts) == {(64, 64): Choice("triton")}


def test_what_is_wrong_anywhere_is_used_nowhere():
    wrong = Verdict("triton", 32, 64, 1, "wrong", "off")
    verdicts = [right("triton", 1, 1), wrong, right("reference", 9, 9), right("reference", 9, 9, shape=(32, 64))]
    assert choose(verdicts) == {(64, 64): Choice("reference"), (32, 64): Choice("reference")}


def test_a_shape_that_the_fastest_cannot_multiply_goes_to_the_next():
    cannot = Verdict("triton", 33, 64, 1, "cannot", "wants outputs in 8s")
    other = [right("aten-gpu", 3, 3, shape=(33, 64)), right("reference", 9, 9, shape=(33, 64))]
    verdicts = [right("triton", 1, 1), right("aten-gpu", 3, 3), right("reference", 9, 9), cannot, *other]
    assert choose(verdicts) == {(64, 64): Choice("triton"), (33, 64): Choice("aten-gpu")}


def test_shapes_count_as_often_as_the_model_has_them():
    seldom = [right("triton", 1, 1, times=1), right("aten-gpu", 2, 2, times=1)]
    often = [right("triton", 3, 3, shape=(8, 32), times=9), right("aten-gpu", 2, 2, shape=(8, 32), times=9)]
    assert set(choose(seldom + often).values()) == {Choice("aten-gpu")}


@pytest.mark.parametrize(
    ("gemm", "rows"),
    [({32: 2, 512: 99}, 0), ({32: 2, 512: 50}, 512), ({32: 0.5, 512: 50}, 32), ({32: 0.5, 512: 100}, 0)],
)
def test_many_rows_go_to_the_gemm_where_that_is_faster(gemm, rows):
    assert choose([right("triton", 1, 100, gemm)]) == {(64, 64): Choice("triton", rows)}


def test_without_a_right_one_it_is_the_reference():
    verdicts = [Verdict(backend.name, 64, 64, 1, "failed", "no") for backend in int4_backend.BACKENDS]
    assert choose(verdicts) == {(64, 64): Choice("reference")}


def test_a_backend_with_the_devices_gemm_is_that_backend():
    _, rows, scales, weight = random_matrix(72, 64, torch.bfloat16)
    backend = with_gemm(broken.Throwing, 72, 5)
    assert issubclass(backend, broken.Throwing)
    assert backend.name == "throwing"
    y = backend.linear(random_rows(5, 64), backend.pack(rows, scales))
    assert torch.allclose(y.float(), random_rows(5, 64).float() @ weight.T, atol=0.02)
    with pytest.raises(RuntimeError, match="illegal"):
        backend.linear(random_rows(4, 64), backend.pack(rows, scales))
    assert pickle.loads(pickle.dumps(with_gemm(AtenCpu, 72, 5))) is with_gemm(AtenCpu, 72, 5)


def test_the_table_says_all():
    verdicts = [
        Verdict("triton", 64, 64, 1, "wrong", "the product of 4 rows is off by 3 times the bound"),
        right("aten-gpu", 2e-6, 4e-6, {32: 1e-6, 512: 1e-6}, times=3),
        right("reference", 9e-6, 9e-6, times=3),
    ]
    text = int4_proof.table(verdicts, choose(verdicts))
    assert "| triton | 1 of 64 x 64 | wrong: the product of 4 rows is off by 3 times the bound |" in text
    assert (
        "| aten-gpu | 3 of 64 x 64 | **chosen**, GEMM from 32 rows on | 0.00 | 0.0 | 6 | 6 | 6 | 12 | 3 | 3 |" in text
    )
    assert "| reference | 3 of 64 x 64 | right |" in text


# In a child process


@pytest.fixture
def files(tmp_path):
    """A copy of the modeling files whose backends are broken ones and the reference; gives how to import from it."""
    for file in ROOT.glob("int4_*.py"):
        shutil.copy(file, tmp_path)
    shutil.copy(BROKEN, tmp_path)
    packages = []

    def with_backends(*names: str) -> ModuleType:
        with (tmp_path / "int4_backend.py").open("a") as file:
            print("from . import broken_backends", file=file)
            print(f"BACKENDS = ({''.join(f'broken_backends.{name}, ' for name in names)} Reference)", file=file)
        name = f"broken_{len(names)}_{names[0].lower()}"
        package = sys.modules[name] = ModuleType(name)
        package.__path__ = [str(tmp_path)]
        packages.append(name)
        return importlib.import_module(f"{name}.int4_trial")

    yield with_backends
    for module in [module for module in sys.modules if module.partition(".")[0] in packages]:
        del sys.modules[module]


def test_what_crashes_or_throws_takes_nobody_with_it(files):
    trial = files("Crashing", "Throwing", "WrongAt32", "Slow")
    verdicts = trial.try_in_children([sample(16, 32), sample(24, 64)], CPU, torch.bfloat16)
    told = {verdict.backend: (verdict.state, verdict.why.partition(" (")[0]) for verdict in verdicts}
    assert told["crashing"] == ("failed", "the process that tried it died of SIGSEGV")
    assert told["throwing"] == ("failed", "RuntimeError: an illegal memory access was encountered")
    assert told["wrong-at-32-rows"][0] == "wrong"
    assert told["slow"] == told["reference"] == ("right", "")
    assert [(v.outputs, v.inputs) for v in verdicts if v.backend == "reference"] == [(16, 32), (24, 64)]


def test_what_hangs_is_given_up(files, monkeypatch):
    trial = files("Hanging")
    monkeypatch.setattr(trial, "SECONDS", 30)
    hanging, *others = trial.try_in_children([sample(16, 32)], CPU, torch.bfloat16)
    assert (hanging.backend, hanging.state) == ("hanging", "failed")
    assert hanging.why.startswith("no answer within 30 s")
    assert [verdict.backend for verdict in others] == ["reference"]


def test_a_child_that_cannot_start_is_a_verdict(files, monkeypatch):
    trial = files("Slow")
    monkeypatch.setattr(trial, "SCRIPT", "no/such/file.py")
    verdicts = trial.try_in_children([sample(16, 32)], CPU, torch.bfloat16)
    assert [verdict.state for verdict in verdicts] == ["failed", "failed"]
    assert all("no/such/file.py" in verdict.why for verdict in verdicts)
    monkeypatch.setattr(trial.sys, "executable", "no/such/python")
    verdicts = trial.try_in_children([sample(16, 32)], CPU, torch.bfloat16)
    assert all(verdict.why.startswith("no process could be started") for verdict in verdicts)


# A model


@pytest.fixture
def accelerator(monkeypatch, tmp_path):
    """The CPU as a device that needs a proof, made in this process, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GEMMA3_INT4_PROOF", "here")
    monkeypatch.delenv("GEMMA3_INT4_BACKEND", raising=False)
    for module in (int4_backend, int4_proof, int4_record):
        monkeypatch.setattr(module, "needs_proof", lambda device: True)
    monkeypatch.setattr(int4_backend, "_SETTLED", {})
    for name in ("_KNOWN", "_PROOFS"):
        monkeypatch.setattr(int4_record, name, {})
    return tmp_path / "cache" / "gemma3-int4" / "proofs"


@pytest.fixture
def tries(monkeypatch):
    """What was tried, as (backend, outputs, inputs), in tests that say it is to be tried in this process."""
    tried, try_one = [], int4_trial.examine

    def examine(backend, sample, *where):
        tried.append((backend.name, sample.outputs, sample.inputs))
        return try_one(backend, sample, *where)

    monkeypatch.setattr(int4_trial, "examine", examine)
    return tried


def load(repo, **kwargs):
    return Gemma3ForCausalLM.from_pretrained(repo.path, dtype=torch.bfloat16, **kwargs)


SHAPES = {(128, 128), (64, 128), (192, 128), (128, 192), (320, 128)}


def test_loading_proves_every_shape_once_and_keeps_it(text_repo, accelerator, tries):
    model = load(text_repo)
    assert {(outputs, inputs) for _, outputs, inputs in tries} == SHAPES
    assert {name for name, *_ in tries} == {backend.name for backend in int4_backend.BACKENDS}
    (record,) = accelerator.glob("*.json")
    expected = set(json.loads(record.read_text())["facts"])
    assert {"device", "torch", "triton", "files", "shapes"} < expected
    tries.clear()
    load(text_repo)  # known to this process
    int4_record._KNOWN.clear()
    again = load(text_repo)  # on record
    assert tries == []
    assert again.int4_backend == model.int4_backend
    assert again.int4_report == model.int4_report
    assert "| reference | all |" in model.int4_report
    assert "- proven: " in model.int4_report


def test_a_move_proves_too(text_repo, accelerator, tries):
    model = load(text_repo).float()
    assert model.int4_backend == "reference"
    assert {name for name, *_ in tries if name == "reference"}
    tries.clear()
    model.bfloat16()
    assert tries == []


@pytest.mark.parametrize("change", ["file", "damaged", "again"])
def test_what_may_have_changed_is_proven_again(change, text_repo, accelerator, tries, monkeypatch):
    load(text_repo)
    (record,) = accelerator.glob("*.json")
    tries.clear()
    int4_record._KNOWN.clear()
    if change == "file":
        monkeypatch.setattr(int4_record.platform, "python_version", lambda: "3.99")
    elif change == "damaged":
        record.write_text(record.read_text()[:100])
    else:
        monkeypatch.setenv("GEMMA3_INT4_PROOF", "again, here")
    load(text_repo)
    assert tries
    assert len(list(accelerator.glob("*.json"))) == 1 + (change == "file")
    tries.clear()
    int4_record._KNOWN.clear()
    monkeypatch.setenv("GEMMA3_INT4_PROOF", "here")
    load(text_repo)
    assert tries == []


@pytest.mark.parametrize("how", ["argument", "variable", "ZeroGPU"])
def test_nothing_is_proven_where_that_is_said(how, text_repo, accelerator, tries, monkeypatch, warned):  # noqa: F811
    if how == "ZeroGPU":
        monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    if how == "variable":
        monkeypatch.setenv("GEMMA3_INT4_PROOF", "skip")
    model = load(text_repo, **({"int4_proof": "skip"} if how == "argument" else {}))
    assert model.int4_backend == "reference"
    assert tries == []
    assert "by rule" in model.int4_report


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_a_named_backend_is_not_proven(how, text_repo, accelerator, tries, monkeypatch):
    monkeypatch.setenv("GEMMA3_INT4_BACKEND", "reference" if how == "argument" else "aten-cpu")
    model = load(text_repo, **({"int4_backend": "aten-cpu"} if how == "argument" else {}))
    assert model.int4_backend == "aten-cpu"
    assert model.float().bfloat16().int4_backend == "aten-cpu"
    assert tries == []
    assert int4_backend.asked() == (
        ("reference", "GEMMA3_INT4_BACKEND") if how == "argument" else ("aten-cpu", "GEMMA3_INT4_BACKEND")
    )


def test_misspelled_words_are_errors_that_say_which_there_are(text_repo, accelerator):
    with pytest.raises(Exception, match="int4_proof=never: expected one or more of again, here, skip"):
        load(text_repo, int4_proof="never")
    with pytest.raises(Exception, match="int4_backend=fast: no such backend; there are triton"):
        load(text_repo, int4_backend="fast")


def test_what_failed_is_told_with_the_reason(text_repo, accelerator, monkeypatch, warned):  # noqa: F811
    monkeypatch.setattr(int4_record.logger, "parent", logging.getLogger())
    for module in (int4_backend, int4_proof, int4_trial, int4_record):
        monkeypatch.setattr(module, "BACKENDS", (broken.WrongAt32, Reference))
    assert load(text_repo).int4_backend == "reference"
    told = [message for message in warned.messages if "tried in" in message]
    assert len(told) == 1
    assert "wrong-at-32-rows is wrong at" in told[0]
    assert "product of 32 rows is off by" in told[0]
    assert "docs/devices.md" in told[0]


def test_a_model_without_its_files_is_not_proven(text_repo, accelerator, tries, tmp_path, warned):  # noqa: F811
    repo = shutil.copytree(text_repo.path, tmp_path / "repo")
    model = Gemma3ForCausalLM.from_pretrained(repo, dtype=torch.bfloat16)
    tries.clear()
    for file in repo.glob("*.safetensors"):
        file.unlink()
    assert model.float().int4_backend == "reference"
    assert tries == []


def test_samples_are_the_repos_own_codes(picture_repo, text_repo):
    for repo in (picture_repo, text_repo):
        sources = int4_record.read_sources(*weight_files(repo.path))
        weights = dict(repo.reference.named_parameters())
        for source in sources:
            sample = source.sample()
            found = int4_proof.dequantize(sample.codes, sample.scales, torch.float32)
            same = [w for w in weights.values() if w.shape == (sample.outputs, sample.inputs)]
            assert any(torch.equal(w[: len(found)].float(), found) for w in same)
        linears = [name for name in weights if name.endswith("proj.weight") and "vision" not in name]
        assert sum(source.times for source in sources) == len(linears) + 1


def test_a_record_costs_little(text_repo, accelerator):
    """Not the time, which a busy machine decides: that nothing of a matrix is read."""
    load(text_repo)
    int4_record._KNOWN.clear()
    sources = int4_record.read_sources(*weight_files(text_repo.path))

    def read():
        raise AssertionError("a matrix is read")

    sources = [int4_record.Source(s.outputs, s.inputs, s.times, s.scale_dtype, read) for s in sources]
    int4_record.prove(sources, CPU, torch.bfloat16)


def test_the_command_prints_a_report(text_repo, tmp_path):
    command = [sys.executable, ROOT / "int4_prove.py", text_repo.path, "--device", "cpu"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "| reference | all | " in done.stdout
    assert "| triton | all | cannot: runs on NVIDIA GPUs |" in done.stdout
    assert "By rule a CPU gets" in done.stdout


@pytest.mark.parametrize("arguments", [[], ["no/such/folder"]])
def test_a_command_without_a_repo_says_so(arguments):
    done = subprocess.run([sys.executable, ROOT / "int4_prove.py", *arguments], capture_output=True, text=True)
    assert done.returncode
    assert "Traceback" not in done.stderr
