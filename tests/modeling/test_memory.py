"""What a model needs is known beforehand; what does not fit is said in one line; of files no norm stays mapped."""

import re
import sys

import pytest
import torch
from gemma3_int4 import int4_memory
from transformers import AutoModelForCausalLM

from tests.modeling.tiny_repo import build, text_config


def load(path, **kwargs):
    return AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, **kwargs)


@pytest.fixture
def available(text_repo, monkeypatch):
    """Sets how many bytes the remote code of `text_repo` finds available."""
    package = type(load(text_repo.path)).__module__.rpartition(".")[0]
    module = sys.modules[f"{package}.int4_memory"]
    return lambda size: monkeypatch.setattr(module, "bytes_available", lambda device: size)


def message(path, **kwargs) -> str:
    with pytest.raises(Exception, match="GB are available") as caught:
        load(path, **kwargs)
    assert type(caught.value).__name__ == "Int4LoadError"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("embedding", "arguments"),
    [
        ("plain", {}),
        ("plain", {"dtype": torch.float32}),
        ("plain", {"int4_embedding": False}),
        ("int4", {}),
        ("int4", {"dtype": torch.float32}),
    ],
)
def test_what_is_needed_is_what_stays(tmp_path, embedding, arguments):
    repo = build(tmp_path, text_config(), embedding=embedding)
    model = load(repo.path, **arguments)
    held = {
        t.data_ptr(): t.nbytes for t in [*model.parameters(), *(b for n, b in model.named_buffers() if "inv_" not in n)]
    }
    modeling = sys.modules[type(model).__module__]
    scales = 320 * 4 * 2 if embedding == "plain" and "int4_embedding" not in arguments else 0
    stays, peak = int4_memory.bytes_needed(
        modeling._stored_tensors(modeling._shards(repo.path, {})), model.dtype, scales, on_cpu=True
    )
    assert 0.88 * sum(held.values()) < stays < 1.12 * sum(held.values())
    assert peak >= stays


def test_an_accelerator_holds_the_plain_embedding_beside_its_codes():
    def meta(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, dtype=dtype, device="meta")

    linear = {"qweight": meta(64, 8, dtype=torch.int32), "qzeros": meta(2, 8, dtype=torch.int32), "scales": meta(2, 64)}
    stored = {f"model.layers.0.mlp.up_proj.{name}": tensor for name, tensor in linear.items()}
    stored |= {"model.embed_tokens.weight": meta(320, 64), "model.norm.weight": meta(64)}
    packed, plain, codes = 64 * 8 * 4 + 2 * 64 * 2, 320 * 64 * 2, 320 * 32 + 1280
    assert int4_memory.bytes_needed(stored, torch.bfloat16, 1280, on_cpu=False) == (
        packed + codes + 128,
        packed + 2 * 8 * 4 + plain + codes + 128,
    )
    assert int4_memory.bytes_needed(stored, torch.bfloat16, 0, on_cpu=False)[0] == packed + plain + 128
    # on the CPU in bfloat16 what is not repacked yet are pages of the file
    assert int4_memory.bytes_needed(stored, torch.bfloat16, 1280, on_cpu=True)[1] == packed + codes + 128


def test_too_large_is_an_error_that_says_how_large(text_repo, available):
    available(100_000)
    text = message(text_repo.path)
    assert re.search(
        r"text0: the model takes 0\.0 GB of memory on cpu and 0\.0 GB while it is loaded; 0\.0 GB are available\.", text
    )
    assert text.endswith("Free some first.")


def test_what_would_fit_is_said(text_repo, available):
    with_codes = load(text_repo.path)
    held = with_codes.int4_bytes + sum(p.nbytes for p in with_codes.parameters())
    available(int(held * 1.05))
    assert load(text_repo.path).dtype == torch.bfloat16
    assert message(text_repo.path, int4_embedding=False).endswith(
        "What would fit: an int4 embedding (int4_embedding=True, bfloat16)."
    )


def test_advice_of_another_dtype_and_of_a_smaller_model(monkeypatch):
    monkeypatch.setattr(int4_memory, "bytes_available", lambda device: 8_000_000_000)
    with pytest.raises(MemoryError, match=r"What would fit: dtype=torch\.bfloat16 or the 12B \(7\.5 GB\)\.$"):
        int4_memory.check_memory(
            "repo", (9 * 10**9, 9 * 10**9), torch.device("cpu"), {"dtype=torch.bfloat16": 7 * 10**9}
        )


def test_only_the_peak_too_large_is_a_warning(monkeypatch):
    warnings = []
    monkeypatch.setattr(int4_memory.logger, "warning", warnings.append)
    monkeypatch.setattr(int4_memory, "bytes_available", lambda device: 8 * 10**9)
    for needed, expected in (((7 * 10**9, 8 * 10**9), 0), ((7 * 10**9, 9 * 10**9), 1)):
        int4_memory.check_memory("repo", needed, torch.device("cpu"), {})
        assert len(warnings) == expected
    assert (
        "repo: the model takes 7.0 GB of memory on cpu and 9.0 GB while it is loaded; 8.0 GB are available."
        in warnings[0]
    )


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {}, 3072),
        ("0::/", {"memory.max": "max", "memory.current": "10", "memory.stat": ""}, 3072),
        (
            "0::/",
            {"memory.max": "2000", "memory.current": "900", "memory.stat": "inactive_file 100\nactive_file 50"},
            1250,
        ),
        ("0::/a/b", {"a/memory.max": "500", "a/memory.current": "900", "a/memory.stat": "anon 1"}, 0),
        (
            "3:cpu:/\n2:memory:/a",
            {
                "memory/memory.limit_in_bytes": "2000",
                "memory/memory.usage_in_bytes": "900",
                "memory/memory.stat": "total_inactive_file 100\ntotal_active_file 0",
            },
            1200,
        ),
    ],
)
def test_available_is_the_least_of_the_machine_and_its_limits(tmp_path, monkeypatch, groups, files, expected):
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 2 kB\nSwapFree: 1 kB\nHugePages_Total: 0\n")
    (tmp_path / "groups").write_text(groups)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    monkeypatch.setattr(int4_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(int4_memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(int4_memory, "CGROUP", tmp_path / "cgroup")
    assert int4_memory.bytes_available(torch.device("cpu")) == expected
    assert int4_memory.bytes_available(torch.device("meta")) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("embedding", [None, False])
def test_no_part_of_a_file_stays_mapped(picture_repo, embedding):
    """Else all pages that were read of a shard stay as long as a norm in it does."""
    model = load(picture_repo.path, int4_embedding=embedding)
    with open("/proc/self/maps") as maps:
        assert not [line for line in maps if str(picture_repo.path) in line]
    assert model.lm_head is not None
