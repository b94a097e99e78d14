"""AWQ and compressed-tensors repos as others publish them: taken in without a code changed.

Run: pytest tests/conversion/source/test_hub_source.py
"""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import convert_flax
from conversion.codes import dequantize
from conversion.repos.awq_repo import AwqRepo
from conversion.shards import INDEX
from tests.conversion.helpers.hub_repos import (
    AUTOAWQ,
    CASES,
    convert,
    llmcompressor,
    packed,
    second_layout,
    tensors_of,
    with_groups,
    write_repo,
)
from tests.conversion.helpers.tiny import command_line, files_of
from tests.test_goldens import logits_of, sequences

FORMS = {
    "awq": lambda folder, ours, tensors: write_repo(folder, ours, tensors, AUTOAWQ),
    "awq in one file without an index": lambda folder, ours, tensors: write_repo(
        folder, ours, second_layout(tensors), AUTOAWQ, index=False, files=1
    ),
    "compressed-tensors": lambda folder, ours, tensors: write_repo(
        folder, ours, packed(tensors), llmcompressor(32), index=False
    ),
}


def assert_same_numbers(found: AwqRepo, expected: AwqRepo) -> None:
    """Every code, scale and other tensor."""
    assert sorted(found.linears) == sorted(expected.linears)
    for name in expected.linears:
        for one, other in zip(found.linear(name), expected.linear(name), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
    for one, other in zip(found.embedding_rows(0, found.rows), expected.embedding_rows(0, found.rows), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    assert sorted(found.plain) == sorted(expected.plain)
    for name in expected.plain:
        np.testing.assert_array_equal(found.read(name), expected.read(name))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_a_repo_of_others_becomes_the_one_that_the_flax_checkpoint_becomes(converted, goldens, tmp_path, case, form):
    """The embedding's codes and scales, which the source has no more, included."""
    ours, repo = converted[case], tmp_path / "repo"
    source = FORMS[form](tmp_path / "source", ours, tensors_of(ours))
    before = files_of(source)
    assert convert(source, repo, "--verify") == 0
    assert files_of(source) == before
    assert AwqRepo(repo).problems() == []
    assert_same_numbers(AwqRepo(repo), AwqRepo(ours))
    assert command_line(["verify", str(repo), "--checkpoint", str(source)]) == 0
    assert command_line(["verify", str(repo), "--checkpoint", str(goldens / case / "checkpoint")]) == 0
    assert "cache_implementation" not in json.loads((repo / "generation_config.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_the_logits_are_those_of_the_flax_checkpoints_repo_and_of_the_goldens(converted, goldens, tmp_path, case):
    ours, repo = converted[case], tmp_path / "repo"
    assert convert(FORMS["awq"](tmp_path / "source", ours, tensors_of(ours)), repo) == 0
    model, other = (
        AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype=torch.float32) for path in (repo, ours)
    )
    assert model.int4_bytes == other.int4_bytes
    for inputs, expected in sequences(goldens / case, model).values():
        logits = logits_of(model, inputs, expected["logits"].shape[-1])
        np.testing.assert_array_equal(logits, logits_of(other, inputs, expected["logits"].shape[-1]))
        sure = expected["argmax_margin"] > 0.05  # norms and tower are bfloat16 here
        assert (logits.argmax(-1)[sure] == expected["argmax"][sure]).all()


def test_in_float32_the_logits_are_those_of_the_goldens(goldens, tmp_path):
    case, config = goldens / "text-1b-style", tmp_path / "config.json"
    config.write_text(json.dumps(json.loads((case / "case.json").read_text())["transformers_config"]))
    words = ["--checkpoint", case / "checkpoint", "--config", config, "--dtype", "float32"]
    assert command_line([str(word) for word in [*words, "--output", tmp_path / "ours"]]) == 0
    source = write_repo(tmp_path / "source", tmp_path / "ours", tensors_of(tmp_path / "ours"), AUTOAWQ)
    assert convert(source, tmp_path / "repo", "--dtype", "float32") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "repo", trust_remote_code=True, int4_embedding=True)
    for inputs, expected in sequences(case, model).values():
        logits = logits_of(model, inputs, expected["logits"].shape[-1])
        assert np.abs(logits[expected["logit_positions"]] - expected["logits"]).max() < 1e-4


def test_an_awq_repos_files_are_linked_and_the_source_can_go(ours, tmp_path):
    source, repo = write_repo(tmp_path / "source", ours, tensors_of(ours), AUTOAWQ), tmp_path / "repo"
    assert convert(source, repo) == 0
    shards = sorted(source.glob("model-*.safetensors"))
    assert all((repo / path.name).samefile(path) for path in shards)
    assert (repo / "modeling_gemma3_int4.py").is_file()
    assert (repo / "int4_embedding.safetensors").is_file()
    shutil.rmtree(source)
    assert command_line(["verify", str(repo)]) == 0


def test_card_notice_and_manifest_say_what_these_weights_are(ours, tmp_path):
    repo = tmp_path / "repo"
    source = FORMS["compressed-tensors"](tmp_path / "source", ours, tensors_of(ours))
    (source / "README.md").write_text("---\nbase_model: someone/gemma-3\n---\n")
    (source / "LICENSE").write_text("The terms of someone.\n")
    assert convert(source, repo) == 0
    assert (repo / "LICENSE").read_text() == "The terms of someone.\n"
    card = (repo / "README.md").read_text()
    assert "\nbase_model: someone/gemma-3\nbase_model_relation: quantized\n" in card
    assert "# Gemma 3, pre-trained, INT4" in card  # there is no chat template
    assert "in a Hugging Face repo with 4-bit codes" in card
    assert "Kaggle, in float32" not in card
    assert "a Gemma 3 in a repo of int4 weights" in (repo / "NOTICE").read_text()
    manifest = json.loads((repo / "conversion.json").read_text())
    assert manifest["source"]["kind"] == "compressed-tensors"
    assert "LICENSE" in manifest["files"]
    assert manifest["embedding_scales"]["dtype"] == "bfloat16"
    assert set(manifest["source"]["files"]) == {
        "config.json",
        *(f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)),
    }


def test_files_are_copied_where_links_cannot_be(ours, tmp_path, monkeypatch):
    def refused(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr("os.link", refused)
    source, repo = write_repo(tmp_path / "source", ours, tensors_of(ours), AUTOAWQ), tmp_path / "repo"
    assert convert(source, repo) == 0
    for path in source.glob("model-*.safetensors"):
        assert (repo / path.name).read_bytes() == path.read_bytes()
        assert not (repo / path.name).samefile(path)


@pytest.mark.parametrize("form", ["awq", "compressed-tensors"])
def test_the_scales_of_larger_groups_are_repeated(ours, tmp_path, form):
    tensors = with_groups(tensors_of(ours), 64)
    if form == "awq":
        source = write_repo(tmp_path / "source", ours, tensors, AUTOAWQ | {"group_size": 64})
    else:
        source = write_repo(tmp_path / "source", ours, packed(tensors), llmcompressor(64, actorder="static"))
    assert convert(source, tmp_path / "repo", "--verify") == 0
    found, like = AwqRepo(tmp_path / "repo"), AwqRepo(ours)
    for name in like.linears:
        (codes, scales), (expected, of_32) = found.linear(name), like.linear(name)
        np.testing.assert_array_equal(codes, expected)
        np.testing.assert_array_equal(scales, np.repeat(of_32[:, ::2], 2, axis=1))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "repo", trust_remote_code=True)
    assert "native-cpu" in model.int4_backend or "aten-cpu" in model.int4_backend


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_scales_keep_their_dtype(ours, tmp_path, dtype):
    tensors = {name: t.to(dtype) * 1.001 if name.endswith(".scales") else t for name, t in tensors_of(ours).items()}
    for form, quantization in ("awq", AUTOAWQ), ("compressed-tensors", llmcompressor(32)):
        relaid = tensors if form == "awq" else packed(tensors)
        source = write_repo(tmp_path / form, ours, relaid, quantization)
        assert convert(source, tmp_path / f"{form}-repo", "--verify", "--scale-dtype", str(dtype)[6:]) == 0
        repo = AwqRepo(tmp_path / f"{form}-repo")
        for name in repo.linears:
            np.testing.assert_array_equal(repo.linear(name)[1], tensors[f"{name}.scales"].numpy().T)


def test_other_tensors_in_float16_become_bfloat16(ours, tmp_path):
    """AutoAWQ's own dtype, in which Gemma 3 overflows."""
    keep = (".qweight", ".qzeros", ".scales")
    tensors = {name: t if name.endswith(keep) else t.half() for name, t in tensors_of(ours).items()}
    source = write_repo(tmp_path / "source", ours, tensors, AUTOAWQ, changed=lambda c: c | {"dtype": "float16"})
    assert convert(source, tmp_path / "repo", "--verify") == 0
    repo = AwqRepo(tmp_path / "repo")
    assert repo.problems() == []
    for name in repo.plain:
        np.testing.assert_array_equal(repo.read(name), tensors[name].bfloat16().float().numpy().astype(repo.dtype))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "repo", trust_remote_code=True).dtype == torch.bfloat16


