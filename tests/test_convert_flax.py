"""The command line: tiny checkpoints of every kind become complete repos; every bad input is one line and exit code 2.

Run: pytest tests/test_convert_flax.py
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import AutoConfig, GenerationConfig

import convert_flax
from conversion.codes import dequantize
from conversion.errors import BadInput
from conversion.options import Options
from conversion.small_files import repo_files
from conversion.source import flax_source
from conversion.source.flax_checkpoint import FlaxCheckpoint
from demo.flax_export import save_tree
from tests.conversion.helpers import tiny

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def config():
    return tiny.multimodal_config()


@pytest.fixture(scope="module")
def tree(config):
    return tiny.make_tree(config)


@pytest.fixture(scope="module")
def config_file(config, tmp_path_factory):
    return tiny.write_config(config, tmp_path_factory.mktemp("config") / "config.json")


@pytest.fixture(scope="module")
def checkpoint(tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "checkpoint"
    save_tree(tree, folder)
    return folder


@pytest.fixture
def copied(checkpoint, tmp_path):
    """A checkpoint to be damaged."""
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


# What comes out


@pytest.mark.parametrize("embedding", ["plain", "int4"])
@pytest.mark.parametrize(
    "variant", [{}, {"zarr3": True}, {"ocdbt": False}, {"chunk_bytes": 3000}, {"chunk_bytes": 3000, "zarr3": True}]
)
def test_every_tensor_equals_its_source(tree, config, config_file, variant, embedding, tmp_path):
    save_tree(tree, tmp_path / "checkpoint", **variant)
    output = tmp_path / "repo"
    assert tiny.run(tmp_path / "checkpoint", output, config_file, "--dtype", "float32", "--embedding", embedding) == 0
    found, expected = tiny.read_back(output), tiny.expected(tree, config)
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].shape == values.shape, name
        assert (found[name] == values).all(), name


def test_goldens_convert_exactly(goldens, tmp_path):
    for case in ("mm-27b-style", "text-1b-style"):
        settings = json.loads((goldens / case / "case.json").read_text())
        path = tmp_path / f"{case}.json"
        path.write_text(json.dumps(settings["transformers_config"]))
        assert tiny.run(goldens / case, tmp_path / case, path, "--dtype", "float32") == 0
        found = tiny.read_back(tmp_path / case)
        source = FlaxCheckpoint(goldens / case)
        manifest = json.loads((tmp_path / case / "conversion.json").read_text())
        assert len(manifest["leaves"]) == settings["checkpoint"]["leaves"]
        assert manifest["scales"]["dtype"] == "bfloat16"
        assert manifest["scales"]["inexact"] == 0
        prefix = "language_model.model" if settings["checkpoint"]["multimodal"] else "model"
        linear = source.leaves["transformer/layer_3/mlp/linear/w"].read()
        assert (found[f"{prefix}.layers.3.mlp.down_proj.weight"] == linear.T).all()
        query = source.leaves["transformer/layer_3/attn/q_einsum/w"].read()
        rows = query.transpose(0, 2, 1).reshape(-1, query.shape[1])
        assert (found[f"{prefix}.layers.3.self_attn.q_proj.weight"] == rows).all()


def test_a_text_only_checkpoint(tmp_path):
    config = tiny.text_config()
    tree = tiny.make_tree(config, seed=5, scales="float32")
    save_tree(tree, tmp_path / "checkpoint")
    config_file = tiny.write_config(config, tmp_path / "config.json")
    assert (
        tiny.run(
            tmp_path / "checkpoint", tmp_path / "repo", config_file, "--dtype", "float32", "--scale-dtype", "float32"
        )
        == 0
    )
    found, expected = tiny.read_back(tmp_path / "repo"), tiny.expected(tree, config)
    assert set(found) == set(expected)
    assert all((found[name] == values).all() for name, values in expected.items())
    written = json.loads((tmp_path / "repo" / "config.json").read_text())
    assert written["architectures"] == ["Gemma3ForCausalLM"]
    assert written["auto_map"] == {
        "AutoConfig": "int4_config.Gemma3TextConfig",
        "AutoModel": "modeling_gemma3_int4.Gemma3TextModel",
        "AutoModelForCausalLM": "modeling_gemma3_int4.Gemma3ForCausalLM",
    }


def test_text_only_drops_the_vision_tower(tree, config, checkpoint, config_file, tmp_path):
    assert tiny.run(checkpoint, tmp_path / "repo", config_file, "--dtype", "float32", "--text-only") == 0
    found, expected = tiny.read_back(tmp_path / "repo"), tiny.expected(tree, config, text_only=True)
    assert set(found) == set(expected)
    assert all((found[name] == values).all() for name, values in expected.items())
    assert json.loads((tmp_path / "repo" / "config.json").read_text())["model_type"] == "gemma3_text"


def test_the_plain_embedding_gives_its_codes_back(tree, checkpoint, config_file, tmp_path):
    assert tiny.run(checkpoint, tmp_path / "repo", config_file, "--dtype", "bfloat16") == 0
    index = json.loads((tmp_path / "repo" / "model.safetensors.index.json").read_text())
    side = load_file(tmp_path / "repo" / "int4_embedding.safetensors")
    assert list(side) == ["language_model.model.embed_tokens.scales"]
    assert not set(side) & set(index["weight_map"])
    weight = (
        load_file(tmp_path / "repo" / "model.safetensors")["language_model.model.embed_tokens.weight"].float().numpy()
    )
    scales = side["language_model.model.embed_tokens.scales"].float().numpy()
    codes = np.rint(weight / np.repeat(scales, 32, axis=1)).astype(np.int8)
    source = tree["transformer/embedder"]["input_embedding"]
    assert (dequantize(codes, scales)[: tiny.ROWS] == source).all()
    assert (weight[tiny.ROWS :] == 0).all()
    assert (scales[tiny.ROWS :] == 1).all()


def test_a_negative_zero_changes_nothing(tree, checkpoint, config_file, tmp_path):
    negative = {module: dict(leaves) for module, leaves in tree.items()}
    values = negative["transformer/embedder"]["input_embedding"].copy()
    assert (values == 0).any()
    values[values == 0] = -0.0
    negative["transformer/embedder"]["input_embedding"] = values
    save_tree(negative, tmp_path / "checkpoint")
    for source, output in (checkpoint, "one"), (tmp_path / "checkpoint", "other"):
        assert tiny.run(source, tmp_path / output, config_file) == 0
    assert (tmp_path / "one" / "model.safetensors").read_bytes() == (
        tmp_path / "other" / "model.safetensors"
    ).read_bytes()


@pytest.fixture(scope="module")
def repo(checkpoint, config_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("converted") / "repo"
    assert tiny.run(checkpoint, output, config_file) == 0
    return output


def test_the_files_of_a_repo(repo):
    names = {path.name for path in repo.iterdir()}
    assert names >= {
        "NOTICE",
        "README.md",
        "config.json",
        "conversion.json",
        "generation_config.json",
        "int4_embedding.safetensors",
        "model.safetensors",
        "model.safetensors.index.json",
        "modeling_gemma3_int4.py",
        "int4_layers.py",
        "int4_codes.py",
    }
    assert not any(name.startswith(".") for name in names)
    assert "Nothing was quantised here." in (repo / "README.md").read_text()
    manifest = json.loads((repo / "conversion.json").read_text())
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in repo.iterdir()}
    del hashes["conversion.json"]
    assert manifest["files"] == hashes
    index = json.loads((repo / "model.safetensors.index.json").read_text())
    tensors = load_file(repo / "model.safetensors")
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())


def test_the_configuration(repo, config):
    values = json.loads((repo / "config.json").read_text())
    assert values["dtype"] == values["text_config"]["dtype"] == "bfloat16"
    assert values["auto_map"] == {
        "AutoConfig": "int4_config.Gemma3Config",
        "AutoModel": "modeling_gemma3_int4.Gemma3Model",
        "AutoModelForCausalLM": "modeling_gemma3_int4.Gemma3ForConditionalGeneration",
        "AutoModelForImageTextToText": "modeling_gemma3_int4.Gemma3ForConditionalGeneration",
        "AutoModelForMultimodalLM": "modeling_gemma3_int4.Gemma3ForConditionalGeneration",
    }
    quantization = values["quantization_config"]
    assert (quantization["quant_method"], quantization["bits"], quantization["group_size"]) == ("awq", 4, 32)
    assert {"model.vision_tower", "vision_tower", "embed_tokens"} <= set(quantization["modules_to_not_convert"])
    read = AutoConfig.from_pretrained(repo)
    assert read.text_config.to_dict()["layer_types"] == config.text_config.layer_types
    generation = GenerationConfig.from_pretrained(repo)
    assert generation.do_sample is False  # a config of one's own: not Google's model, not its sampling
    assert generation.cache_implementation is None
    published = repo_files.generation_config(config, "it", published=True)
    assert (published["top_k"], published["top_p"], published["do_sample"]) == (64, 0.95, True)


@pytest.mark.parametrize(("given", "written"), [("bfloat16", "BF16"), ("float16", "F16"), ("float32", "F32")])
def test_scale_dtypes_asked_for(checkpoint, config_file, given, written, tmp_path):
    assert tiny.run(checkpoint, tmp_path / "repo", config_file, "--scale-dtype", given) == 0
    assert _header(tmp_path / "repo" / "model.safetensors", "layers.0.mlp.up_proj.scales")["dtype"] == written


@pytest.mark.parametrize(
    ("made_of", "chosen"),
    [("bfloat16", "bfloat16"), ("float16", "float16"), ("normal", "float16"), ("tiny", "float32")],
)
def test_scale_dtype_auto(config, config_file, made_of, chosen, tmp_path, capsys):
    """bfloat16 if exact, else float16 if exact, else float16 if all scales are in its normal range, else float32."""
    tree = tiny.make_tree(config)
    rng = np.random.default_rng(7)
    weights = tree["transformer/layer_0/mlp/linear"]["w"]  # [in, out]
    codes = rng.integers(-7, 8, weights.shape).astype(np.int8)
    codes[::32] = 7
    scales = rng.uniform(1e-3, 1e-1, (weights.shape[0] // 32, weights.shape[1])).astype(np.float32)
    if made_of == "float16":
        scales = scales.astype(np.float16).astype(np.float32)
    if made_of == "tiny":
        scales[0, 0] = 1e-6
    if made_of != "bfloat16":
        tree["transformer/layer_0/mlp/linear"]["w"] = dequantize(codes, scales, 0)
    save_tree(tree, tmp_path / "checkpoint")
    assert tiny.run(tmp_path / "checkpoint", tmp_path / "repo", config_file) == 0
    summary = json.loads((tmp_path / "repo" / "conversion.json").read_text())["scales"]
    assert summary["dtype"] == chosen
    if made_of == "normal":
        assert 0 < summary["inexact"] <= scales.size
        assert 0 < summary["worst_relative_error"] <= 2**-11
        assert f"{summary['inexact']} of {summary['count']} rounded" in capsys.readouterr().out
    else:
        assert summary["inexact"] == 0


def test_shards_and_index(checkpoint, config, tree, config_file, tmp_path):
    """Several shards: names and index as transformers writes them, no shard above the limit."""
    options = ["--dtype", "float32", "--shard-size", "80KB"]
    assert tiny.run(checkpoint, tmp_path / "repo", config_file, *options) == 0
    shards = sorted(path.name for path in (tmp_path / "repo").glob("model-*.safetensors"))
    assert len(shards) > 3
    assert shards == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert all((tmp_path / "repo" / name).stat().st_size <= 80_000 for name in shards)
    found, expected = tiny.read_back(tmp_path / "repo"), tiny.expected(tree, config)
    assert set(found) == set(expected)
    assert all((found[name] == values).all() for name, values in expected.items())


def test_a_donor_fills_what_is_missing(tree, config, config_file, tmp_path):
    lacking = {module: leaves for module, leaves in tree.items() if "mm_input_projection" not in module}
    save_tree(lacking, tmp_path / "checkpoint")
    projection = np.random.default_rng(1).standard_normal((32, 64)).astype(np.float32)
    (tmp_path / "donor").mkdir()
    import torch

    name = "model.multi_modal_projector.mm_input_projection_weight"  # the newer key layout
    save_file({name: torch.from_numpy(projection)}, tmp_path / "donor" / "model.safetensors")
    options = ["--dtype", "float32", "--donor", str(tmp_path / "donor")]
    assert tiny.run(tmp_path / "checkpoint", tmp_path / "repo", config_file, *options) == 0
    found = tiny.read_back(tmp_path / "repo")
    assert (found["multi_modal_projector.mm_input_projection_weight"] == projection).all()
    donor = json.loads((tmp_path / "repo" / "conversion.json").read_text())["source"]["donor"]
    assert donor["leaves"] == ["transformer/embedder/mm_input_projection/w"]


def test_a_tokenizer_folder_is_copied(checkpoint, config_file, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer_config.json", "chat_template.jinja", "notes.txt"):
        (tmp_path / "tokenizer" / name).write_text(f"content of {name}")
    Tokenizer(models.WordLevel({"<unk>": 3}, "<unk>")).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    assert tiny.run(checkpoint, tmp_path / "repo", config_file, "--tokenizer", str(tmp_path / "tokenizer")) == 0
    names = ("tokenizer.json", "tokenizer_config.json")
    assert all((tmp_path / "repo" / n).read_bytes() == (tmp_path / "tokenizer" / n).read_bytes() for n in names)
    assert (tmp_path / "repo" / "chat_template.jinja").exists()
    assert not (tmp_path / "repo" / "notes.txt").exists()


def test_plan_reads_metadata_only(checkpoint, config_file, capsys):
    assert convert_flax.main(["plan", "--checkpoint", str(checkpoint), "--config", str(config_file)]) == 0
    text = capsys.readouterr().out
    assert "model.safetensors" in text
    assert "14 int4 matrices, 1 int4 embedding" in text


# What may be inexact


def test_a_noisy_tensor_is_taken_with_least_squares_and_reported(tree, config, config_file, tmp_path, capsys):
    """All groups of a tensor off by some 1e-6: the norm of the tensor, counted and reported."""
    noisy = {module: dict(leaves) for module, leaves in tree.items()}
    weights = noisy["transformer/layer_0/mlp/linear"]["w"]
    noise = np.random.default_rng(3).uniform(-1e-6, 1e-6, weights.shape)
    noisy["transformer/layer_0/mlp/linear"]["w"] = (weights * (1 + noise)).astype(np.float32)
    save_tree(noisy, tmp_path / "checkpoint")
    assert tiny.run(tmp_path / "checkpoint", tmp_path / "repo", config_file, "--scale-dtype", "float32") == 0
    manifest = json.loads((tmp_path / "repo" / "conversion.json").read_text())
    facts = next(leaf for leaf in manifest["leaves"] if leaf["leaf"] == "transformer/layer_0/mlp/linear/w")
    assert facts["inexact"] > 0.9 * facts["groups"]
    assert 0 < facts["worst"] < 1e-5
    assert "transformer/layer_0/mlp/linear/w" in capsys.readouterr().out
    found = tiny.read_back(tmp_path / "repo")["language_model.model.layers.0.mlp.down_proj.weight"]
    assert np.abs(found.T - noisy["transformer/layer_0/mlp/linear"]["w"]).max() < 1e-5


def _off_by(tree, deviation):
    """One element of one group moved by this share of the group's largest weight."""
    damaged = {module: dict(leaves) for module, leaves in tree.items()}
    weights = damaged["transformer/layer_0/mlp/linear"]["w"].copy()
    weights[5, 3] += np.float32(deviation) * np.abs(weights[:32, 3]).max()
    damaged["transformer/layer_0/mlp/linear"]["w"] = weights
    return damaged


