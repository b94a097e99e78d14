"""Compiling the CPU kernels: machines that cannot, and a cache in which anything may have happened."""

import errno
import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gemma3_int4 import int4_cpu_build, int4_cpu_library
from gemma3_int4.int4_backend import choose_backend
from gemma3_int4.int4_cpu_hardware import INSTRUCTION_SETS, Cpu, cpu
from gemma3_int4.int4_cpu_library import Norm, library
from gemma3_int4.int4_cpu_native import NativeCpu

from tests.conftest import ROOT
from tests.modeling.hardware import cpu_with

KNOWN_CPU = cpu().instruction_set is not None
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None or not KNOWN_CPU, reason="no C compiler or no AVX2 here")


def known_sets() -> list[str]:
    return [name for name, needed in INSTRUCTION_SETS.items() if cpu().features.issuperset(needed)]


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path, caplog):
    """`library` not yet called, with an empty cache; compiling is quick; warnings are in caplog."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(int4_cpu_build, "FLAGS", ("-O0", *int4_cpu_build.FLAGS[1:]))
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    for module in (int4_cpu_build, int4_cpu_library):
        monkeypatch.setattr(module.logger, "parent", logging.getLogger())
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "gemma3-int4" / "kernels"


def warnings(caplog) -> list[str]:
    names = {module.logger.name for module in (int4_cpu_build, int4_cpu_library)}
    return [record.getMessage() for record in caplog.records if record.name in names]


def load_again():
    """As a new process would."""
    library.cache_clear()
    return library()


def assert_works(kernels) -> None:
    x, y = torch.full((1, 32), 3.0).bfloat16(), torch.zeros(1, 32).bfloat16()
    weight = torch.zeros(32).bfloat16()
    kernels.int4_rms_norm(Norm(x.data_ptr(), weight.data_ptr(), 1, 32, 0.0, y.data_ptr()), 1)
    assert torch.equal(y, torch.ones(1, 32).bfloat16())


# Machines that cannot have them


def test_without_a_compiler_one_warning_and_another_backend(monkeypatch, caplog):
    monkeypatch.setattr(int4_cpu_build.shutil, "which", lambda name: None)
    with cpu_with("gemma3_int4", instruction_set="AVX2"):
        for _ in range(2):
            assert choose_backend(torch.device("cpu"), torch.bfloat16, 64, 64) is not NativeCpu
    (warning,) = warnings(caplog)
    assert "no C compiler" in warning


@needs_compiler
@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ('gcc "', 'the environment variable CC is no command (No closing quotation): gcc "'),
        ("no-such-compiler -v", "the C compiler does not run: [Errno 2]"),
        ("/", "the C compiler does not run: [Errno 13]"),
        ("false", "false --version failed (1)"),
        ("true", "ended well and made no library"),
        ("cc -fvisibility=hidden", "the compiled library is not whole"),
        ("cc --no-such-option", "--no-such-option"),
    ],
)
def test_a_useless_compiler_is_one_warning(compiler, said, monkeypatch, caplog):
    monkeypatch.setenv("CC", compiler)
    assert library() is None
    (warning,) = warnings(caplog)
    assert said in warning


@needs_compiler
@pytest.mark.skipif(len(known_sets()) < 2, reason="the kernels know one instruction set of this CPU")
def test_a_compiler_older_than_the_cpu_makes_what_it_can(monkeypatch, caplog, tmp_path):
    """It refuses the options of the best set that are not of the next one too."""
    best, following = known_sets()[:2]
    news = set(int4_cpu_build.compiler_flags(best)) - set(int4_cpu_build.compiler_flags(following))
    old = tmp_path / "old-cc"
    patterns = "|".join(flag for flag in news if flag.startswith("-m"))
    old.write_text(
        f'#!/bin/sh\nfor word; do case $word in {patterns}) echo "no $word" >&2; exit 1;; esac; done\nexec cc "$@"\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("CC", str(old))
    for _ in range(2):  # compiled, and found
        assert_works(load_again())
    assert len(warnings(caplog)) == 2
    for warning in warnings(caplog):
        assert f"compiled for {following}, less than this CPU has" in warning
        assert f"for {best} " in warning
        assert "no -m" in warning


@needs_compiler
def test_a_compiler_that_fails_is_quoted(monkeypatch, caplog, cache):
    monkeypatch.setattr(int4_cpu_build, "SOURCE", "#error out of order")
    assert library() is None
    (warning,) = warnings(caplog)
    assert "out of order" in warning
    assert list(cache.iterdir()) == []


def test_another_cpu_is_told_what_it_lacks(caplog):
    with cpu_with("gemma3_int4", features=frozenset({"sse2", "fma"}), instruction_set=None):
        assert library() is None
    (warning,) = warnings(caplog)
    assert "this CPU lacks avx2, f16c" in warning


@pytest.mark.parametrize(
    ("lacking", "expected"),
    [
        ((), "AVX512_BF16"),
        (("avx2",), "AVX512_BF16"),
        (("avx512_bf16",), "AVX512_VNNI"),  # Cascade Lake, Ice Lake
        (("avx512_bf16", "avx512_vnni"), "AVX512"),  # Skylake
        (("avx512_vnni",), "AVX512"),
        (("avx512f", "avx512_vnni"), "AVX2_VNNI"),  # Alder Lake and later
        (("avx512f", "avx_vnni"), "AVX2"),
    ],
)
def test_the_best_instruction_set_that_a_cpu_has_all_of(lacking, expected):
    features = {*INSTRUCTION_SETS["AVX512_BF16"], *INSTRUCTION_SETS["AVX2_VNNI"]}
    assert Cpu.with_features(frozenset(features - set(lacking) | {"sse2"})).instruction_set == expected


@pytest.mark.parametrize(
    ("more", "expected"), [((), False), (("avx512_bf16",), True), (("amx_bf16", "amx_tile"), True)]
)
def test_bfloat16_matrices_are_for_torch_where_there_are_instructions_for_them(more, expected, monkeypatch):
    """oneDNN says yes to every AVX512."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True, raising=False)
    assert Cpu.with_features(frozenset({*INSTRUCTION_SETS["AVX512_VNNI"], *more})).bf16_gemm is expected


