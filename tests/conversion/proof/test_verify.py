"""`convert_flax.py verify` on every format: what is damaged is named, what is harmless passes.

Run: pytest tests/conversion/proof/test_verify.py
"""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import convert_flax
from conversion.repos.awq_repo import AwqRepo
from demo.flax_export import save_tree
from tests.conversion.helpers import tiny
from tests.conversion.helpers.small_tokenizer import IDS, small_model

FORMATS = ("awq", "awq-int4", "compressed-tensors", "gguf", "gguf-f16")
WEIGHTS = {"gguf": "model-Q4_0.gguf", "gguf-f16": "model-Q4_0-embedding-F16.gguf"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, and a repo of each format made from it."""
    folder = tmp_path_factory.mktemp("verify")
    config = tiny.multimodal_config()
    config.text_config.vocab_size = len(IDS) + 64
    config.boi_token_index, config.eoi_token_index = IDS["<start_of_image>"], IDS["<end_of_image>"]
    config.image_token_index = len(IDS)
    save_tree(tiny.make_tree(config, scales="float32", rows=len(IDS)), folder / "checkpoint")
    (folder / "checkpoint" / "tokenizer.model").write_bytes(small_model().SerializeToString())
    config_file = tiny.write_config(config, folder / "config.json")
    for name, embedding in ("awq", "plain"), ("awq-int4", "int4"):
        assert tiny.run(folder / "checkpoint", folder / name, config_file, "--embedding", embedding) == 0
    for name, options in (
        ("compressed-tensors", ["--format", "compressed-tensors"]),
        ("mlx", ["--format", "mlx"]),
        ("gguf", ["--format", "gguf"]),
        ("gguf-f16", ["--format", "gguf", "--gguf-embedding", "f16"]),
    ):
        assert convert_flax.main(["export", str(folder / "awq"), "--output", str(folder / name), *options]) == 0
    return folder


@pytest.fixture
def copied(made, tmp_path):
    """Makes a copy of a repo, to be changed."""
    return lambda name: Path(shutil.copytree(made / name, tmp_path / name))


@pytest.fixture
def verify(capsys):
    """Runs the verb; returns the exit code and all that was said."""

    def run(*words):
        capsys.readouterr()
        code = convert_flax.main(["verify", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def _weights(repo: Path) -> Path:
    return repo / WEIGHTS.get(repo.name, "model.safetensors")


def _flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*FORMATS, "mlx"])
def test_a_sound_repo_is_proven(made, verify, name):
    code, said = verify(made / name)
    assert code == 0
    assert "every SHA-256 as in conversion.json" in said
    assert "14 int4 matrices" in said
    assert "not compared with a source" in said
    code, said = verify(made / name, "--checkpoint", made / "checkpoint")
    assert code == 0, said
    assert f"verified: {made / name} holds what {made / 'checkpoint'} holds" in said
    if name != "awq-int4":
        code, said = verify(made / name, "--against", made / "awq")
        assert code == 0, said
        assert f"verified: {made / name} holds what {made / 'awq'} holds" in said


@pytest.mark.parametrize("name", FORMATS)
def test_one_bit_of_the_weights_is_found_and_its_tensor_named(made, copied, verify, name):
    repo = copied(name)
    _flip(_weights(repo), -3000)
    code, said = verify(repo)
    assert code == 2
    assert f"{_weights(repo).name} is not the file that was written" in said
    assert f"download or copy {_weights(repo).name} again, that file alone" in said
    for source in ("--checkpoint", made / "checkpoint"), ("--against", made / name.replace(name, "awq")):
        if source[0] == "--against" and name == "awq-int4":
            continue
        code, said = verify(repo, *source)
        assert code == 2
        assert "1 tensor differs from" in said
        assert ".weight" in said or "layers." in said
        assert f"download or copy {_weights(repo).name} again, that file alone" in said


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_cut_short(copied, verify, name):
    repo = copied(name)
    content = _weights(repo).read_bytes()
    _weights(repo).write_bytes(content[: len(content) // 2])
    code, said = verify(repo)
    assert code == 2
    assert f"{_weights(repo).name} is damaged: " in said
    if not name.startswith("gguf"):
        assert "so it lacks " in said
    (repo / "conversion.json").unlink()
    assert verify(repo)[0] == 2


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_missing(copied, verify, name):
    repo = copied(name)
    _weights(repo).unlink()
    code, said = verify(repo)
    assert code == 2
    assert f"{_weights(repo).name} is missing; download or copy" in said


@pytest.mark.parametrize("name", ["awq", "compressed-tensors", "gguf"])
def test_what_is_harmless(copied, verify, name):
    """What a desktop, a clone, an editor and Python leave, notes of one's own, and an edited card."""
    repo = copied(name)
    for litter in (
        ".DS_Store",
        "._README.md",
        "Thumbs.db",
        "desktop.ini",
        "README.md~",
        ".README.md.swp",
        ".gitignore",
    ):
        (repo / litter).write_bytes(b"x")
    for folder in (".git", ".cache", "__pycache__", ".ipynb_checkpoints"):
        (repo / folder).mkdir()
        (repo / folder / "model.safetensors").write_bytes(b"x")
    code, said = verify(repo)
    assert code == 0, said
    assert "note" not in said
    (repo / "README.md").write_text("my own words")
    (repo / "my-notes").mkdir()
    (repo / "my-notes" / "old.safetensors").write_bytes(b"x")
    code, said = verify(repo)
    assert code == 0, said
    assert "note: README.md was edited; harmless" in said
    assert "note: not of the repo, not looked at: my-notes" in said
    (repo / "README.md").unlink()
    code, said = verify(repo)
    assert code == 0, said
    assert "note: README.md is missing; the model does without" in said
    assert "download" not in said


def test_settings_that_may_be_edited(copied, verify):
    repo = copied("awq")
    values = json.loads((repo / "generation_config.json").read_text())
    (repo / "generation_config.json").write_text(json.dumps(values | {"temperature": 0.5}))
    (repo / "config.json").write_bytes((repo / "config.json").read_bytes().replace(b"\n", b"\r\n"))
    code, said = verify(repo)
    assert code == 0, said
    assert "generation_config.json was edited; the weights do not depend on it" in said
    assert "config.json: its line ends were changed" in said
    (repo / "generation_config.json").write_text("{")
    assert verify(repo)[0] == 2


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "modeling_gemma3_int4.py"])
def test_what_makes_it_another_model(copied, verify, name):
    repo = copied("awq")
    (repo / name).write_text((repo / name).read_text() + " ")
    code, said = verify(repo)
    assert code == 2
    assert f"{name} is not the file that was written" in said
    assert f"unless you edited it, download or copy {name} again, that file alone" in said