def test_a_lone_inexact_group_is_damage(tree, config_file, tmp_path, capsys):
    save_tree(_off_by(tree, 3e-6), tmp_path / "checkpoint")
    _refused(capsys, tmp_path / "checkpoint", tmp_path / "repo", config_file, match="1 of 192 groups")
    assert tiny.run(tmp_path / "checkpoint", tmp_path / "repo", config_file, "--tolerance", "1e-5") == 0
    manifest = json.loads((tmp_path / "repo" / "conversion.json").read_text())
    facts = next(leaf for leaf in manifest["leaves"] if leaf["leaf"] == "transformer/layer_0/mlp/linear/w")
    assert facts["inexact"] == 1
    card = (tmp_path / "repo" / "README.md").read_text()
    assert "1 of 3072 groups of 32 lie on no grid" in card
    assert "Nothing was quantised" not in card


def test_tolerance_has_its_limit(tree, config_file, tmp_path, capsys):
    save_tree(_off_by(tree, 3e-3), tmp_path / "checkpoint")
    options = ("--tolerance", "1e-5")
    _refused(capsys, tmp_path / "checkpoint", tmp_path / "repo", config_file, *options, match="--tolerance 0.00")


# What is refused


def _refused(capsys, checkpoint, output, config, *options, match):
    """Exit code 2, one line that says `match`, and the output folder as it was."""
    before = tiny.files_of(output) if output.exists() else None
    capsys.readouterr()
    assert tiny.run(checkpoint, output, config, *options) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("converting")]
    assert len(error) == 1, error
    assert error[0].startswith("convert_flax: error: ")
    assert match in error[0]
    assert (tiny.files_of(output) if output.exists() else None) == before


