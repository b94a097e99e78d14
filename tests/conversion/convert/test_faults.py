"""Whatever happens to a conversion, it ends with the same bytes or says what is wrong.

Killed, out of disk, robbed of its source, given flipped bits. Run: pytest tests/conversion/convert/test_faults.py
"""

import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, XetDownloadError

import convert_flax
from conversion import shards
from conversion.convert import leaf_conversion, pipeline
from conversion.errors import BadInput
from conversion.folders.work_folder import WorkFolder, check_finished
from conversion.source import donor, zarr_leaf
from demo.flax_export import save_tree
from tests.conversion.helpers import tiny

OPTIONS = ("--shard-size", "80KB", "--embedding", "plain")
KILLS = 50
MARKS = {".partial", ".published", ".lock"}  # of a conversion that is not done


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Folder with a checkpoint, its config and its hashes."""
    return tiny.make_source(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def undisturbed(source, tmp_path_factory):
    """What a conversion without faults writes."""
    output = tmp_path_factory.mktemp("undisturbed") / "repo"
    assert tiny.run(source / "checkpoint", output, source / "config.json", *OPTIONS) == 0
    return tiny.files_of(output)


def _words(source, output):
    words = ["--checkpoint", source / "checkpoint", "--config", source / "config.json", "--output", output, *OPTIONS]
    return [str(word) for word in words]


@pytest.mark.timeout(1200)  # two minutes on a quiet machine
def test_killed_at_random_moments(source, undisturbed, tmp_path):
    """SIGKILL at 50 random moments, several in a row for each conversion: the same files in the end.

    Half of the moments are drawn from the clock, half from the tensors written so far: how far a clock's moment gets
    depends on the machine, and some must fall between two shards.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conversion.commands.convert"])
    chance = random.Random(0)
    assert _in_child(context, _words(source, tmp_path / "warm")) == 0
    started = time.monotonic()
    assert _in_child(context, _words(source, tmp_path / "timed")) == 0
    duration = time.monotonic() - started
    tensors = len(json.loads(undisturbed["model.safetensors.index.json"])["weight_map"])
    kills, resumed, number = 0, 0, 0
    while kills < KILLS:
        output = tmp_path / f"repo{number}"
        number += 1
        for _ in range(chance.randint(1, 8)):
            if chance.random() < 0.5:
                code = _in_child(context, _words(source, output), seconds=chance.uniform(0, duration))
            else:
                code = _in_child(context, _words(source, output), writes=chance.randrange(tensors))
            if code == 0:
                break
            assert code == -9, Path(f"{output}.log").read_text()
            kills += 1
            names = {path.name for path in output.iterdir()} if output.exists() else set()
            if names - {".lock"} == set(undisturbed):
                check_finished(output)
                break
            assert not names or names & MARKS
            assert all((output / name).read_bytes() == undisturbed[name] for name in names - MARKS)
            resumed += any((output / ".partial" / "shards").glob("*.json"))
        if not output.exists() or set(os.listdir(output)) != set(undisturbed):
            assert _in_child(context, _words(source, output)) == 0
        assert tiny.files_of(output) == undisturbed
        shutil.rmtree(output)
    assert resumed > 0


def _in_child(context, words, seconds=None, writes=None):
    """Exit code of the command line in a process of its own, killed after so many seconds or tensors.

    What it says is in a file named as its output, with `.log`.
    """
    log = words[words.index("--output") + 1] + ".log"
    child = context.Process(target=_child, args=(words, writes, log))
    child.start()
    child.join(seconds)
    if seconds is not None:
        child.kill()
        child.join()
    return child.exitcode


def _child(words, writes, log):
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if writes is not None:
        original, left = shards.Shard.write, itertools.count(writes, -1)

        def write(*args):
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            original(*args)

        shards.Shard.write = write
    os._exit(convert_flax.main(words))


class _Killed(BaseException):
    pass