@pytest.mark.parametrize("name", ["awq", "compressed-tensors", "gguf"])
@pytest.mark.parametrize("extra", ["pytorch_model.bin", "old.safetensors", "adapter_model.safetensors", "other.gguf"])
def test_a_file_that_may_be_taken_for_the_weights(copied, verify, name, extra):
    repo = copied(name)
    (repo / extra).write_bytes(b"x")
    code, said = verify(repo)
    assert code == 2
    assert f"{extra} is not in conversion.json: not of this repo" in said
    assert "move it elsewhere" in said
    assert "download" not in said


@pytest.mark.parametrize("name", ["awq", "compressed-tensors", "gguf"])
def test_without_a_manifest_the_rest_is_checked(made, copied, verify, name):
    repo = copied(name)
    (repo / "conversion.json").unlink()
    code, said = verify(repo, "--checkpoint", made / "checkpoint")
    assert code == 0, said
    assert "note: no conversion.json: there are no hashes to compare with" in said
    assert "verified: " in said
    (repo / "conversion.json").write_text("{")
    code, said = verify(repo)
    assert code == 2
    assert "conversion.json: damaged" in said


def test_rewritten_shards_with_the_same_tensors_are_harmless_once_proven(made, copied, verify):
    repo = copied("awq")
    save_file(load_file(repo / "model.safetensors"), repo / "model.safetensors", metadata={"format": "pt", "by": "me"})
    assert verify(repo)[0] == 2
    code, said = verify(repo, "--checkpoint", made / "checkpoint")
    assert code == 0, said
    assert "note: model.safetensors is not the bytes that were written, but all its tensors are its source's" in said


def test_a_gguf_file_holds_more_than_tensors(made, copied, verify):
    repo = copied("gguf")
    file = repo / "model-Q4_0.gguf"
    _flip(file, file.read_bytes().index(b"<start_of_turn>") + 3)
    code, said = verify(repo, "--checkpoint", made / "checkpoint")
    assert code == 2
    assert "are its source's, but what it holds beside them, as the tokenizer, is not what was written" in said


def test_a_rewritten_shard_that_lost_a_tensor(made, copied, verify):
    repo = copied("awq")
    tensors = load_file(repo / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.scales"))
    del tensors[name]
    save_file(tensors, repo / "model.safetensors", metadata={"format": "pt"})
    code, said = verify(repo, "--checkpoint", made / "checkpoint")
    assert code == 2
    assert f"{name} is missing" in said


def test_zero_points_are_named(copied, verify):
    repo = copied("awq")
    tensors = load_file(repo / "model.safetensors")
    name = AwqRepo(repo).linears[3] + ".qzeros"
    tensors[name][0, 0] += 1
    save_file(tensors, repo / "model.safetensors", metadata={"format": "pt"})
    code, said = verify(repo)
    assert code == 2
    assert f"model.safetensors is damaged: {name} cannot be right" in said
    (repo / "conversion.json").unlink()
    code, said = verify(repo)
    assert code == 2
    assert f"{name} holds zero points other than 8" in said


def test_another_source(made, tmp_path, verify):
    config = tiny.multimodal_config()
    save_tree(tiny.make_tree(config, seed=9), tmp_path / "checkpoint")
    for name in "awq", "compressed-tensors", "gguf":
        assert verify(made / name, "--checkpoint", tmp_path / "checkpoint")[0] == 2


def test_a_source_given_under_the_other_option(made, verify):
    code, said = verify(made / "gguf", "--against", made / "checkpoint")
    assert code == 2
    assert f"is a Flax checkpoint; type --checkpoint {made / 'checkpoint'}" in said
    code, said = verify(made / "gguf", "--checkpoint", made / "awq")
    assert code == 2
    assert "is a converted repo (AWQ)" in said
    code, said = verify(made / "gguf", "--against", made / "compressed-tensors")
    assert code == 2
    assert "is no AWQ repo, but of format compressed-tensors" in said


def test_the_project_itself_is_a_sound_repo(verify):
    code, said = verify(Path(convert_flax.__file__).parent)
    assert code == 0, said
