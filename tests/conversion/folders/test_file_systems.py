"""What file systems and systems lack: a conversion does without, or says in one line what is wrong and where.

Run: pytest tests/conversion/folders/test_file_systems.py
"""

import errno
import os
import shutil
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import convert_flax
from conversion.convert import pipeline
from conversion.folders import files, folder_lock, work_folder
from tests.conversion.helpers import tiny, two_processes

REFUSALS = [errno.EINVAL, errno.EPERM, errno.EISDIR, errno.ENOTSUP, errno.EBADF, errno.EACCES]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Folder with a checkpoint and its config."""
    return tiny.make_source(tmp_path_factory.mktemp("systems"))


@pytest.fixture(scope="module")
def usual(source, tmp_path_factory):
    """What a conversion writes."""
    output = tmp_path_factory.mktemp("usual") / "repo"
    assert convert_flax.main(_words(source, output)) == 0
    return tiny.files_of(output)


def _words(source, output, *options):
    words = ["--checkpoint", source / "checkpoint", "--config", source / "config.json", "--output", output]
    return [str(word) for word in (*words, "--shard-size", "80KB", "--workers", "2", *options)]


def _refuse(name, monkeypatch, number, applies):
    """Makes a function of `os` fail where `applies` says so."""
    original = getattr(os, name)

    def refuse(*args, **kwargs):
        if not kwargs and applies(*args):  # not for shutil.rmtree, which goes other ways on Windows
            raise OSError(number, os.strerror(number), *(str(arg) for arg in args[:1] if isinstance(arg, Path)))
        return original(*args, **kwargs)

    monkeypatch.setattr(os, name, refuse)


def _is_folder(place):
    return os.path.isdir(place) if isinstance(place, (str, Path)) else stat.S_ISDIR(os.fstat(place).st_mode)


@pytest.mark.parametrize("number", REFUSALS)
def test_folders_that_cannot_be_synced(source, usual, tmp_path, monkeypatch, number):
    """SMB, CIFS, FAT."""
    _refuse("fsync", monkeypatch, number, _is_folder)
    assert convert_flax.main(_words(source, tmp_path / "repo")) == 0
    assert tiny.files_of(tmp_path / "repo") == usual


def test_folders_that_cannot_be_opened(source, usual, tmp_path, monkeypatch):
    """Windows."""
    _refuse("open", monkeypatch, errno.EACCES, lambda path, *_: _is_folder(path))
    assert convert_flax.main(_words(source, tmp_path / "repo")) == 0
    assert tiny.files_of(tmp_path / "repo") == usual


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_files_that_cannot_be_synced(source, usual, tmp_path, monkeypatch, number):
    _refuse("fsync", monkeypatch, number, lambda file: True)
    assert convert_flax.main(_words(source, tmp_path / "repo")) == 0
    assert tiny.files_of(tmp_path / "repo") == usual


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_sync_that_fails_is_told(source, usual, tmp_path, monkeypatch, capsys, number):
    output = tmp_path / "repo"
    _refuse("fsync", monkeypatch, number, lambda file: not _is_folder(file))
    assert convert_flax.main(_words(source, output)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert os.strerror(number) in error
    assert f"kept in {output / '.partial'}" in error
    monkeypatch.undo()
    assert convert_flax.main(_words(source, output)) == 0
    assert tiny.files_of(output) == usual


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EPERM, errno.ENOTSUP])
def test_no_rename_over_a_file(tmp_path, monkeypatch, number):
    _refuse("replace", monkeypatch, number, lambda source, target: os.path.exists(target))
    (tmp_path / "old").write_text("old")
    files.write_atomically(tmp_path / "old", b"new")
    files.write_atomically(tmp_path / "other", b"other")
    assert tiny.files_of(tmp_path) == {"old": b"new", "other": b"other"}


def test_stopped_where_there_is_no_rename_over_a_file(tmp_path, monkeypatch):
    """One of the two is always there, and whole."""
    _refuse("replace", monkeypatch, errno.EEXIST, lambda source, target: True)
    _refuse("rename", monkeypatch, errno.EIO, lambda source, target: True)
    (tmp_path / "target").write_text("old")
    (tmp_path / "source").write_text("new")
    with pytest.raises(OSError, match="Input/output error"):
        files.replace(tmp_path / "source", tmp_path / "target")
    assert tiny.files_of(tmp_path) == {"source": b"new"}


def test_no_rename_at_all_is_told(source, tmp_path, monkeypatch, capsys):
    _refuse("replace", monkeypatch, errno.ENOTSUP, lambda source, target: True)
    assert convert_flax.main(_words(source, tmp_path / "repo")) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert os.strerror(errno.ENOTSUP) in error
    assert str(tmp_path / "repo") in error


def test_no_links_are_made(source, usual, tmp_path, monkeypatch):
    for name in ("link", "symlink"):
        _refuse(name, monkeypatch, errno.EPERM, lambda *_: True)
    assert convert_flax.main(_words(source, tmp_path / "repo")) == 0
    assert tiny.files_of(tmp_path / "repo") == usual


def test_no_two_names_differ_by_case(usual):
    assert len({name.lower() for name in usual}) == len(usual)


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
import convert_flax
sys.exit(convert_flax.main(sys.argv[1:]))
"""


