"""Two processes and one folder: one works, the other is told at once who does, and nothing is damaged.

Run: pytest tests/conversion/folders/test_two_processes.py
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import convert_flax
from conversion.errors import BadInput
from conversion.folders import folder_lock
from conversion.folders.folder_lock import LOCK, OWNER, TAKEOVER, FolderLock
from conversion.folders.work_folder import WorkFolder, check_finished
from conversion.hub_upload import push
from conversion.source.kaggle import download
from tests.conversion.helpers import tiny, two_processes

NO_LOCKS = """
import errno, fcntl
def flock(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
"""
HOLD = """
import sys
from pathlib import Path
from conversion.folders.folder_lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
COUNT = """
import os, sys, time
from pathlib import Path
from conversion.errors import BadInput
from conversion.folders.folder_lock import FolderLock
folder, count = Path(sys.argv[1]), 0
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    try:
        with FolderLock(folder / "locked"):
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # fails if another one is inside
            time.sleep(0.001)
            os.unlink(folder / "inside")
            count += 1
    except BadInput:
        pass
print(count)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small checkpoint and its configuration."""
    return tiny.make_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def repo(source, tmp_path_factory):
    """What a conversion of it writes."""
    output = tmp_path_factory.mktemp("repo") / "repo"
    assert tiny.run(source / "checkpoint", output, source / "config.json") == 0
    return output


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder_lock.fcntl, "flock", flock)


def _python(code: str, *words: object) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, words)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, text=True, cwd=two_processes.ROOT, **pipes)


def _holder(folder: Path, before: str = "") -> subprocess.Popen:
    """A process that has the lock of a folder until it is killed."""
    process = _python(before + HOLD, folder)
    assert process.stdout.readline() == "locked\n"
    return process


def _kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()


def _words(source, output, *options):
    words = ["--checkpoint", source / "checkpoint", "--config", source / "config.json", "--output", output, *options]
    return [str(word) for word in words]


def test_every_command_is_told_who_writes_there(source, repo, tmp_path, capsys, monkeypatch):
    output = tmp_path / "output"
    (tmp_path / "link").symlink_to(output)
    monkeypatch.chdir(tmp_path)
    finished = Path(shutil.copytree(repo, tmp_path / "finished"))
    holders = [_holder(output), _holder(tmp_path / "other.awq"), _holder(finished)]
    try:
        export = ["export", str(repo), "--format", "compressed-tensors", "--output"]
        other = ["export", str(finished), "--format", "compressed-tensors", "--output", str(tmp_path / "new")]
        asked = [(_words(source, place), 0) for place in (output, "output", "link", "./link/../output/")]
        asked += [([*export, str(output)], 0), (_words(source, output, "--format", "compressed-tensors"), 0)]
        asked += [(_words(source, "other", "--format", "compressed-tensors"), 1), (other, 2)]
        asked += [(["verify", str(finished)], 2)]
        for words, number in asked:
            before = tiny.files_of(tmp_path)
            assert convert_flax.main(words) == 2
            (error,) = capsys.readouterr().err.splitlines()
            assert f"another conversion (process {holders[number].pid} on " in error, words
            assert " is writing there; wait until it is done, or stop it" in error
            assert tiny.files_of(tmp_path) == before
            assert not (tmp_path / "other").exists()
        with pytest.raises(BadInput, match="another conversion"):
            push(finished, "someone/model")
    finally:
        for holder in holders:
            _kill(holder)
    assert convert_flax.main(_words(source, output)) == 0  # the lock died with its process
    assert convert_flax.main(["verify", str(finished)]) == 0
    assert tiny.files_of(finished) == tiny.files_of(repo)  # and what it left is gone


@pytest.mark.parametrize("mark", [".partial", ".published"])
def test_an_unfinished_repo_is_not_read(repo, tmp_path, mark):
    unfinished = Path(shutil.copytree(repo, tmp_path / "repo"))
    (unfinished / mark).mkdir()
    with pytest.raises(BadInput, match="unfinished conversion"):
        check_finished(unfinished)


def test_threads_of_one_process_exclude_each_other(tmp_path):
    def other() -> None:
        try:
            with FolderLock(tmp_path / "output"):
                found.append("locked")
        except BadInput:
            found.append("busy")

    found = []
    with FolderLock(tmp_path / "output"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    assert found == ["busy", "locked"]


def test_a_lock_leaves_no_trace(tmp_path):
    with FolderLock(tmp_path / "a" / "b" / "c"):
        assert (tmp_path / "a" / "b" / "c" / LOCK).exists()
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    with FolderLock(tmp_path / "a"):
        pass
    assert not list((tmp_path / "a").iterdir())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "folder")
    for name in ("file/output", "nowhere"):
        with (
            pytest.raises(BadInput, match=f"{tmp_path / name}: cannot be made or written"),
            FolderLock(tmp_path / name),
        ):
            pass


