"""Other formats: the codes never change, and the libraries that own the formats agree with what is written.

Run: pytest tests/conversion/test_export.py
"""

import json
import math
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
)

from conversion.commands import convert as convert_command
from conversion.convert import pipeline
from conversion.errors import BadInput
from conversion.export import export
from conversion.folders.work_folder import WorkFolder
from conversion.formats import compressed_tensors
from conversion.formats import gguf as gguf_format
from conversion.name_map import entries
from conversion.repos.awq_repo import AwqRepo
from conversion.small_files.repo_files import CODE_FILES
from conversion.small_files.tokenizer import build_tokenizer, read_sentencepiece
from convert_flax import main
from demo.flax_export import export_flax
from real270m.fetch import Unavailable, tokenizer_model_path
from tests.conversion.small_tokenizer import IDS, small_model
from tests.conversion.tiny import command_line, files_of

PREFIX = "language_model.model."

CONFIG = Gemma3Config(
    text_config={
        "vocab_size": len(IDS) + 64,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 7,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "query_pre_attn_scalar": 48,
        "sliding_window": 16,
        "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(7)],
        "max_position_embeddings": 512,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    vision_config={
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
        "vision_use_head": False,
    },
    mm_tokens_per_image=4,
    boi_token_index=IDS["<start_of_image>"],
    eoi_token_index=IDS["<end_of_image>"],
    image_token_index=len(IDS),
)


@dataclass
class Source:
    """A converted repo and what went into it: tensors by name; codes and scales of those on the grid."""

    path: Path
    weights: dict[str, np.ndarray]
    codes: dict[str, np.ndarray]
    scales: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=["plain", "int4"])
