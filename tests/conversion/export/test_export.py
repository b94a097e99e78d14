"""`convert_flax.py export`: the codes never change, what is interrupted goes on, what cannot be is refused.

Run: pytest tests/conversion/export/test_export.py
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from conversion.commands import convert as convert_command
from conversion.convert import pipeline
from conversion.errors import BadInput
from conversion.export.export import export
from conversion.folders.work_folder import WorkFolder
from conversion.formats import compressed_tensors
from conversion.repos.awq_repo import AwqRepo
from conversion.repos.stored_repo import open_repo
from conversion.small_files.repo_files import CODE_FILES
from convert_flax import main
from tests.conversion.helpers.awq_source import make_source
from tests.conversion.helpers.tiny import command_line, files_of


def test_codes_are_the_same_in_all_three_formats(source, packed, llama):
    repo, others = AwqRepo(source.path), [open_repo(packed), open_repo(llama)]
    for name in repo.linears:
        codes, scales = repo.linear(name)
        for other in others:
            found, found_scales = other.linear(name)
            np.testing.assert_array_equal(codes, found)
            np.testing.assert_array_equal(scales.astype(found_scales.dtype), found_scales)


def test_mlx_gets_no_embedding_in_float16(tmp_path):
    """It would add up the layers in that dtype, where Gemma 3's sums are clipped."""
    repo = AwqRepo(make_source(tmp_path, "int4", "float16").path)
    export(repo.path, tmp_path / "mlx", "mlx", report=lambda line: None)
    written = open_repo(tmp_path / "mlx")
    (codes, scales, _), (found, found_scales, _) = (each.embedding_rows(0, 9) for each in (repo, written))
    assert (scales.dtype, found_scales.dtype) == (np.float16, np.float32)
    np.testing.assert_array_equal(codes, found)
    np.testing.assert_array_equal(scales, found_scales)
    assert written.linear(repo.linears[0])[1].dtype == np.float16


def test_command_line_writes_any_format(plain, tmp_path):
    for kind, file in (("gguf", "model-Q4_0.gguf"), ("compressed-tensors", "model.safetensors")):
        from_repo, exported, from_checkpoint = (tmp_path / f"{kind}-{way}" for way in ("old", "new", "anew"))
        assert main(["--from-repo", str(plain.path), "--format", kind, "--output", str(from_repo)]) == 0
        assert main(["export", str(plain.path), "--format", kind, "--output", str(exported)]) == 0
        assert files_of(from_repo) == files_of(exported)
        made_with = json.loads((plain.path.parent / "made_with.json").read_text())
        assert main([*made_with, "--format", kind, "--output", str(from_checkpoint)]) == 0
        if kind == "compressed-tensors":
            assert (from_repo / file).read_bytes() == (from_checkpoint / file).read_bytes()
        assert {path.name for path in from_repo.iterdir()} == {path.name for path in from_checkpoint.iterdir()}
    assert not list(tmp_path.glob("*.awq"))


def _words(plain, output, *options):
    return [*json.loads((plain.path.parent / "made_with.json").read_text()), "--output", str(output), *options]