@pytest.mark.parametrize(
    ("features", "instruction_set", "flag"),
    [
        ({"asimd", "asimddp", "i8mm", "bf16"}, "NEON_BF16", "-march=armv8.2-a+dotprod+i8mm+bf16"),  # Graviton 3
        ({"asimd", "asimddp"}, "NEON_DOTPROD", "-march=armv8.2-a+dotprod"),  # Raspberry Pi 5, Apple M1
        ({"asimd", "i8mm", "bf16"}, "NEON", "-march=armv8-a"),
        ({"asimd"}, "NEON", "-march=armv8-a"),  # Raspberry Pi 4
    ],
)
def test_an_arm_cpu_gets_what_it_has_all_of(features, instruction_set, flag):
    seen = Cpu.with_features(frozenset(features))
    assert seen.instruction_set == instruction_set
    with cpu_with("gemma3_int4", features=seen.features, instruction_set=seen.instruction_set):
        assert flag in int4_cpu_build.compiler_flags()


def test_instructions_that_the_cpu_lacks_are_refused_and_another_backend_takes_over(caplog):
    """Run all the same, they would end the process."""
    with cpu_with("gemma3_int4", features=frozenset({"asimd"}), instruction_set="NEON_DOTPROD"):
        assert choose_backend(torch.device("cpu"), torch.bfloat16, 64, 64) is not NativeCpu
    (warning,) = warnings(caplog)
    assert "NEON_DOTPROD was chosen, and this CPU lacks asimddp" in warning
    assert "PyTorch's own int4 operator is used instead" in warning


@needs_compiler
def test_structs_of_another_size_are_refused(monkeypatch, caplog):
    source = int4_cpu_build.SOURCE.replace("int32_t heads, kv_heads", "int64_t heads, kv_heads")
    monkeypatch.setattr(int4_cpu_build, "SOURCE", source)
    assert library() is None
    (warning,) = warnings(caplog)
    assert "Layer has" in warning


# The cache