def _data_file(checkpoint):
    return max(checkpoint.rglob("ocdbt.process_0/d/*"), key=lambda path: path.stat().st_size)


def test_not_a_checkpoint(capsys, config_file, tmp_path):
    _refused(capsys, tmp_path / "nowhere", tmp_path / "repo", config_file, match="no such folder")
    (tmp_path / "empty").mkdir()
    _refused(capsys, tmp_path / "empty", tmp_path / "repo", config_file, match="not an Orbax checkpoint")


def test_a_truncated_data_file(capsys, copied, config_file, tmp_path):
    with _data_file(copied).open("r+b") as file:
        file.truncate(_data_file(copied).stat().st_size // 2)
    _refused(capsys, copied, tmp_path / "repo", config_file, match="cut short")


def test_a_missing_data_file(capsys, copied, config_file, tmp_path):
    _data_file(copied).unlink()
    _refused(capsys, copied, tmp_path / "repo", config_file, match="missing or cut short")


def test_a_missing_leaf(capsys, tree, config_file, tmp_path):
    lacking = {module: leaves for module, leaves in tree.items() if module != "transformer/layer_1/mlp/linear"}
    save_tree(lacking, tmp_path / "checkpoint")
    _refused(
        capsys,
        tmp_path / "checkpoint",
        tmp_path / "repo",
        config_file,
        match="missing transformer/layer_1/mlp/linear/w",
    )


def test_an_extra_leaf(capsys, tree, config_file, tmp_path):
    save_tree(tree | {"transformer/surprise": {"w": np.zeros(3, np.float32)}}, tmp_path / "checkpoint")
    _refused(capsys, tmp_path / "checkpoint", tmp_path / "repo", config_file, match="unknown transformer/surprise/w")


@pytest.mark.parametrize("module", ["transformer/layer_0/mlp/linear", "transformer/final_norm", "transformer/embedder"])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_value_that_is_not_finite(capsys, tree, config_file, module, value, tmp_path):
    damaged = {name: dict(leaves) for name, leaves in tree.items()}
    leaf = next(iter(damaged[module]))
    values = damaged[module][leaf].copy()
    place = (40, 3)[: values.ndim]
    values[place] = value
    damaged[module][leaf] = values
    save_tree(damaged, tmp_path / "checkpoint")
    expected = f"value {float(value)} at {list(place)}"
    _refused(capsys, tmp_path / "checkpoint", tmp_path / "repo", config_file, match=expected)


def test_a_tensor_off_the_grid(capsys, tree, config_file, tmp_path):
    damaged = {name: dict(leaves) for name, leaves in tree.items()}
    shape = damaged["transformer/layer_0/attn/q_einsum"]["w"].shape
    damaged["transformer/layer_0/attn/q_einsum"]["w"] = (
        np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    )
    save_tree(damaged, tmp_path / "checkpoint")
    match = "attn/q_einsum/w: 256 of 256 groups of 32 lie on no int4 grid: this is not an INT4 (QAT) checkpoint"
    _refused(capsys, tmp_path / "checkpoint", tmp_path / "repo", config_file, match=match)
    assert tiny.run(tmp_path / "checkpoint", tmp_path / "repo", config_file) == 2
    assert "--tolerance" not in capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_leaves_of_another_dtype_are_refused(capsys, tree, config_file, dtype, tmp_path):
    other = {name: dict(leaves) for name, leaves in tree.items()}
    other["transformer/final_norm"]["scale"] = other["transformer/final_norm"]["scale"].astype(dtype)
    save_tree(other, tmp_path / "checkpoint")
    match = f"transformer/final_norm/scale is {dtype}"
    _refused(capsys, tmp_path / "checkpoint", tmp_path / "repo", config_file, match=match)


def test_a_flipped_bit_off_the_grid(capsys, tree, config_file, tmp_path):
    """One mantissa bit of one stored float: a lone inexact group."""
    save_tree(tree, tmp_path / "checkpoint", compression=False)
    values = tree["transformer/layer_0/mlp/linear"]["w"]
    for path in (tmp_path / "checkpoint").rglob("d/*"):
        content = bytearray(path.read_bytes())
        place = content.find(values.tobytes())
        if place >= 0:
            content[place + 4 * 100 + 1] ^= 4
            path.write_bytes(content)
            break
    else:
        pytest.fail("the leaf was not found in the checkpoint's files")
    _refused(capsys, tmp_path / "checkpoint", tmp_path / "repo", config_file, match="mlp/linear/w: 1 of 192 groups")


def test_an_output_folder_that_is_not_empty(capsys, checkpoint, config_file, tmp_path):
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "thesis.tex").write_text("do not lose")
    _refused(capsys, checkpoint, tmp_path / "repo", config_file, match="is not empty (holds thesis.tex)")
    (tmp_path / "file").write_text("x")
    assert tiny.run(checkpoint, tmp_path / "file", config_file) == 2
    assert "is a file" in capsys.readouterr().err


