"""Matrices are repacked while transformers loads the rest: the same tensors, no thread left behind, no page kept."""

import ctypes
import mmap
import os
import shutil
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import transformers
from gemma3_int4 import int4_repacking
from gemma3_int4.int4_cpu_library import ReadAhead, library
from gemma3_int4.int4_cpu_native import NativeCpu
from gemma3_int4.int4_repacking import Repacking, reading_ahead, recover, repacking
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText

from tests.modeling.matrices import DTYPES, random_matrix, stored_linear
from tests.modeling.tiny_repo import build, multimodal_config

pytestmark = pytest.mark.skipif(library() is None, reason="no kernels on this machine")
CPU = torch.device("cpu")
KINDS = ("qweight", "qzeros", "scales")
LAYER = "language_model.model.layers.1.mlp.gate_proj"


def load(path, **kwargs):
    return AutoModelForImageTextToText.from_pretrained(path, trust_remote_code=True, **kwargs)


def module_of(model, name: str):
    return sys.modules[f"{type(model).__module__.rpartition('.')[0]}.{name}"]


def matrices(count: int) -> dict[str, dict[str, torch.Tensor]]:
    """AWQ's tensors, by name, of several shapes and dtypes of scales."""
    stored = {}
    for seed in range(count):
        codes, _, scales, _ = random_matrix(32 + 32 * (seed % 5), 32 + 32 * (seed % 3), DTYPES[seed % 3], seed)
        stored[str(seed)] = dict(stored_linear(codes, scales).named_buffers())
    return stored


class Loaded(nn.Module):
    device, dtype = CPU, torch.bfloat16


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_what_is_repacked_ahead_is_what_is_repacked_at_once():
    stored = matrices(40)
    expected = {name: NativeCpu.repack_awq(each["qweight"], each["scales"]) for name, each in stored.items()}
    copies = {name: {kind: tensor.clone() for kind, tensor in each.items()} for name, each in stored.items()}
    found = Repacking(copies).finish(Loaded())
    assert found.keys() == expected.keys()
    for name, packed in expected.items():
        assert_same(found[name], packed)


@pytest.mark.parametrize("scale_dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(32, 32), (96, 160), (16_416, 64), (8_224, 96)])
@pytest.mark.parametrize("count", [1, 2])
def test_matrices_of_any_size(outputs, inputs, scale_dtype, count):
    """Those of many outputs are read in several strips of an input."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        codes, rows, scales, _ = random_matrix(outputs, inputs, scale_dtype)
        linear = stored_linear(codes, scales)
        for packed in (NativeCpu.repack_awq(linear.qweight, linear.scales), NativeCpu.pack(rows, scales)):
            found, found_scales = NativeCpu.unpack(packed)
            assert torch.equal(found, rows)
            assert torch.equal(found_scales, scales)
    finally:
        torch.set_num_threads(before)


def test_nothing_to_repack():
    begun = Repacking({})
    assert begun.finish(Loaded()) == {}
    begun.stop()


def test_a_model_of_another_dtype_gets_none():
    begun = Repacking(matrices(3))
    model = Loaded()
    model.dtype = torch.float32
    assert begun.finish(model) == {}
    begun.stop()


def test_stopped_it_begins_no_more():
    begun = Repacking(matrices(200))
    begun.stop()
    assert not begun._thread.is_alive()
    assert begun._rest.next >= begun._rest.count


@pytest.fixture
def begun(picture_repo, monkeypatch):
    """The `Repacking` of every load of `picture_repo`."""
    module, seen = module_of(load(picture_repo.path), "int4_repacking"), []

    class Watched(module.Repacking):
        stopped = False

        def __init__(self, stored):
            super().__init__(stored)
            seen.append(self)

        def stop(self):
            super().stop()
            self.stopped = True

    monkeypatch.setattr(module, "Repacking", Watched)
    return seen


WITHOUT_ACCELERATOR = pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator here")


@pytest.mark.parametrize(
    ("arguments", "ahead"),
    [
        ({}, True),
        ({"device_map": "cpu"}, True),
        ({"device_map": {"": "cpu"}}, True),
        pytest.param(
            {"device_map": "auto"},
            True,
            marks=pytest.mark.skipif(torch.accelerator.is_available(), reason="one is here"),
        ),
        ({"dtype": torch.bfloat16}, True),
        ({"dtype": "bfloat16"}, True),
        ({"dtype": torch.float32}, False),
        ({"int4_backend": "reference"}, False),
        ({"int4_backend": "aten-cpu"}, False),
    ],
    ids=str,
)
def test_where_it_is_done(picture_repo, begun, arguments, ahead):
    expected = load(picture_repo.path)
    model = load(picture_repo.path, **arguments)
    repacked = {packed["block_codes"].data_ptr() for packed in begun[-1]._packed.values()}
    layers = {
        layer.packed["block_codes"].data_ptr()
        for layer in model.modules()
        if hasattr(layer, "in_features") and "block_codes" in getattr(layer, "packed", {})
    }
    assert bool(repacked) == ahead
    assert repacked <= layers
    found = model.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found[name].to(tensor.dtype), tensor), name


def test_transformers_loads_nothing_of_what_is_repacked(picture_repo, begun, monkeypatch):
    """Nor does it copy that."""
    seen, held, load_all = [], set(), transformers.modeling_utils.convert_and_load_state_dict_in_model

    def watch(*, model, **kwargs):
        seen.extend(model.state_dict())
        held.update(module.qweight.data_ptr() for module in model.modules() if hasattr(module, "qweight"))
        return load_all(model=model, **kwargs)

    monkeypatch.setattr(transformers.modeling_utils, "convert_and_load_state_dict_in_model", watch)
    _, info = load(picture_repo.path, output_loading_info=True)
    assert "model.vision_tower.post_layernorm.weight" in seen
    assert not [name for name in seen if name.endswith(("qweight", "qzeros", "scales"))]
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert held == {tensors["qweight"].data_ptr() for tensors in begun[-1].stored.values()}


def test_where_the_dtype_was_guessed_wrong(picture_repo, begun):
    """Several dtypes are asked for, and the matrices' is none that is repacked for."""
    expected = load(picture_repo.path, dtype=torch.float32)
    model = load(picture_repo.path, dtype={"": torch.float32, "vision_config": torch.bfloat16})
    assert begun[-1].stored
    assert model.dtype == torch.float32
    assert "native-cpu" not in model.int4_backend
    found = model.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found[name], tensor.to(found[name].dtype)), name