def test_stopped_before_every_change_of_a_folder(tmp_path, monkeypatch):
    """Whatever was made, moved or removed last, repeating the work ends with the repo and nothing else."""
    original = {name: getattr(os, name) for name in ("mkdir", "replace", "unlink", "rmdir")}
    content = {name: name.encode() for name in ("config.json", "model.safetensors", "README.md")}
    left = [0]

    def counted(name):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise _Killed
            return original[name](*args, **kwargs)

        return call

    for name in original:
        monkeypatch.setattr(os, name, counted(name))

    def make(output, steps):
        left[0] = steps
        with WorkFolder(output) as work:
            work.start({"source": "one"})
            if not work.complete:
                for name, values in content.items():
                    (work.repo / name).write_bytes(values)
                work.finish()
            work.publish()

    for steps in itertools.count():
        output = tmp_path / str(steps)
        try:
            make(output, steps)
        except _Killed:
            left[0] = 100
            if set(tiny.files_of(output)) - {".lock"} == set(content):  # all was done
                check_finished(output)
            else:
                make(output, 100)
        else:
            break
        assert tiny.files_of(output) == content
    assert steps > 10


def test_complete_shards_are_not_written_again(source, undisturbed, tmp_path, monkeypatch):
    output = tmp_path / "repo"
    written = _stop_after(monkeypatch, output, 50)
    with pytest.raises(KeyboardInterrupt):
        pipeline.convert(_options(source, output))
    done = {path.name.removesuffix(".json") for path in (output / ".partial" / "shards").iterdir()}
    assert done
    written.clear()
    monkeypatch.undo()
    original = shards.Shard.write
    monkeypatch.setattr(shards.Shard, "write", lambda s, *args: (written.append(s.layout.filename), original(s, *args)))
    pipeline.convert(_options(source, output), report=lambda line: None)
    assert written
    assert not done & set(written)
    assert tiny.files_of(output) == undisturbed


def _options(source, output, **changed):
    values = {"shard_size": 80_000, "config": source / "config.json", "workers": 1} | changed
    return pipeline.Options(source / "checkpoint", output, **values)


def _stop_after(monkeypatch, output, writes):
    """Ctrl-C after so many tensors were written, and at least one shard, since threads write them in any order."""
    written, original = [], shards.Shard.write

    def write(shard, name, *args):
        if len(written) >= writes and any((output / ".partial" / "shards").glob("*.json")):
            raise KeyboardInterrupt
        written.append(name)
        original(shard, name, *args)

    monkeypatch.setattr(shards.Shard, "write", write)
    return written


@pytest.mark.parametrize("change", ["options", "source", "config"])
def test_another_conversion_may_not_resume(source, change, tmp_path, monkeypatch, capsys):
    mine = Path(shutil.copytree(source, tmp_path / "source"))
    output = tmp_path / "repo"
    _stop_after(monkeypatch, output, 50)
    with pytest.raises(KeyboardInterrupt):
        pipeline.convert(_options(mine, output))
    monkeypatch.undo()
    before = tiny.files_of(output)
    words = _words(mine, output)
    if change == "options":
        words += ["--dtype", "float32"]
    elif change == "config":
        text = (mine / "config.json").read_text()
        (mine / "config.json").write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    else:
        data = max((mine / "checkpoint").rglob("d/*"), key=lambda path: path.stat().st_size)
        os.utime(data)
    assert convert_flax.main(words) == 2
    assert f"differs in: {'source files' if change == 'source' else change}; repeat" in capsys.readouterr().err
    assert tiny.files_of(output) == before