def test_an_unknown_size_without_a_config(capsys, checkpoint, tmp_path):
    _refused(capsys, checkpoint, tmp_path / "repo", None, match="--config")


def test_a_config_that_disagrees(capsys, checkpoint, config, tmp_path):
    values = config.to_dict()
    values["text_config"]["hidden_size"] = 96
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    _refused(capsys, checkpoint, tmp_path / "repo", path, match="the config says [4, 96, 32]")
    path.write_text("{")
    _refused(capsys, checkpoint, tmp_path / "repo", path, match="not readable as a JSON config")
    path.write_text('{"model_type": "llama"}')
    _refused(capsys, checkpoint, tmp_path / "repo", path, match="model_type is 'llama'")


def test_a_tokenizer_that_is_none(capsys, checkpoint, config_file, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    options = ("--tokenizer", str(tmp_path / "tokenizer"))
    _refused(
        capsys, checkpoint, tmp_path / "repo", config_file, *options, match="neither tokenizer.json nor tokenizer.model"
    )
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    _refused(capsys, checkpoint, tmp_path / "repo", config_file, *options, match="tokenizer.json: not a tokenizer")


@pytest.mark.parametrize(
    ("vocabulary", "said"),
    [
        ({}, "knows no token"),
        ({"<unk>": 3, "word": 9000}, "its last token is 9000, the embedding has 256 rows: it is another model's"),
        ({"<unk>": 3, "<bos>": 1}, "<bos> is token 1, expected 2: it is another model's"),
    ],
)
def test_another_models_tokenizer(capsys, checkpoint, config_file, tmp_path, vocabulary, said):
    (tmp_path / "tokenizer").mkdir()
    Tokenizer(models.WordLevel(vocabulary, "<unk>")).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    options = ("--tokenizer", str(tmp_path / "tokenizer"))
    _refused(capsys, checkpoint, tmp_path / "repo", config_file, *options, match=said)


def test_a_tokenizer_is_found_as_deep_as_a_checkpoint_is(checkpoint, config_file, tmp_path, monkeypatch, capsys):
    """From within the folder too; and if there is none, the last line says so."""
    inner = tmp_path / "archive" / "between" / "checkpoint"
    shutil.copytree(checkpoint, inner)
    monkeypatch.chdir(inner)
    assert tiny.run(Path("."), tmp_path / "without", config_file) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("WARNING: no tokenizer was found")
    (tmp_path / "archive" / "tokenizer.model").write_bytes(b"no protocol buffer")
    for given in (tmp_path / "archive", Path("."), Path("../checkpoint")):
        _refused(
            capsys, given, tmp_path / "repo", config_file, match=f"{tmp_path / 'archive' / 'tokenizer.model'}: not"
        )


def test_a_tokenizer_that_is_damaged_is_found_beside_the_weights_not_after_them(
    capsys, checkpoint, config_file, tmp_path, monkeypatch
):
    (tmp_path / "tokenizer.model").write_bytes(b"no protocol buffer")

    recovered = flax_source.code_blocks

    def endless(*args):
        first, *_ = recovered(*args)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            yield first
        pytest.fail("the weights were not given up")

    monkeypatch.setattr(flax_source, "code_blocks", endless)
    options = ("--tokenizer", str(tmp_path / "tokenizer.model"))
    _refused(capsys, checkpoint, tmp_path / "repo", config_file, *options, match="tokenizer.model")


def test_scales_that_float16_cannot_hold(capsys, config, config_file, tmp_path):
    tree = tiny.make_tree(config)
    tree["transformer/layer_0/mlp/linear"]["w"] = tree["transformer/layer_0/mlp/linear"]["w"] * np.float32(2**20)
    save_tree(tree, tmp_path / "checkpoint")
    _refused(
        capsys, tmp_path / "checkpoint", tmp_path / "repo", config_file, "--scale-dtype", "float16", match="use auto"
    )


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--dtype", "bf16", "bfloat16"),
        ("--dtype", "float16", "Gemma 3 overflows float16; choose bfloat16 or float32"),
        ("--scale-dtype", "int8", "bfloat16"),
        ("--embedding", "int8", "plain"),
        ("--variant", "base", "pt"),
        ("--format", "exl2", "gguf"),
        ("--tolerance", "-1.0", "from 0 to below 1"),
        ("--tolerance", "little", "from 0 to below 1"),
        ("--workers", "0", "1 or more"),
        ("--shard-size", "5", "is no size"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_option_and_its_values(
    capsys, checkpoint, config_file, tmp_path, option, value, said
):
    assert tiny.run(checkpoint, tmp_path / "repo", config_file, option, value) == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: convert_flax.py convert --checkpoint DIR --output DIR")
    assert error.startswith(f"convert_flax: error: {option}: ")
    assert value in error
    assert said in error
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dtype": "float16"}, "--dtype float16: Gemma 3 overflows float16; choose bfloat16 or float32"),
        ({"scale_dtype": "int8"}, "--scale-dtype int8: choose auto or"),
        ({"embedding": "int8"}, "--embedding int8: choose plain or int4"),
        ({"variant": "base"}, "--variant base: choose it or pt"),
        ({"workers": 0}, "--workers 0: give 1 or more"),
        ({"tolerance": 1.0}, "--tolerance 1.0: give a number from 0 to below 1"),
    ],
)
def test_a_caller_gets_the_same_refusals(changed, said):
    with pytest.raises(BadInput, match=said):
        Options(Path("checkpoint"), Path("repo"), **changed).check_values()