@pytest.mark.parametrize(
    ("message", "changed"),
    [
        (f"missing: {LAYER}.qzeros", lambda tensors: {f"{LAYER}.qzeros": None}),
        (f"mis-shaped: {LAYER}.qzeros", lambda tensors: {f"{LAYER}.qzeros": tensors["qzeros"][:1]}),
        (f"mis-shaped: {LAYER}.qweight", lambda t: {f"{LAYER}.{kind}": t[kind].repeat(1, 2) for kind in KINDS}),
        ("unexpected: another.qweight", lambda tensors: {f"another.{kind}": tensors[kind] for kind in KINDS}),
    ],
    ids=["missing", "mis-shaped", "of another width", "unexpected"],
)
def test_what_is_not_as_the_model_has_it_is_still_reported(picture_repo, tmp_path, message, changed):
    repo = Path(shutil.copytree(picture_repo.path, tmp_path / "repo"))
    tensors = {}
    for file in repo.glob("model*.safetensors*"):
        tensors |= load_file(file) if file.suffix == ".safetensors" else {}
        file.unlink()
    tensors |= changed({kind: tensors[f"{LAYER}.{kind}"] for kind in KINDS})
    kept = {name: tensor.clone() for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, repo / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match=message):
        load(repo)


def test_a_load_that_fails_ends_it(picture_repo, begun, monkeypatch):
    before = threading.active_count()
    module = module_of(load(picture_repo.path), "modeling_gemma3_int4")

    def fail(*args):
        raise ValueError("no such model")

    monkeypatch.setattr(module, "_check_loaded", fail)
    with pytest.raises(module.Int4LoadError, match="no such model"):
        load(picture_repo.path)
    assert [each.stopped for each in begun] == [True, True]
    assert threading.active_count() == before


def test_what_is_no_awq_matrix_is_left_to_the_loader():
    stored = {
        "a.qweight": torch.empty(64, 8, dtype=torch.int32, device="meta"),
        "a.scales": torch.empty(3, 64, device="meta"),  # of 96 inputs
        "b.qweight": torch.empty(64, 8, dtype=torch.int32, device="meta"),  # without scales
        "c.qweight": torch.empty(64, 8, dtype=torch.bfloat16, device="meta"),
        "c.scales": torch.empty(2, 64, device="meta"),
        "d.qweight": torch.empty(64, 8, dtype=torch.int32, device="meta"),
        "d.scales": torch.empty(2, 64, dtype=torch.int32, device="meta"),
        "e.qweight": torch.empty(72, 8, dtype=torch.int32, device="meta"),  # no whole group
        "e.scales": torch.empty(2, 64, device="meta"),
        "embed_tokens.qweight": torch.empty(64, 8, dtype=torch.int32, device="meta"),
        "embed_tokens.scales": torch.empty(64, 2, device="meta"),
    }
    with repacking([], stored, CPU, torch.bfloat16) as begun:
        assert begun.finish(Loaded()) == {}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_large_parameters_stay_in_the_file_and_matrices_do_not(picture_repo, monkeypatch):
    """A vision tower is read where it lies, and computes the same; of matrices no page is kept."""
    expected = load(picture_repo.path)
    module = module_of(expected, "modeling_gemma3_int4")
    monkeypatch.setattr(module, "MAPPED", 1)
    plain, recover = [], module.recover
    monkeypatch.setattr(module, "recover", lambda w, *rest: (plain.append(w.data_ptr()), recover(w, *rest))[1])
    model = load(picture_repo.path)
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(picture_repo.path) in line:
            ranges.append([int(end, 16) for end in line.split()[0].split("-")])

    def mapped(tensor) -> bool:
        return any(first <= tensor.data_ptr() < last for first, last in ranges)

    assert all(mapped(parameter) for parameter in model.model.vision_tower.parameters())
    packed = [tensor for layer in model.modules() if hasattr(layer, "packed") for tensor in layer.packed.values()]
    assert packed
    assert not any(mapped(tensor) for tensor in packed)
    (place,) = plain
    assert not any(first <= place < last for first, last in ranges)
    assert_same(model.state_dict(), expected.state_dict())


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no such system call")
def test_files_are_read_ahead_until_that_is_stopped(tmp_path, monkeypatch):
    files = [tmp_path / name for name in "abc"]
    for file in files:
        file.write_bytes(bytes(300_000))
    seen, read = [], library().int4_read_ahead

    def watch(call, threads):
        seen.append((os.readlink(f"/proc/self/fd/{call.file}"), call.bytes, call.stopped))
        if len(seen) == 2:
            first_two.set()
            stopped.wait(10)
        read(call, threads)

    first_two, stopped = threading.Event(), threading.Event()
    monkeypatch.setattr(int4_repacking, "_is_cached", lambda file, size: False)
    monkeypatch.setattr(library(), "int4_read_ahead", watch)
    before = threading.active_count()
    with reading_ahead([str(file) for file in files]):
        assert first_two.wait(10)
        threading.Timer(0.1, stopped.set).start()
    assert [name for name, _, _ in seen] == [str(file) for file in files]
    assert [size for _, size, _ in seen] == [300_000] * 3
    assert [stop for _, _, stop in seen] == [0, 0, 1]
    assert threading.active_count() <= before + 1  # the timer may still be ending
    monkeypatch.setattr(int4_repacking, "_is_cached", lambda file, size: True)
    with reading_ahead([str(file) for file in files]):
        pass
    assert len(seen) == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks which pages are in the cache")