@needs_compiler
def test_compiled_once_into_a_private_folder(cache, monkeypatch, caplog):
    assert_works(library())
    (made,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert int4_cpu_build._is_whole(made)
    before = made.stat()
    assert_works(load_again())
    assert (made.stat().st_ino, made.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    monkeypatch.setattr(int4_cpu_build, "SOURCE", int4_cpu_build.SOURCE + "// another\n")
    assert_works(load_again())
    with cpu_with("gemma3_int4", features=cpu().features | {"another"}):  # a home that machines share
        assert_works(load_again())
    assert len({path.name[:40] for path in cache.iterdir()}) == 3
    assert warnings(caplog) == []


@needs_compiler
@pytest.mark.parametrize(("umask", "mode"), [(0o000, 0o755), (0o022, 0o755), (0o002, 0o755), (0o077, 0o700)])
def test_permissions_are_what_the_umask_asks_for_but_nobody_else_may_write(umask, mode, cache):
    before = os.umask(umask)
    try:
        assert_works(library())
    finally:
        os.umask(before)
    (made,) = cache.iterdir()
    assert stat.S_IMODE(made.stat().st_mode) == mode
    assert int4_cpu_build._is_whole(made)


def for_another_machine(library: bytes) -> bytes:
    return library[:18] + (183).to_bytes(2, "little") + library[20:]  # ELF's e_machine: AArch64


def random_bytes(library: bytes) -> bytes:
    return library[:4] + bytes(torch.randint(256, (len(library) - 4,)).tolist())


@needs_compiler
@pytest.mark.parametrize(
    "damaged",
    [
        pytest.param(lambda library: library[: len(library) // 2], id="cut short"),
        pytest.param(lambda library: library[:4096], id="cut to a page"),
        pytest.param(lambda library: b"", id="empty"),
        pytest.param(lambda library: bytes(len(library)), id="zeros"),
        pytest.param(lambda library: library[:9000] + bytes([library[9000] ^ 4]) + library[9001:], id="a bit flipped"),
        pytest.param(random_bytes, id="random bytes"),
        pytest.param(for_another_machine, id="of another machine"),
    ],
)
def test_what_is_not_as_it_was_written_is_noticed_and_built_again(damaged, cache, caplog):
    assert_works(library())
    (made,) = cache.iterdir()
    good = made.read_bytes()
    made.unlink()  # loaded: written over, it would change under this process
    made.write_bytes(damaged(good))
    made.chmod(0o755)
    assert_works(load_again())
    assert list(cache.iterdir()) == [made]
    assert made.read_bytes() == good
    assert warnings(caplog) == []


@needs_compiler
def test_a_library_that_is_whole_but_cannot_be_loaded_is_built_again(cache, caplog):
    assert_works(library())
    (made,) = cache.iterdir()
    other = for_another_machine(made.read_bytes())
    made.unlink()
    found = cache / f"{made.stem[:40]}{int4_cpu_build._digest(other)}.so"
    found.write_bytes(other)
    found.chmod(0o755)
    assert int4_cpu_build._is_whole(found)
    assert_works(load_again())
    assert made.exists()
    assert warnings(caplog) == []


@needs_compiler
@pytest.mark.parametrize("kind", ["writable by others", "of another user", "a link"])
def test_a_file_that_is_not_the_users_alone_is_built_again(kind, cache, tmp_path, monkeypatch, caplog):
    assert_works(library())
    (made,) = cache.iterdir()
    if kind == "writable by others":
        made.chmod(0o777)
    elif kind == "a link":
        made.rename(tmp_path / "elsewhere")
        made.symlink_to(tmp_path / "elsewhere")
    elif os.getuid() == 0:
        os.chown(made, 12345, 12345)
    else:
        pytest.skip("only root gives a file away")
    assert not int4_cpu_build._is_whole(made)
    assert_works(load_again())
    assert int4_cpu_build._is_whole(made)
    assert warnings(caplog) == []


@needs_compiler
def test_without_a_home_compiled_at_every_start(monkeypatch, caplog, tmp_path):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setattr(Path, "home", home)
    assert_works(library())
    (warning,) = warnings(caplog)
    assert "compiled anew at every start" in warning
    assert "Could not determine home directory." in warning


def not_a_folder(cache, monkeypatch):
    cache.parent.write_text("a file")


def writable_by_others(cache, monkeypatch):
    cache.mkdir(parents=True)
    cache.chmod(0o777)


def of_another_user(cache, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)


def read_only(cache, monkeypatch):
    cache.mkdir(parents=True, mode=0o700)
    plain = os.open

    def refuse(path, flags, *rest, **more):
        if flags & os.O_CREAT and Path(path).parent == cache:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return plain(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refuse)


def full(cache, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def noexec(cache, monkeypatch):
    plain = int4_cpu_build.ctypes.CDLL

    def refuse(path):
        if path is not None and Path(path).parent == cache:
            raise OSError(f"{path}: failed to map segment from shared object")
        return plain(path)

    monkeypatch.setattr(int4_cpu_build.ctypes, "CDLL", refuse)


@needs_compiler
@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        (not_a_folder, "gemma3-int4"),
        (writable_by_others, "someone else"),
        (of_another_user, "someone else"),
        (read_only, "Read-only file system"),
        (full, "No space left"),
        (noexec, "failed to map segment"),
    ],
)
def test_where_nothing_can_be_kept_a_temporary_folder_and_one_warning(trouble, said, cache, monkeypatch, caplog):
    trouble(cache, monkeypatch)
    assert_works(library())
    (warning,) = warnings(caplog)
    assert "compiled anew at every start" in warning
    assert said in warning
    if trouble is not noexec and cache.is_dir():
        assert list(cache.iterdir()) == []


@needs_compiler
def test_a_file_system_that_cannot_sync_or_rename_over_a_file(cache, monkeypatch, caplog):
    def cannot_sync(descriptor):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def cannot_replace(self, target):
        if Path(target).exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        self.rename(target)

    monkeypatch.setattr(os, "fsync", cannot_sync)
    monkeypatch.setattr(Path, "replace", cannot_replace)
    assert_works(library())
    (made,) = cache.iterdir()
    made.unlink()
    made.write_bytes(b"damaged")
    assert_works(load_again())
    assert list(cache.iterdir()) == [made]
    assert int4_cpu_build._is_whole(made)
    assert warnings(caplog) == []


@needs_compiler
def test_processes_that_build_at_once_all_end_well(cache, tmp_path):
    slow = tmp_path / "slow-cc"
    slow.write_text('#!/bin/sh\nsleep 1\nexec cc "$@"\n')
    slow.chmod(0o755)
    code = """if True:
        import sys, types
        sys.modules["package"] = types.ModuleType("package")
        sys.modules["package"].__path__ = ["."]
        from package.int4_cpu_library import library
        assert library() is not None
        """
    run = [sys.executable, "-c", code]
    started = [subprocess.Popen(run, cwd=ROOT, env=os.environ | {"CC": str(slow)}, stderr=-1) for _ in range(3)]
    for process in started:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        assert b"int4" not in errors
    (made,) = cache.iterdir()
    assert int4_cpu_build._is_whole(made)