@pytest.mark.parametrize(
    ("words", "usage", "said"),
    [
        ([], "{convert,export,plan,verify,quality}", "VERB"),
        (["convrt", "--output", "x"], "{convert,export,plan,verify,quality}", "'convrt'"),
        (["convert"], "convert --checkpoint DIR", "--checkpoint, --output"),
        (["--output", "x"], "convert --checkpoint DIR", "required: --checkpoint"),
        (["plan"], "plan --checkpoint DIR", "required: --checkpoint"),
        (["export", "repo", "--output", "x"], "export REPO", "required: --format"),
        (["--from-repo", "repo", "--format", "gguf"], "export REPO", "required: --output"),
        (["verify"], "verify REPO", "required: REPO"),
        (["quality", "repo"], "quality REPO", "required: --text"),
        (["quality", "repo", "--text", "x", "--window", "wide"], "quality REPO", "--window: wide"),
    ],
)
def test_what_is_missing_or_unknown_is_one_line_and_the_usage(capsys, words, usage, said):
    assert tiny.command_line(words) == 2
    first, error = capsys.readouterr().err.splitlines()
    assert first.startswith(f"usage: convert_flax.py {usage}")
    assert error.startswith("convert_flax: error: ")
    assert said in error


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (["--checkpoint", "a", "--output", "b"], ["convert", "--checkpoint", "a", "--output", "b"]),
        (
            ["--from-repo", "a", "--format", "gguf", "--output", "b"],
            ["export", "a", "--format", "gguf", "--output", "b"],
        ),
        (["--format=gguf", "--from-repo=a", "--output=b"], ["export", "a", "--format", "gguf", "--output", "b"]),
        (
            ["convert", "--from-repo", "a", "--format", "gguf", "--output", "b"],
            ["export", "a", "--format", "gguf", "--output", "b"],
        ),
    ],
)
def test_old_spellings_mean_the_same(old, new):
    assert convert_flax.parse(old) == convert_flax.parse(new)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--form", "gguf"], "--form gguf"),
        (["--push", "some/one"], "--push some/one"),
        (["plan", "--push-to-hub", "some/one"], "--push-to-hub some/one"),
        (["plan", "--from-repo", "repo"], "--from-repo repo"),
        (["plan", "--verify"], "--verify"),
    ],
)
def test_options_that_would_be_ignored_are_unknown(checkpoint, config_file, tmp_path, capsys, words, said):
    given = ["--checkpoint", str(checkpoint), "--config", str(config_file), "--output", str(tmp_path / "repo")]
    with pytest.raises(SystemExit) as stop:
        convert_flax.main([*words, *given])
    assert stop.value.code == 2
    assert f"unrecognized arguments: {said}" in capsys.readouterr().err
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["verify", "repo", "--source-hashes", "SHA256SUMS"], "name it with --checkpoint"),
        (["--checkpoint", "x", "--output", "y", "--gguf-embedding", "f16"], "--gguf-embedding: is for --format gguf"),
    ],
)
def test_options_without_their_fellow(words, said, capsys):
    assert convert_flax.main(words) == 2
    assert said in capsys.readouterr().err