def test_an_embedding_on_no_grid_stays_plain(ours, tmp_path, capsys):
    tensors = tensors_of(ours)
    name = next(name for name in tensors if name.endswith("embed_tokens.weight"))
    tensors[name][700, 5] = 1.0
    source = write_repo(tmp_path / "source", ours, tensors, AUTOAWQ)
    assert convert(source, tmp_path / "repo", "--verify") == 0
    assert "1 of 6528 groups in rows 0 to 1087 lie on no int4 grid; it stays plain" in capsys.readouterr().out
    assert not (tmp_path / "repo" / "int4_embedding.safetensors").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "repo", trust_remote_code=True)
    assert torch.equal(model.get_input_embeddings().weight.cpu(), tensors[name])


@pytest.mark.parametrize("form", ["awq", "compressed-tensors"])
def test_linears_that_are_not_quantized_stay_floats(ours, tmp_path, form):
    kept = "language_model.model.layers.1.mlp.down_proj"
    weight = torch.from_numpy(dequantize(*AwqRepo(ours).linear(kept))).bfloat16()
    tensors = {name: t for name, t in tensors_of(ours).items() if not name.startswith(f"{kept}.")}
    tensors[f"{kept}.weight"] = weight
    if form == "awq":
        words = [*AUTOAWQ["modules_to_not_convert"], "layers.1.mlp.down_proj"]
        source = write_repo(tmp_path / "source", ours, tensors, AUTOAWQ | {"modules_to_not_convert": words})
    else:
        quantization = llmcompressor(32)
        quantization["ignore"].append("re:.*layers.1.mlp.down_proj")
        source = write_repo(tmp_path / "source", ours, packed(tensors), quantization)
    assert convert(source, tmp_path / "repo", "--verify") == 0
    assert AwqRepo(tmp_path / "repo").kept == [kept]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "repo", trust_remote_code=True)
    other = AutoModelForCausalLM.from_pretrained(ours, trust_remote_code=True)
    found = model.get_submodule("model.language_model.layers.1.mlp.down_proj").weight
    assert torch.equal(found, weight)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        expected = other(ids).logits
        assert (model(ids).logits - expected).norm() < 0.03 * expected.norm()