def test_the_final_folder_is_checked_before_anything_is_converted(plain, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("do not lose")
    monkeypatch.setattr(convert_command, "convert", lambda *args, **more: pytest.fail("converted"))
    assert main(_words(plain, tmp_path / "out", "--format", "gguf")) == 2
    assert "is not empty (holds thesis.tex)" in capsys.readouterr().err


def test_a_gguf_file_needs_a_tokenizer_from_the_start(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(convert_command, "convert", lambda *args, **more: pytest.fail("converted"))
    words = _words(plain, tmp_path / "out", "--format", "gguf")
    where = words.index("--checkpoint") + 1
    ignored = shutil.ignore_patterns("tokenizer.model")
    words[where] = str(shutil.copytree(words[where], tmp_path / "checkpoint", ignore=ignored))
    assert main(words) == 2
    assert "--format gguf: no tokenizer was found" in capsys.readouterr().err


def test_an_interrupted_export_goes_on(plain, tmp_path, monkeypatch, capsys):
    words = _words(plain, tmp_path / "out", "--format", "compressed-tensors")
    monkeypatch.setattr(compressed_tensors, "quantization_config", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(words) == 130
    assert "repeat the command to go on" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "LeafConversion", lambda *args: pytest.fail("converted again"))
    assert main(words) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not list(tmp_path.glob("*.awq"))


def test_an_export_stopped_before_its_files_are_moved_is_not_written_again(plain, tmp_path, monkeypatch):
    source = shutil.copytree(plain.path, tmp_path / "source")
    export(source, tmp_path / "whole", "compressed-tensors", report=lambda line: None)

    def stopped(work):
        raise KeyboardInterrupt

    output = tmp_path / "out"
    monkeypatch.setattr(WorkFolder, "publish", stopped)
    with pytest.raises(KeyboardInterrupt):
        export(source, output, "compressed-tensors")
    monkeypatch.undo()
    monkeypatch.setattr(compressed_tensors, "pack", lambda codes, scales: pytest.fail("written again"))
    weights = source / "model.safetensors"
    written = weights.stat().st_mtime_ns
    os.utime(weights, ns=(0, 0))
    with pytest.raises(BadInput, match="unfinished conversion that differs in: source files; repeat"):
        export(source, output, "compressed-tensors")
    os.utime(weights, ns=(written, written))
    export(source, output, "compressed-tensors")
    assert files_of(output) == files_of(tmp_path / "whole")


def test_an_export_that_fails_leaves_the_awq_repo_to_be_published(tmp_path, capsys):
    source = make_source(tmp_path, embedding="plain", largest=1e8)
    assert main(_words(source, tmp_path / "out", "--format", "gguf")) == 2
    assert f"with --output {tmp_path / 'out.awq'} the same command publishes it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(_words(source, tmp_path / "out.awq")) == 0
    assert main(["verify", str(tmp_path / "out.awq")]) == 0


@pytest.mark.parametrize("kind", ["gguf", "compressed-tensors"])
def test_every_format_has_a_card_and_the_notice(plain, tmp_path, kind):
    export(plain.path, tmp_path / "out", kind, report=lambda line: None)
    assert (tmp_path / "out" / "NOTICE").read_text() == (plain.path / "NOTICE").read_text()
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: gemma\n")
    assert f"- {kind}\n" in card
    assert "- awq\n" not in card
    assert "Google's Gemma 3 QAT INT4 checkpoint" in card
    if kind == "compressed-tensors":
        names, here = ({path.name for path in folder.iterdir()} for folder in (plain.path, tmp_path / "out"))
        assert names - here == {"int4_embedding.safetensors", *CODE_FILES}
    assert {"NOTICE", "README.md"} <= set(json.loads((tmp_path / "out" / "conversion.json").read_text())["files"])


def test_what_is_read_back_otherwise_is_no_full_disk(plain, tmp_path, monkeypatch):
    original = compressed_tensors.pack_words
    monkeypatch.setattr(compressed_tensors, "pack_words", lambda codes: original(codes) ^ 1)
    refused(plain.path, tmp_path / "out", "compressed-tensors", "read back other than written")


def test_command_line_says_what_is_wrong(plain, tmp_path, capsys):
    for words in (["--from-repo", str(plain.path)], ["export", str(plain.path), "--format", "awq"]):
        assert command_line([*words, "--output", str(tmp_path / "out")]) == 2
        assert "--format" in capsys.readouterr().err
    with pytest.raises(BadInput, match="is a repo in AWQ format already"):
        export(plain.path, tmp_path / "out", "awq")
    assert main(["--from-repo", str(tmp_path), "--format", "gguf", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("convert_flax: error: ")


# --- refusals ------------------------------------------------------------------------------------------------------


def refused(source: Path, output: Path, kind: str, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        export(source, output, kind, report=lambda line: None)
    assert not output.exists()


def test_only_a_converted_repo_is_exported(plain, packed, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path / "out", "gguf", "not a converted repo")
    refused(packed, tmp_path / "out", "gguf", "quant_method is 'compressed-tensors', expected")


def copied(source: Path, folder: Path, without: str = "") -> Path:
    folder.mkdir()
    for path in source.iterdir():
        if path.name != without:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("missing", ["tokenizer.json", "int4_embedding.safetensors", "model.safetensors"])
def test_a_missing_file_is_named(plain, tmp_path, missing):
    refused(copied(plain.path, tmp_path / "repo", without=missing), tmp_path / "out", "gguf", missing)


def test_a_shard_cut_short_is_named(plain, tmp_path):
    repo = copied(plain.path, tmp_path / "repo")
    shard = repo / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(repo, tmp_path / "out", "compressed-tensors", "its header says")


def test_scales_beyond_float16_are_refused(tmp_path):
    source = make_source(tmp_path, embedding="plain", largest=1e8)
    refused(source.path, tmp_path / "out", "gguf", "more than GGUF's float16 can")


def test_another_layer_pattern_is_refused(plain, tmp_path):
    repo = copied(plain.path, tmp_path / "repo")
    config = json.loads((repo / "config.json").read_text())
    config["text_config"]["layer_types"][0] = "full_attention"
    (repo / "config.json").write_text(json.dumps(config))
    refused(repo, tmp_path / "out", "gguf", "every sixth")