HELP = {
    "": "convert_flax.py verify REPO [--checkpoint DIR]",
    "convert": "Converts a checkpoint into a complete Hugging Face repo",
    "export": "for another engine",
    "plan": "from the checkpoint's metadata alone",
    "verify": "number by number",
    "quality": "Perplexity and bits per byte",
}
HELP_ALONE = """
import sys
import time
import convert_flax
heavy = {"numpy", "torch", "transformers", "tensorstore", "ml_dtypes", "tokenizers", "safetensors", "huggingface_hub"}
try:
    convert_flax.main(sys.argv[1:])
finally:
    assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


@pytest.mark.parametrize("verb", HELP)
def test_help_imports_nothing_heavy(verb):
    words = [*([verb] if verb else []), "--help"]
    command = [sys.executable, "-c", HELP_ALONE, *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert HELP[verb] in " ".join(result.stdout.split())


INTERRUPTED = """
import importlib.abc, os, runpy, signal, sys

class Interrupt(importlib.abc.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = ["convert_flax.py", *{words}]
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.parametrize("module", ["numpy", "tensorstore", "transformers", "torch", "conversion.convert.pipeline"])
def test_interrupted_while_importing(module, tmp_path):
    words = ["convert", "--checkpoint", str(tmp_path), "--output", str(tmp_path / "repo")]
    code = INTERRUPTED.format(module=module, words=words, script=str(ROOT / "convert_flax.py"))
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr, result.stdout) == (130, "convert_flax: interrupted\n", "")