@pytest.mark.parametrize("before", ["", NO_LOCKS], ids=["flock", "no flock"])
def test_never_two_at_a_time(tmp_path, before):
    """Four processes take and leave one lock, often removed with its folder, as fast as they can."""
    processes = [_python(before + COUNT, tmp_path, 2) for _ in range(4)]
    counts = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    assert sum(map(int, counts))
    assert not tiny.files_of(tmp_path)


# A file system without locks


def test_without_locks_a_file_stands_for_one(source, tmp_path, no_locks, capsys):
    output = tmp_path / "output"
    with FolderLock(output) as lock:
        assert "knows no locks" in lock.note
        assert convert_flax.main(_words(source, output)) == 2
        error = capsys.readouterr().err
        assert f"another conversion (process {os.getpid()} on " in error
        assert f"if it is surely gone, remove {output / OWNER}" in error
    assert convert_flax.main(_words(source, output)) == 0
    assert "knows no locks" in capsys.readouterr().out
    assert not {LOCK, OWNER, TAKEOVER} & {path.name for path in output.iterdir()}


def test_without_locks_a_killed_process_stops_nobody(source, tmp_path, no_locks):
    holder = _holder(tmp_path / "output", NO_LOCKS)
    with pytest.raises(BadInput, match=f"process {holder.pid} on "):
        WorkFolder(tmp_path / "output")
    _kill(holder)
    assert (tmp_path / "output" / OWNER).exists()
    assert convert_flax.main(_words(source, tmp_path / "output")) == 0


@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ({}, False),
        ({"machine": ["elsewhere"]}, False),  # its processes are not seen from here
        ({"machine": ["elsewhere"], "process": 1 << 22}, False),
        ({"process": 1 << 22}, True),  # beyond the highest number that Linux gives
        ({"started": "0"}, True),  # another process has its number
        (None, False),  # being written
    ],
)
def test_without_locks_only_a_process_that_is_surely_gone_is_passed_over(tmp_path, no_locks, changed, stale):
    if changed == {"started": "0"} and not Path("/proc/self/stat").exists():
        pytest.skip("this system does not tell when a process was started")
    owner = "" if changed is None else json.dumps(folder_lock._myself() | changed)
    (tmp_path / OWNER).write_text(owner)
    if stale:
        with FolderLock(tmp_path):
            pass
        assert not list(tmp_path.iterdir())
    else:
        with pytest.raises(BadInput, match="if it is surely gone, remove"), FolderLock(tmp_path):
            pass
        assert (tmp_path / OWNER).read_text() == owner


def test_a_process_that_sees_locks_heeds_one_that_does_not(tmp_path):
    holder = _holder(tmp_path, NO_LOCKS)
    try:
        with pytest.raises(BadInput, match=f"process {holder.pid} on "), FolderLock(tmp_path):
            pass
    finally:
        _kill(holder)
    with FolderLock(tmp_path):
        pass


# Whole conversions


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    """A checkpoint of many shards, and what a lone conversion makes of it."""
    folder = two_processes.make_source(tmp_path_factory.mktemp("longer"))
    alone = two_processes.start(folder, folder / "alone")
    assert alone.wait() == 0
    return folder


@pytest.mark.parametrize("shards_done", [0, 2, 10])
def test_a_second_conversion_damages_nothing(longer, tmp_path, shards_done):
    output = tmp_path / "output"
    first = two_processes.start(longer, output)
    while len(list((output / ".partial" / "shards").glob("*.json"))) < shards_done and first.poll() is None:
        time.sleep(0.01)
    second = two_processes.start(longer, output)
    said = [process.communicate()[0] for process in (first, second)]
    assert sorted((first.returncode, second.returncode)) == [0, 2]
    refused = said[0 if first.returncode else 1].splitlines()[-1]
    assert "is writing there" in refused or "is not empty" in refused  # the first may just have finished
    assert tiny.files_of(output) == tiny.files_of(longer / "alone")


# Other folders that two processes may meet in


def test_two_downloads_into_kaggles_cache(tmp_path, monkeypatch):
    """kagglehub resumes by appending: two at once would write one file twice over."""
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    calls = []

    def model_download(handle):
        calls.append(handle)
        if len(calls) == 1:
            with pytest.raises(BadInput, match=f"another download .process {os.getpid()} on "):
                download("kaggle:gemma3-1b-it-int4")
        return str(tmp_path / "model")

    monkeypatch.setattr("kagglehub.model_download", model_download)
    assert download("kaggle:gemma3-1b-it-int4") == tmp_path / "model"
    assert len(calls) == 1
    assert download("kaggle:gemma3-1b-it-int4") == tmp_path / "model"
    assert not list(tmp_path.iterdir())


def test_a_cache_that_is_read_only_is_used(tmp_path, monkeypatch):
    """Nothing can be downloaded into it, so there is nothing to lock."""
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("kagglehub.model_download", lambda handle: str(tmp_path / "model"))
    (tmp_path / "cache").write_text("not a folder: nobody can make one in it")
    assert download("kaggle:gemma3-1b-it-int4") == tmp_path / "model"