def test_a_limit_on_the_size_of_files(source, tmp_path):
    """FAT takes 4 GiB, some network disks 2 GiB; `ulimit -f` says the same."""
    pytest.importorskip("resource")
    command = [sys.executable, "-c", LIMITED, *_words(source, tmp_path / "repo")]
    run = subprocess.run(command, cwd=two_processes.ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2, run.stderr
    error = run.stderr.splitlines()[-1]
    assert os.strerror(errno.EFBIG) in error
    assert "smaller --shard-size" in error
    assert f"remove {tmp_path / 'repo' / '.partial'}" in error


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_permissions_are_those_that_the_umask_leaves(source, tmp_path, umask):
    before = os.umask(umask)
    try:
        assert convert_flax.main(_words(source, tmp_path / "new" / "repo")) == 0
        words = ["--format", "compressed-tensors", "--output", str(tmp_path / "packed")]
        assert convert_flax.main(["export", str(tmp_path / "new" / "repo"), *words]) == 0
    finally:
        os.umask(before)
    folders = {tmp_path / "new", tmp_path / "new" / "repo", tmp_path / "packed"}
    written = [path for folder in (tmp_path / "new" / "repo", tmp_path / "packed") for path in folder.iterdir()]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o777 & ~umask}
    assert {stat.S_IMODE(path.stat().st_mode) for path in written} == {0o666 & ~umask}


class _Locking:
    """Windows' msvcrt, in terms of what this system has."""

    LK_NBLCK = 2

    @staticmethod
    def locking(file: int, mode: int, count: int) -> None:
        import fcntl

        assert (mode, count) == (2, 1)
        assert os.lseek(file, 0, os.SEEK_CUR) == folder_lock.LOCKED_BYTE
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error


def test_without_what_only_unix_has(source, usual, tmp_path, monkeypatch, capsys):
    """Windows: no pread, no pwrite, no resource, no fcntl, no opening of folders, no count of blocks."""
    monkeypatch.delattr(os, "pread")
    monkeypatch.delattr(os, "pwrite")
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(folder_lock, "fcntl", None)
    monkeypatch.setattr(folder_lock, "msvcrt", _Locking, raising=False)
    _refuse("open", monkeypatch, errno.EACCES, lambda path, *_: _is_folder(path))
    assert convert_flax.main(_words(source, tmp_path / "repo")) == 0
    assert "peak memory" not in capsys.readouterr().out
    assert tiny.files_of(tmp_path / "repo") == usual
    with work_folder.WorkFolder(tmp_path / "other"):
        assert convert_flax.main(_words(source, tmp_path / "other")) == 2
        assert "another conversion (process" in capsys.readouterr().err


def test_nothing_that_only_unix_has_is_imported_with_the_converter():
    """But in folder_lock.py, which does without it."""
    code = """
import sys
import numpy, transformers, tensorstore, tqdm  # what libraries import is theirs
known = set(sys.modules)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
sys.modules["msvcrt"] = sys
import conversion.commands.convert, conversion.commands.export, conversion.commands.plan, conversion.commands.verify
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=two_processes.ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


# Real file systems


@contextmanager
def _mounted(folder, *options):
    folder.mkdir()
    if subprocess.run(["mount", *options, str(folder)], check=False, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here, or this file system is unknown")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


root_only = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting takes root")


@root_only
def test_a_real_fat(source, usual, tmp_path, monkeypatch, capsys):
    """No links, no owners, letter case ignored."""
    if not shutil.which("mkfs.vfat"):
        pytest.skip("there is no mkfs.vfat here")
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.vfat", str(image)], check=True, capture_output=True)
    monkeypatch.setattr(pipeline, "check_space", lambda plan, work: None)
    with _mounted(tmp_path / "disk", "-o", "loop", str(image)) as disk:
        _case_does_not_matter(source, usual, disk, capsys)


@root_only
def test_a_real_folder_without_letter_case(source, usual, tmp_path, monkeypatch, capsys):
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    made = shutil.which("mkfs.ext4") and subprocess.run(
        ["mkfs.ext4", "-q", "-O", "casefold", str(image)], check=False, capture_output=True
    )
    if not made or made.returncode or not shutil.which("chattr"):
        pytest.skip("no file system that ignores letter case can be made here")
    monkeypatch.setattr(pipeline, "check_space", lambda plan, work: None)
    with _mounted(tmp_path / "disk", "-o", "loop", str(image)) as disk:
        (disk / "folded").mkdir()
        if subprocess.run(["chattr", "+F", str(disk / "folded")], check=False, capture_output=True).returncode:
            pytest.skip("this system knows no folders without letter case")
        _case_does_not_matter(source, usual, disk / "folded", capsys)


def _case_does_not_matter(source, usual, disk, capsys):
    mine = Path(shutil.copytree(source, disk / "source"))
    with work_folder.WorkFolder(disk / "repo"):
        assert convert_flax.main(_words(source, disk / "REPO")) == 2
        assert "another conversion" in capsys.readouterr().err
    assert convert_flax.main(_words(source, disk / "repo")) == 0
    assert tiny.files_of(disk / "repo") == usual
    assert convert_flax.main(_words(mine, disk / "SOURCE" / "Checkpoint" / "out")) == 2
    assert "lies in --checkpoint" in capsys.readouterr().err


@root_only
def test_a_real_source_that_is_read_only(source, usual, tmp_path):
    with _mounted(tmp_path / "disk", "--bind", str(source)) as disk:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(disk)], check=True)
        assert convert_flax.main(_words(disk, tmp_path / "repo", "--verify")) == 0
        found = tiny.files_of(tmp_path / "repo")
        assert found == usual
        assert convert_flax.main(_words(disk, disk / "repo")) == 2


@root_only
def test_a_real_output_that_is_read_only(source, tmp_path, capsys):
    with _mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "ro", "none") as disk:
        assert convert_flax.main(_words(source, disk / "repo")) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert f"{disk / 'repo'}: cannot be made or written" in error