def test_the_head_once_more_is_left_out(ours, tmp_path):
    tensors = tensors_of(ours)
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()
    source = write_repo(tmp_path / "source", ours, tensors, AUTOAWQ)
    assert convert(source, tmp_path / "repo", "--verify") == 0
    assert_same_numbers(AwqRepo(tmp_path / "repo"), AwqRepo(ours))


def test_text_only_takes_the_language_model(ours, tmp_path):
    source = write_repo(tmp_path / "source", ours, second_layout(tensors_of(ours)), AUTOAWQ)
    assert convert(source, tmp_path / "repo", "--verify", "--text-only") == 0
    repo = AwqRepo(tmp_path / "repo")
    assert repo.config.model_type == "gemma3_text"
    assert {f"language_model.{name}" for name in repo.linears} == set(AwqRepo(ours).linears)


def test_a_damaged_code_is_seen_by_verify(ours, tmp_path, capsys):
    source, repo = write_repo(tmp_path / "source", ours, packed(tensors_of(ours)), llmcompressor(32)), tmp_path / "repo"
    assert convert(source, repo) == 0
    path = source / "model-00001-of-00003.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("weight_packed"))
    tensors[name][3, 1] ^= 1 << 9
    save_file(tensors, path, metadata={"format": "pt"})
    assert command_line(["verify", str(repo), "--checkpoint", str(source)]) == 2
    assert f"{name.removesuffix('_packed')}: codes, scales or products differ" in capsys.readouterr().err


def test_plan_tells_without_reading_weights(ours, tmp_path, capsys):
    source = write_repo(tmp_path / "source", ours, tensors_of(ours), AUTOAWQ)
    assert command_line(["plan", "--checkpoint", str(source)]) == 0
    said = capsys.readouterr().out
    assert "the source's own files, linked, or copied where the output is on another disk" in said
    assert "56 int4 matrices" in said


@pytest.mark.parametrize("form", ["awq", "compressed-tensors"])
def test_killed_and_repeated_it_ends_with_the_same_bytes(ours, tmp_path, monkeypatch, form):
    source = FORMS[form](tmp_path / "source", ours, tensors_of(ours))
    assert convert(source, tmp_path / "whole", "--shard-size", "100KB" if form != "awq" else "2GB") == 0
    expected = files_of(tmp_path / "whole")
    for place in ("conversion.convert.completion.write_side_file", "conversion.convert.completion.write_json"):
        with monkeypatch.context() as patched:
            patched.setattr(place, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            assert convert(source, tmp_path / "repo", "--shard-size", "100KB" if form != "awq" else "2GB") == 130
    assert convert(source, tmp_path / "repo", "--shard-size", "100KB" if form != "awq" else "2GB") == 0
    assert files_of(tmp_path / "repo") == expected


def test_awq_to_compressed_tensors_and_back_gives_every_number(converted, tmp_path):
    for case, repo in converted.items():
        words = ["export", repo, "--format", "compressed-tensors", "--output", tmp_path / f"{case}-packed"]
        assert convert_flax.main([str(word) for word in words]) == 0
        assert convert(tmp_path / f"{case}-packed", tmp_path / case, "--verify") == 0
        assert_same_numbers(AwqRepo(tmp_path / case), AwqRepo(repo))
        index = json.loads((tmp_path / case / INDEX).read_text())["weight_map"]
        assert sorted(index) == sorted(json.loads((repo / INDEX).read_text())["weight_map"])
