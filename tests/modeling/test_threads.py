"""How many threads our CPU kernels run on: what a process is given, by made-up control groups, masks and settings."""

import os

import pytest
import torch
from gemma3_int4 import int4_cpu_attention, int4_cpu_native, int4_memory
from gemma3_int4.int4_cpu_hardware import given_cpus
from gemma3_int4.int4_cpu_native import NativeCpu

from tests.modeling.hardware import cpu_with
from tests.modeling.matrices import random_matrix, random_rows

V1 = "4:cpu,cpuacct:/docker/abc\n1:memory:/docker/abc\n0::/"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 8 CPUs with these control groups, of a process with this line in /proc/self/cgroup."""

    def make(groups: str, files: dict[str, str]) -> None:
        (tmp_path / "groups").write_text(groups)
        for name, text in files.items():
            (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "cgroup" / name).write_text(text + "\n")
        monkeypatch.setattr(int4_memory, "GROUPS", tmp_path / "groups")
        monkeypatch.setattr(int4_memory, "CGROUP", tmp_path / "cgroup")
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)

    return make


def v1(folder: str, quota: str, period: str = "100000") -> dict[str, str]:
    return {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": period}


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/", {}, 8),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "200000 100000"}, 2),  # what `docker run --cpus 2` gives
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "10000 100000"}, 1),
        ("0::/", {"cpu.max": "2000000 100000"}, 8),
        ("0::/", {"cpu.max": "damaged"}, 8),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),  # a limit on a whole pod
        ("0::/a/b", {"a/b/cpu.max": "100000 50000", "a/cpu.max": "300000 100000"}, 2),
        ("0::/a", {"other/cpu.max": "100000 100000"}, 8),
        ("0::/../other", {"cpu.max": "100000 100000"}, 1),
        (V1, v1("cpu,cpuacct/docker/abc", "300000"), 3),
        (V1, v1("cpu,cpuacct", "200000"), 2),  # as a container sees its own
        (V1, v1("cpu", "100000"), 1),
        (V1, v1("cpu,cpuacct", "-1"), 8),
        (V1, v1("cpu,cpuacct", "50000", "0"), 8),
        (V1, v1("memory", "100000"), 8),
    ],
)
def test_a_quota_is_what_is_given(machine, groups, files, expected):
    machine(groups, files)
    assert given_cpus() == expected


def test_a_mask_is_what_is_given(machine, monkeypatch):
    machine("0::/", {"cpu.max": "400000 100000"})
    assert given_cpus() == 4
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 5})
    assert given_cpus() == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # macOS, Windows
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert given_cpus() == 1


@pytest.mark.parametrize(("set_by_hand", "given", "expected"), [(1, 8, 1), (2, 8, 2), (3, 2, 2), (4, 1, 1)])
def test_kernels_run_on_no_more_threads_and_change_no_setting(set_by_hand, given, expected, monkeypatch):
    if int4_cpu_native.library() is None:
        pytest.skip("our kernels do not run here")
    ran, real = [], int4_cpu_native.library()

    class Counting:
        """The library, noting how many threads each call is given."""

        int4_huge_pages = real.int4_huge_pages

        def __getattr__(self, name):
            return lambda call, count: (ran.append(count), getattr(real, name)(call, count))[1]

    _, rows, scales, exact = random_matrix(64, 96, torch.bfloat16)
    packed = NativeCpu.pack(rows, scales)
    query = torch.randn(1, 2, 40, 32).bfloat16()
    before = torch.get_num_threads()
    torch.set_num_threads(set_by_hand)
    try:
        with cpu_with("gemma3_int4", given=given, amx=False):
            for module in (int4_cpu_native, int4_cpu_attention):
                monkeypatch.setattr(module, "library", Counting)
            found = {count: NativeCpu.linear(random_rows(count, 96), packed) for count in (1, 40)}
            int4_cpu_attention.attend(query, query, query, None, None)
            assert torch.get_num_threads() == set_by_hand
    finally:
        torch.set_num_threads(before)
    assert ran == [expected] * 3
    for count, y in found.items():
        torch.testing.assert_close(y.float(), random_rows(count, 96).float() @ exact.T, rtol=0.01, atol=0.01)