def source(request, tmp_path_factory) -> Source:
    return make_source(tmp_path_factory.mktemp(f"awq-{request.param}"), embedding=request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Source:
    return make_source(tmp_path_factory.mktemp("awq"), embedding="plain")


def make_source(folder: Path, embedding: str, scale_dtype: str = "float32", largest: float = 0.05) -> Source:
    """Converts a random checkpoint; scales are in float32, so GGUF rounds most of them."""
    rng = np.random.default_rng(7)
    weights, codes, scales = {}, {}, {}
    for entry in entries(CONFIG, len(IDS)):
        for name in entry.tensors:
            shape = entry.tensor_shape
            if not entry.int4:
                weights[name] = rng.normal(0, 0.05, shape).astype(np.float32)
                continue
            q = rng.integers(-7, 8, shape, np.int8)
            q[:, ::32] = 7 * rng.choice([-1, 1], q[:, ::32].shape)  # every group reaches 7
            s = rng.uniform(0.01, largest, (shape[0], shape[1] // 32)).astype(np.float32)
            weights[name] = q * np.repeat(s, 32, axis=1)
            codes[name.removesuffix(".weight")], scales[name.removesuffix(".weight")] = q, s
    state = dict(weights)
    name = f"{PREFIX}embed_tokens.weight"
    state[name] = np.concatenate([weights[name], np.zeros((64, 64), np.float32)])
    export_flax(state, CONFIG, folder / "checkpoint")
    (folder / "checkpoint" / "tokenizer.model").write_bytes(small_model().SerializeToString())
    (folder / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    words = ["--checkpoint", folder / "checkpoint", "--config", folder / "config.json", "--dtype", "float32"]
    words = [str(word) for word in [*words, "--scale-dtype", scale_dtype, "--embedding", embedding]]
    assert main([*words, "--output", str(folder / "repo")]) == 0
    (folder / "made_with.json").write_text(json.dumps(words))
    return Source(folder / "repo", weights, codes, scales)


def test_a_repo_reads_back_as_its_source(source):
    repo = AwqRepo(source.path)
    linears = {name for name in source.codes if not name.endswith("embed_tokens")}
    assert set(repo.linears) == linears
    for name in linears:
        codes, scales = repo.linear(name)
        np.testing.assert_array_equal(codes, source.codes[name])
        np.testing.assert_array_equal(scales, source.scales[name])
    blocks = list(repo.embedding_blocks(len(IDS)))
    np.testing.assert_array_equal(np.concatenate([codes for codes, _ in blocks]), source.codes[repo.embedding])
    np.testing.assert_array_equal(np.concatenate([scales for _, scales in blocks]), source.scales[repo.embedding])
    rows = np.concatenate(list(repo.embedding_weights()))
    np.testing.assert_array_equal(rows[: len(IDS)], source.weights[f"{repo.embedding}.weight"])
    assert not rows[len(IDS) :].any()
    for name in repo.plain:
        np.testing.assert_array_equal(repo.read(name), source.weights[name])
    assert set(source.weights) == {*repo.plain, *(f"{name}.weight" for name in [repo.embedding, *linears])}


# --- compressed-tensors --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("compressed") / "repo"
    export(source.path, output, "compressed-tensors", report=lambda line: None)
    return output


def test_compressed_tensors_library_reads_our_weights(source, packed):
    written = load_file(packed / "model.safetensors")
    config = QuantizationConfig(**json.loads((packed / "config.json").read_text())["quantization_config"])
    scheme = config.config_groups["group_0"]
    for name in source.codes:
        if name.endswith("embed_tokens"):
            continue
        parts = {
            key: written.pop(f"{name}.{key}") for key in PackedQuantizationCompressor.compression_param_names(scheme)
        }
        weight = PackedQuantizationCompressor.decompress(parts, scheme)["weight"]
        np.testing.assert_array_equal(weight.numpy(), source.weights[f"{name}.weight"])
    embedding = written.pop(f"{PREFIX}embed_tokens.weight").numpy()
    np.testing.assert_array_equal(embedding[: len(IDS)], source.weights[f"{PREFIX}embed_tokens.weight"])
    for name, tensor in written.items():
        np.testing.assert_array_equal(tensor.numpy(), source.weights[name])
    assert set(json.loads((packed / "model.safetensors.index.json").read_text())["weight_map"]) == set(
        load_file(packed / "model.safetensors")
    )


def test_transformers_runs_the_compressed_tensors_repo(source, packed):
    """Through compressed-tensors, without any code of ours: the logits of the float model."""
    ids = torch.tensor([[2, IDS["<start_of_turn>"], IDS["ab"], IDS["c"], IDS["\n"], IDS["bc"]]])
    reference = Gemma3ForConditionalGeneration(CONFIG).float().eval()
    state = {f"model.{name}" if "language_model" not in name else name: w for name, w in source.weights.items()}
    state = {name.replace(PREFIX, "model.language_model."): torch.from_numpy(w) for name, w in state.items()}
    state = {name.replace("vision_tower.vision_model.", "vision_tower."): w for name, w in state.items()}
    embedding = state["model.language_model.embed_tokens.weight"]
    state["model.language_model.embed_tokens.weight"] = torch.cat([embedding, torch.zeros(64, 64)])
    missing = reference.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["lm_head.weight"]
    assert not missing.unexpected_keys
    reference.tie_weights()
    model = AutoModelForImageTextToText.from_pretrained(packed, dtype=torch.float32).eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, reference(ids).logits, rtol=0, atol=1e-5)
    assert AutoTokenizer.from_pretrained(packed)("ab").input_ids == [2, IDS["ab"]]


@pytest.mark.parametrize("case", ["mm-27b-style", "text-1b-style"])
def test_goldens_run_in_stock_transformers(goldens, tmp_path, case):
    """Flax checkpoint -> AWQ -> compressed-tensors -> transformers' own model: the logits of DeepMind's own code."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads((goldens / case / "case.json").read_text())["transformers_config"]))
    words = ["--checkpoint", goldens / case / "checkpoint", "--config", config, "--dtype", "float32"]
    words += ["--format", "compressed-tensors", "--output", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    expected = np.load(goldens / case / "expected.npz")
    multimodal = case.startswith("mm")
    auto = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
    model = auto.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    for kind in ("text", "mm") if multimodal else ("text",):
        inputs = {"input_ids": torch.from_numpy(expected[f"{kind}_hf_input_ids"]).long()[None]}
        if kind == "mm":
            inputs["token_type_ids"] = torch.from_numpy(expected["mm_hf_token_type_ids"]).long()[None]
            inputs["pixel_values"] = torch.from_numpy(expected["mm_images"]).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.inference_mode():
            logits = model(**inputs).logits[0].numpy()
        wanted = expected[f"{kind}_logits"]
        found = logits[expected[f"{kind}_logit_positions"], : wanted.shape[1]]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


# --- GGUF ----------------------------------------------------------------------------------------------------------

CODES = st.integers(1, 4).flatmap(
    lambda blocks: st.lists(st.integers(-8, 7), min_size=32 * blocks, max_size=32 * blocks)
)


@settings(deadline=None)
@given(codes=CODES, scale=st.floats(2**-14, 1000, width=16))
def test_q4_0_keeps_codes_and_gguf_reads_the_products(codes, scale):
    codes = np.array([codes, codes[::-1]], np.int8)
    scales = np.full((2, codes.shape[1] // 32), scale, np.float16)
    blocks = gguf_format.pack(codes, scales)
    for expected, found in zip((codes, scales), gguf_format.unpack(blocks), strict=True):
        np.testing.assert_array_equal(expected, found)
    products = gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(products, codes * np.float32(scale))


@pytest.fixture(scope="module")
def llama(source, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("gguf") / "files"
    export(source.path, output, "gguf", report=lambda line: None)
    return output


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def test_gguf_holds_every_weight_of_the_language_model(source, llama):
    found = tensors_of(llama / "model-Q4_0.gguf")
    repo = AwqRepo(source.path)
    for name, codes in source.codes.items():
        scales = source.scales[name].astype(np.float16).astype(np.float32)
        expected = codes * np.repeat(scales, 32, axis=1)
        np.testing.assert_array_equal(found.pop(gguf_format.tensor_name(repo, name)), expected)
    query = np.float32(math.sqrt(32 / 48))  # llama.cpp divides by sqrt(head_dim), the model by sqrt(48)
    for name in (name for name in source.weights if name.startswith(PREFIX) and "norm" in name):
        factor = query if "q_norm" in name else 1
        expected = (source.weights[name] + 1) * factor
        np.testing.assert_array_equal(found.pop(gguf_format.tensor_name(repo, name.removesuffix(".weight"))), expected)
    assert not found


def test_codes_are_the_same_in_all_three_formats(source, packed, llama):
    repo, written = AwqRepo(source.path), load_file(packed / "model.safetensors")
    blocks = {tensor.name: tensor.data for tensor in gguf.GGUFReader(llama / "model-Q4_0.gguf").tensors}
    for name in repo.linears:
        codes, _ = repo.linear(name)
        np.testing.assert_array_equal(codes, compressed_tensors.unpack(written[f"{name}.weight_packed"].numpy()))
        np.testing.assert_array_equal(codes, gguf_format.unpack(blocks[gguf_format.tensor_name(repo, name)])[0])


def test_gguf_metadata(llama):
    fields = gguf.GGUFReader(llama / "model-Q4_0.gguf").fields
    found = {name.removeprefix("gemma3."): field.contents() for name, field in fields.items()}
    expected = {
        "general.architecture": "gemma3",
        "block_count": 7,
        "context_length": 512,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "attention.sliding_window": 16,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "rope.scaling.type": "linear",
        "rope.scaling.factor": 8.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.eot_token_id": IDS["<end_of_turn>"],
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }
    assert {name: found[name] for name in expected} == expected
    tokens = found["tokenizer.ggml.tokens"]
    assert tokens == [text if text != "▁▁" else "  " for text in IDS]  # the image token has no row
    kinds = dict(zip(tokens, found["tokenizer.ggml.token_type"], strict=True))
    kind = gguf.TokenType
    assert (kinds["<bos>"], kinds["<unk>"], kinds["<start_of_turn>"]) == (kind.CONTROL, kind.UNKNOWN, kind.CONTROL)
    assert (kinds["<td>"], kinds["<0x41>"], kinds["ab"]) == (kind.USER_DEFINED, kind.BYTE, kind.NORMAL)
    scores = dict(zip(tokens, found["tokenizer.ggml.scores"], strict=True))
    assert scores["bc"] > scores["ab"] > scores["▁a"]
    assert "<start_of_turn>" in found["tokenizer.chat_template"]


def test_mmproj_holds_the_vision_tower(source, llama):
    path = llama / "mmproj-F16.gguf"
    found, weights = tensors_of(path), source.weights
    vision = {name: w for name, w in weights.items() if not name.startswith(PREFIX)}
    assert len(found) == len(vision)
    tower = "vision_tower.vision_model."
    for ours, theirs, dtype in (
        ("multi_modal_projector.mm_input_projection_weight", "mm.input_projection.weight", np.float16),
        (f"{tower}embeddings.patch_embedding.weight", "v.patch_embd.weight", np.float32),
        (f"{tower}embeddings.position_embedding.weight", "v.position_embd.weight", np.float32),
        (f"{tower}encoder.layers.1.self_attn.out_proj.weight", "v.blk.1.attn_out.weight", np.float16),
        (f"{tower}encoder.layers.1.self_attn.q_proj.bias", "v.blk.1.attn_q.bias", np.float32),
        (f"{tower}post_layernorm.weight", "v.post_ln.weight", np.float32),
    ):
        np.testing.assert_array_equal(found[theirs], weights[ours].astype(dtype).astype(np.float32))
    norm = weights["multi_modal_projector.mm_soft_emb_norm.weight"]
    np.testing.assert_array_equal(found["mm.soft_emb_norm.weight"], norm + 1)
    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    assert (fields["general.architecture"], fields["clip.projector_type"]) == ("clip", "gemma3")
    assert (fields["clip.vision.image_size"], fields["clip.vision.projection_dim"]) == (56, 64)
    assert fields["clip.vision.projector.scale_factor"] == 2  # 4 x 4 patches pooled to 2 x 2


def test_gguf_counts_scales_that_float16_does_not_hold(plain, tmp_path):
    lines = []
    export(plain.path, tmp_path / "out", "gguf", report=lines.append)
    scales = np.concatenate([scales.ravel() for scales in plain.scales.values()])
    inexact = np.count_nonzero(scales.astype(np.float16).astype(np.float32) != scales)
    assert 0 < inexact < scales.size
    assert any(f"{inexact} of {scales.size} rounded to float16" in line for line in lines)


def test_gguf_with_a_float16_embedding(plain, tmp_path):
    export(plain.path, tmp_path / "out", "gguf", gguf_embedding="f16", report=lambda line: None)
    found = tensors_of(tmp_path / "out" / "model-Q4_0-embedding-F16.gguf")["token_embd.weight"]
    expected = plain.weights[f"{PREFIX}embed_tokens.weight"].astype(np.float16)
    np.testing.assert_array_equal(found, expected.astype(np.float32))


def test_products_of_bfloat16_scales_are_exact_in_float16():
    """Why an F16 embedding loses nothing where the scales are bfloat16: 8 bits of scale and 3 of code are 11."""
    scales = np.arange(0x3A00, 0x4200, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    products = scales[:, None] * np.arange(-8, 8, dtype=np.float32)
    np.testing.assert_array_equal(products.astype(np.float16).astype(np.float32), products)


def test_scores_rank_the_real_vocabulary_as_sentencepiece_does(tmp_path):
    """The scores are made from the merges; among pieces that merges reach, their order is the original one."""
    try:
        pieces = read_sentencepiece(tokenizer_model_path())
    except Unavailable as reason:
        pytest.skip(str(reason))
    build_tokenizer(pieces, multimodal=False).save(str(tmp_path / "tokenizer.json"))
    vocabulary = gguf_format.Vocabulary.of(tmp_path)
    assert [token.replace(" ", "\u2581") for token in vocabulary.tokens] == [piece.text for piece in pieces]
    theirs, ours = np.array([piece.score for piece in pieces]), np.array(vocabulary.scores)
    reached = (np.array(vocabulary.kinds) == gguf.TokenType.NORMAL) & (ours > ours.min())
    assert reached.sum() > 230_000
    assert (np.diff(ours[reached][np.argsort(theirs[reached])]) > 0).all()


# --- command line --------------------------------------------------------------------------------------------------


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
    monkeypatch.setattr(compressed_tensors, "config", lambda repo: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(words) == 130
    assert "repeat the command to go on" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(pipeline, "write_leaf", lambda *args, **more: pytest.fail("converted again"))
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
    monkeypatch.setattr(compressed_tensors, "values", lambda repo: pytest.fail("written again"))
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
    original = compressed_tensors.unpack
    monkeypatch.setattr(compressed_tensors, "unpack", lambda packed: original(packed) + 1)
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