def test_a_full_disk_keeps_the_work(source, undisturbed, tmp_path, monkeypatch, capsys):
    output, written, original = tmp_path / "repo", [], os.pwrite

    def pwrite(*args):
        written.append(args)
        if len(written) > 30:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)
    assert convert_flax.main(_words(source, output)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "No space left on device" in error
    assert f"kept in {output / '.partial'}" in error
    assert {path.name for path in output.iterdir()} == {".partial"}
    monkeypatch.undo()
    assert convert_flax.main(_words(source, output)) == 0
    assert tiny.files_of(output) == undisturbed


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a tmpfs takes root")
def test_a_real_full_disk(source, undisturbed, tmp_path, monkeypatch, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)], check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        monkeypatch.setattr(pipeline, "check_space", lambda plan, work: None)
        assert convert_flax.main(_words(source, disk / "repo")) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert {path.name for path in (disk / "repo").iterdir()} == {".partial"}
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert convert_flax.main(_words(source, disk / "repo")) == 0
        assert tiny.files_of(disk / "repo") == undisturbed
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_source_that_vanishes_while_it_is_read(source, undisturbed, tmp_path, monkeypatch, capsys):
    mine = Path(shutil.copytree(source, tmp_path / "source"))
    output, written, original = tmp_path / "repo", [], shards.Shard.write

    def write(shard, name, *args):
        written.append(name)
        if len(written) == 10:
            (mine / "checkpoint").rename(mine / "unplugged")
        original(shard, name, *args)

    monkeypatch.setattr(shards.Shard, "write", write)
    assert convert_flax.main(_words(mine, output)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be read" in error
    assert f"kept in {output / '.partial'}" in error
    monkeypatch.undo()
    assert convert_flax.main(_words(mine, output)) == 2  # still gone: nothing is lost
    assert (output / ".partial").exists()
    (mine / "unplugged").rename(mine / "checkpoint")
    assert convert_flax.main(_words(mine, output)) == 0
    assert _without_manifest(tiny.files_of(output)) == _without_manifest(undisturbed)


def test_an_input_output_error_on_resume_keeps_the_work(source, undisturbed, tmp_path, monkeypatch, capsys):
    output = tmp_path / "repo"
    _stop_after(monkeypatch, output, 50)
    assert convert_flax.main(_words(source, output)) == 130
    monkeypatch.undo()
    shards_done = sorted((output / ".partial" / "shards").iterdir())
    assert shards_done

    def broken(*args, **kwargs):
        raise ValueError(
            "UNKNOWN: Error reading Byte range [0, 6) of local file: Input/output error [os_error_code='5']"
        )

    monkeypatch.setattr(zarr_leaf, "StoredBytes", broken)
    assert convert_flax.main(_words(source, output)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be read: Input/output error" in error
    assert "damaged" not in error
    monkeypatch.undo()
    assert sorted((output / ".partial" / "shards").iterdir()) == shards_done
    assert convert_flax.main(_words(source, output)) == 0
    assert tiny.files_of(output) == undisturbed


def test_bad_input_on_resume_keeps_what_an_earlier_run_finished(source, tmp_path, monkeypatch, capsys):
    output = tmp_path / "repo"
    _stop_after(monkeypatch, output, 50)
    assert convert_flax.main(_words(source, output)) == 130
    monkeypatch.undo()

    def damaged(*args, **kwargs):
        raise BadInput("damaged")

    monkeypatch.setattr(leaf_conversion, "LeafWriter", damaged)
    assert convert_flax.main(_words(source, output)) == 2
    assert f"stays in {output / '.partial'}: remove it to begin anew" in capsys.readouterr().err
    assert list((output / ".partial" / "shards").iterdir())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (LocalEntryNotFoundError("please check your connection\nand more"), "please check your connection"),
        (HTTPError(""), "HTTPError"),
        (XetDownloadError("the connection broke"), "the connection broke"),
    ],
)
def test_a_donor_out_of_reach_keeps_the_work(tmp_path, monkeypatch, capsys, error, reason):
    config = tiny.multimodal_config()
    tree = tiny.make_tree(config)
    tree = {module: leaves for module, leaves in tree.items() if "mm_input_projection" not in module}
    save_tree(tree, tmp_path / "checkpoint")
    tiny.write_config(config, tmp_path / "config.json")
    name = "multi_modal_projector.mm_input_projection_weight"

    def download(repo, file):
        if file != donor.INDEX:
            raise error
        (tmp_path / file).write_text(json.dumps({"weight_map": {name: "model-00002-of-00002.safetensors"}}))
        return tmp_path / file

    monkeypatch.setattr(donor, "hf_hub_download", download)
    output = tmp_path / "repo"
    assert convert_flax.main([*_words(tmp_path, output), "--donor", "someone/gemma"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"--donor someone/gemma: cannot be read or fetched: {reason}; the work so far" in said
    assert (output / ".partial").exists()


def test_verify_is_done_after_a_resume_that_only_moves_files(source, undisturbed, tmp_path, monkeypatch, capsys):
    output = tmp_path / "repo"

    def stopped(work):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.WorkFolder, "publish", stopped)
    assert convert_flax.main(_words(source, output)) == 130
    monkeypatch.undo()
    capsys.readouterr()
    assert convert_flax.main([*_words(source, output), "--verify"]) == 0
    assert f"verified: {output} holds" in capsys.readouterr().out
    assert tiny.files_of(output) == undisturbed


def _without_manifest(files):
    return {name: content for name, content in files.items() if name != "conversion.json"}


def test_damage_found_late_leaves_nothing_behind(tmp_path, capsys):
    config = tiny.multimodal_config()
    tree = tiny.make_tree(config)
    tree["SigLiPFromPatches_0/siglip_encoder/embedding"]["bias"][3] = np.nan  # among the last leaves
    save_tree(tree, tmp_path / "checkpoint")
    tiny.write_config(config, tmp_path / "config.json")
    assert convert_flax.main(_words(tmp_path, tmp_path / "repo")) == 2
    assert "value nan" in capsys.readouterr().err
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("compression", [True, False])
def test_flipped_bits_in_every_kind_of_file(source, tmp_path, compression, capsys):
    """Each is caught by the grid or a checksum, or changes nothing, or needs source hashes: and those catch all."""
    config = tiny.multimodal_config()
    checkpoint = tmp_path / "checkpoint"
    save_tree(tiny.make_tree(config), checkpoint, compression=compression)
    tiny.write_config(config, tmp_path / "config.json")
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(checkpoint)}" for path in files]
    (tmp_path / "SHA256SUMS").write_text("\n".join(lines))
    hashed = ["--source-hashes", str(tmp_path / "SHA256SUMS")]
    assert convert_flax.main(_words(tmp_path, tmp_path / "intact") + hashed) == 0
    intact = _without_manifest(tiny.files_of(tmp_path / "intact"))
    chance, outcomes = random.Random(1), {"refused": 0, "harmless": 0, "unseen": 0}
    for path in files * 2:
        content = path.read_bytes()
        place = chance.randrange(len(content))
        flipped = bytearray(content)
        flipped[place] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        output = tmp_path / "repo"
        code = convert_flax.main(_words(tmp_path, output))
        if code == 2:
            outcomes["refused"] += 1
            assert not output.exists()
        elif _without_manifest(tiny.files_of(output)) == intact:
            outcomes["harmless"] += 1
        else:
            outcomes["unseen"] += 1
            assert "would not be seen" in capsys.readouterr().out
        shutil.rmtree(output, ignore_errors=True)
        assert convert_flax.main(_words(tmp_path, output) + hashed) == 2
        assert "differ from --source-hashes" in capsys.readouterr().err or code == 2
        assert not output.exists()
        path.write_bytes(content)
    assert outcomes["refused"] > 0