def test_a_relative_path_that_goes_up(checkpoint, config_file, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    shutil.copytree(checkpoint, tmp_path / "mm")
    monkeypatch.chdir(tmp_path / "here")
    assert convert_flax.main(["plan", "--checkpoint", "../mm", "--config", str(config_file)]) == 0


def test_an_output_folder_that_cannot_be_made(checkpoint, config_file, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    _refused(capsys, checkpoint, tmp_path / "file" / "repo", config_file, match="cannot be made")


def test_many_problems_are_counted_not_listed(tree, checkpoint, config, tmp_path, capsys):
    values = config.to_dict()
    values["text_config"]["num_hidden_layers"] = 40
    values["text_config"]["layer_types"] = ["full_attention"] * 40
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert tiny.run(checkpoint, tmp_path / "repo", path) == 2
    error = capsys.readouterr().err
    assert "more" in error
    assert len(error) < 1000


@pytest.mark.parametrize("start", [b"\xff" * 8, b"\x00" * 8])
def test_a_shard_whose_header_has_another_length(checkpoint, config_file, tmp_path, start, capsys):
    assert tiny.run(checkpoint, tmp_path / "repo", config_file) == 0
    with (tmp_path / "repo" / "model.safetensors").open("r+b") as file:
        file.write(start)
    assert convert_flax.main(["verify", str(tmp_path / "repo")]) == 2
    assert "model.safetensors is damaged: not readable as a safetensors file" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting a tmpfs takes root")
def test_a_disk_that_is_too_small(capsys, checkpoint, config_file, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "none", str(disk)], check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        _refused(capsys, checkpoint, disk / "repo", config_file, match="GB of free disk")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("words", [["--checkpoint", "nowhere", "--output", "out"], ["plan", "--checkpoint", "nowhere"]])
def test_the_real_command_line(words, tmp_path):
    command = [sys.executable, str(ROOT / "convert_flax.py"), *words]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "no such folder" in result.stderr
    assert not (tmp_path / "out").exists()


STOPPED = """
import multiprocessing, os, runpy, signal, sys
multiprocessing.set_start_method("spawn")  # as on Macs; a lock for processes that is left is then told of
from conversion import shards
shards.Shard.write = lambda *args: os.kill(os.getpid(), signal.SIGTERM)
sys.argv = ["convert_flax.py", *{words}]
runpy.run_path({script!r}, run_name="__main__")
"""


def test_a_kill_keeps_the_work_and_names_it(checkpoint, config_file, tmp_path):
    words = ["--checkpoint", str(checkpoint), "--config", str(config_file), "--output", str(tmp_path / "repo")]
    code = STOPPED.format(words=words, script=str(ROOT / "convert_flax.py"))
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 130, result.stderr
    assert result.stderr.splitlines()[-1] == (
        f"convert_flax: interrupted; the work so far is kept in {tmp_path / 'repo' / '.partial'}: "
        "repeat the command to go on"
    )
    assert {path.name for path in (tmp_path / "repo").iterdir()} == {".partial"}
    assert convert_flax.main(words) == 0
    assert not (tmp_path / "repo" / ".partial").exists()


def _header(path, suffix):
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return next(entry for name, entry in header.items() if name.endswith(suffix))