def test_a_file_that_was_read_ahead_is_in_memory(tmp_path):
    file, size = tmp_path / "file", 1 << 22
    file.write_bytes(os.urandom(size))

    def cached() -> int:
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
            pages, place = (ctypes.c_ubyte * (size // mmap.PAGESIZE))(), ctypes.c_char.from_buffer(mapped)
            ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(size), pages)
            del place
            return sum(page & 1 for page in pages) * mmap.PAGESIZE

    with open(file, "rb") as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if cached() > size // 2:
            pytest.skip("this file system keeps its files in memory")
        assert not int4_repacking._is_cached(opened.fileno(), size)
        library().int4_read_ahead(ReadAhead(size, opened.fileno(), stopped=1), 1)
        assert cached() < size // 2
        library().int4_read_ahead(ReadAhead(size, opened.fileno()), 1)
    end = time.monotonic() + 20
    while cached() < size and time.monotonic() < end:
        time.sleep(0.05)
    assert cached() == size
    with open(file, "rb") as opened:
        assert int4_repacking._is_cached(opened.fileno(), size)


@pytest.mark.parametrize(("available", "read"), [(None, True), (1 << 40, True), (1000, False)])
def test_what_does_not_fit_into_memory_is_not_read_ahead(picture_repo, monkeypatch, available, read):
    module, seen = module_of(load(picture_repo.path), "int4_repacking"), []
    monkeypatch.setattr(module, "bytes_available", lambda device: available)
    reading = module.reading_ahead
    monkeypatch.setattr(module, "reading_ahead", lambda files: (seen.append(files), reading(files))[1])
    load(picture_repo.path)
    assert [bool(files) for files in seen] == [read]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_pages_of_a_plain_matrix_go_as_they_are_read(tmp_path):
    file = tmp_path / "plain.safetensors"
    _, rows, scales, weight = random_matrix(1024, 1024, torch.bfloat16)
    save_file({"weight": weight.bfloat16()}, file)

    def resident() -> int:
        """Bytes of the file that count to this process."""
        lines = iter(Path("/proc/self/smaps").read_text().splitlines())
        next(line for line in lines if line.endswith(str(file)))
        return int(next(line for line in lines if line.startswith("Rss:")).split()[1]) * 1024

    for in_file, most in ((False, 1 << 22), (True, 1 << 16)):
        with safe_open(file, framework="pt") as opened:
            weight = opened.get_tensor("weight")
        packed = recover(weight, scales, torch.bfloat16, in_file)
        assert resident() <= most
        assert resident() >= 1 << 20 or in_file
        assert torch.equal(NativeCpu.unpack(packed)[0], rows)
        del weight


def test_a_model_in_its_file_can_be_saved_over_it(tmp_path, monkeypatch):
    repo = build(tmp_path / "repo", multimodal_config()).path
    expected = load(repo)
    monkeypatch.setattr(module_of(expected, "modeling_gemma3_int4"), "MAPPED", 1)
    model = load(repo)
    with torch.no_grad():
        model.model.vision_tower.get_parameter("post_layernorm.weight").add_(1)  # its own copy of that page
    model.save_pretrained(repo)
    again = load(repo)
    moved = expected.state_dict()
    name = next(name for name in moved if name.endswith("vision_tower.post_layernorm.weight"))
    moved[name] = moved[name] + 1
    assert_same(model.state_dict(), moved)
    assert_same(again.state_dict(), moved)