@pytest.mark.parametrize("verify", [False, True])
def test_flipped_bits_in_the_repo_are_found(source, tmp_path, verify, capsys):
    """Whatever file of a finished repo changes, `verify OUTPUT` sees it; of the card it is told."""
    output = tmp_path / "repo"
    options = ["--verify"] if verify else []
    assert convert_flax.main(_words(source, output) + options) == 0
    assert convert_flax.main(["verify", str(output)]) == 0
    assert convert_flax.main(["verify", str(output), "--checkpoint", str(source / "checkpoint")]) == 0
    assert "verified: " in capsys.readouterr().out
    chance = random.Random(2)
    for path in sorted(output.iterdir()):
        content = path.read_bytes()
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(7)
        path.write_bytes(flipped)
        capsys.readouterr()
        code = convert_flax.main(["verify", str(output)])
        said = capsys.readouterr()
        path.write_bytes(content)
        if path.name == "conversion.json":  # the manifest vouches for the rest; nothing here vouches for it
            continue
        document = path.name in ("README.md", "NOTICE")
        editable = path.name == "generation_config.json"  # an edit, if it still is JSON
        assert code in ((0,) if document else (0, 2) if editable else (2,)), path.name
        assert path.name in said.out + said.err
        path.rename(tmp_path / "aside")
        assert convert_flax.main(["verify", str(output)]) == (0 if document else 2)
        (tmp_path / "aside").rename(path)
    (output / "extra.bin").write_bytes(b"x")
    assert convert_flax.main(["verify", str(output)]) == 2
    assert "extra.bin is not in conversion.json" in capsys.readouterr().err
