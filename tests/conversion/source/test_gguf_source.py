"""GGUF files in, not a code changed: made-up files in the layout of Google's QAT Q4_0 ones.

Run: pytest tests/conversion/source/test_gguf_source.py
"""

import json
import shutil
from types import SimpleNamespace

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText, AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

from benchmarks import synthetic_blocks
from conversion import shards
from conversion.export.export import export
from conversion.formats.gguf_names import VISION, tensor_name
from conversion.formats.gguf_reader import GgufFile
from conversion.name_map import entries
from conversion.repos.awq_repo import AwqRepo
from conversion.repos.gguf_config import config_of
from conversion.sizes import SIZES, published_config
from conversion.small_files.tokenizer import Kind, Piece, read_sentencepiece, write_tokenizer_files
from conversion.source.gguf_tokenizer import GgufTokenizer
from demo.places import ROOT
from real270m.fetch import Unavailable, gguf_path
from real270m.tokenizer_model import tokenizer_model_path
from tests.conversion.helpers.awq_source import CONFIG, PREFIX
from tests.conversion.helpers.gguf_files import MODEL, TOWER, Type, dequantized, make_files, rewritten, small_pieces
from tests.conversion.helpers.small_tokenizer import IDS
from tests.conversion.helpers.tiny import command_line

EMBEDDING = f"{PREFIX}embed_tokens"
ROWS = len(IDS)


def convert(checkpoint, output, *options):
    return command_line(
        ["convert", "--checkpoint", str(checkpoint), "--output", str(output), "--workers", "2", *options]
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder -> a model with its embedding in this type, and a tower."""
    folder = tmp_path_factory.mktemp("gguf")
    return {kind: make_files(folder / kind, kind) for kind in ("f16", "bf16", "f32", "q8_0", "q4_0")}


@pytest.fixture
def google(files):
    return files["f16"]


def said(capsys):
    return capsys.readouterr().err.strip().removeprefix("convert_flax: error: ")


def expected_of(model):
    """Every tensor under transformers' name as float32, read by the `gguf` library, with its norms less 1."""
    stored = dequantized(model) | dequantized(model.parent / TOWER)
    result = {}
    for entry in entries(CONFIG, ROWS):
        for name in entry.tensors:
            values = stored[tensor_name(CONFIG, name)]
            shifted = name.endswith("norm.weight") and "vision_tower" not in name
            result[name] = values - np.float32(1) if shifted else values
    return result


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "q8_0", "q4_0"])
def test_every_number_is_the_files_own(files, kind, tmp_path):
    """In float32 nothing is rounded: codes times scales, and what is neither, are what the library dequantizes."""
    assert convert(files[kind], tmp_path / "repo", "--dtype", "float32", "--verify") == 0
    repo, expected = AwqRepo(tmp_path / "repo"), expected_of(files[kind])
    every = np.concatenate([repo.linear(stem)[1].reshape(-1) for stem in repo.linears])
    assert every.dtype == np.float16
    for what in every < 0, every == 0, (every != 0) & (np.abs(every) < 1e-6):
        assert what.any()
    for stem in repo.linears:
        codes, scales = repo.linear(stem)
        products = codes * np.repeat(scales.astype(np.float32), 32, axis=1)
        np.testing.assert_array_equal(products, expected.pop(f"{stem}.weight"))
    embedding = np.concatenate(list(repo.embedding_weights()))
    np.testing.assert_array_equal(embedding[:ROWS], expected.pop(f"{EMBEDDING}.weight"))
    assert not embedding[ROWS:].any()
    assert set(expected) == set(repo.plain)
    for name, values in expected.items():
        np.testing.assert_array_equal(repo.read(name), values, err_msg=name)
    assert repo.has_codes == (kind == "q4_0")


def test_codes_and_scales_are_taken_not_computed(files, tmp_path):
    """Also where a scale is zero, so that no product tells the code: nibble by nibble, half by half."""
    assert convert(files["q4_0"], tmp_path / "repo", "--embedding", "int4") == 0
    repo, model = AwqRepo(tmp_path / "repo"), gguf.GGUFReader(files["q4_0"])
    stored = {tensor.name: tensor.data for tensor in model.tensors}
    for stem in [*repo.linears, repo.embedding]:
        if stem == repo.embedding:
            codes, scales, _ = repo.embedding_rows(0, ROWS)
        else:
            codes, scales = repo.linear(stem)
        blocks = stored[tensor_name(repo.config, stem)].reshape(-1, 18)
        assert scales.reshape(-1).tobytes() == blocks[:, :2].tobytes()
        grouped = codes.reshape(-1, 32)
        assert ((grouped[:, :16] + 8) == (blocks[:, 2:] & 15)).all()
        assert ((grouped[:, 16:] + 8) == (blocks[:, 2:] >> 4)).all()


def test_what_bfloat16_rounds_is_counted_and_said(google, tmp_path, capsys):
    assert convert(google, tmp_path / "repo") == 0
    lines = capsys.readouterr().out
    embedding = dequantized(google)["token_embd.weight"]
    rounded = np.count_nonzero(embedding.astype(ml_dtypes.bfloat16).astype(np.float32) != embedding)
    assert 0 < rounded < embedding.size
    assert f"embedding: {rounded} of {embedding.size} values rounded to bfloat16" in lines
    manifest = json.loads((tmp_path / "repo" / "conversion.json").read_text())
    assert manifest["source"]["kind"] == "gguf"
    assert set(manifest["source"]["files"]) == {MODEL, TOWER}
    leaf = next(leaf for leaf in manifest["leaves"] if leaf["leaf"] == "token_embd.weight")
    assert (leaf["kind"], leaf["rounded"], leaf["values"]) == ("plain", rounded, embedding.size)
    card = (tmp_path / "repo" / "README.md").read_text()
    for text in "QAT Q4_0", "Codes and scales were taken from the file", f"{rounded} of them in the embedding":
        assert text in card
    assert "read back" not in card
    assert "GGUF file (Q4_0)" in (tmp_path / "repo" / "NOTICE").read_text()


@pytest.mark.parametrize("embedding", ["q4_0", "f16"])
def test_the_shipped_checkpoint_there_and_back(embedding, tmp_path):
    """AWQ -> GGUF -> AWQ: every code and scale, the language model to the last bit, but for norms of less than 2^-16,
    to which the file adds 1 in float32; and the tower but for what lies below float16's normal numbers. Of an
    embedding in float16 the codes are found again.
    """
    export(ROOT, tmp_path / "files", "gguf", gguf_embedding=embedding, report=lambda line: None)
    assert convert(tmp_path / "files", tmp_path / "repo") == 0
    before, after = AwqRepo(ROOT), AwqRepo(tmp_path / "repo")
    for stem in before.linears:
        for one, other in zip(before.linear(stem), after.linear(stem), strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other, err_msg=stem)
    assert after.has_codes
    for one, other in zip(before.embedding_rows(0, before.rows), after.embedding_rows(0, after.rows), strict=True):
        np.testing.assert_array_equal(one, other)
    assert set(before.plain) == set(after.plain)
    tiny = np.finfo(np.float16).smallest_normal
    for name in before.plain:
        one, other = (repo.read(name).astype(np.float32) for repo in (before, after))
        if name.endswith("norm.weight") and not name.startswith(VISION):
            one = (one + np.float32(1)) - np.float32(1)
        same = one == other
        assert same.all() or (name.startswith(VISION) and (np.abs(one[~same]) < tiny).all()), name
    text = "What animal is it?\n\nIt is a turtle.  Two of them, and 12 apples: \u00e9<start_of_turn>user"
    old, new = (AutoTokenizer.from_pretrained(folder) for folder in (ROOT, tmp_path / "repo"))
    assert old(text)["input_ids"] == new(text)["input_ids"]


def test_norms_are_less_one_to_the_last_bit_of_the_file(google, tmp_path):
    """A weight near -1 leaves bits that float32 does not hold once 1 is taken off: counted."""
    values = dequantized(google)["output_norm.weight"].copy()
    values[0] = np.float32(1e-9)
    folder = tmp_path / "near"
    folder.mkdir()
    path = rewritten(google, folder / MODEL, tensors={"output_norm.weight": (values, Type.F32)})
    assert convert(path, tmp_path / "repo", "--dtype", "float32") == 0
    leaves = json.loads((tmp_path / "repo" / "conversion.json").read_text())["leaves"]
    assert {leaf["leaf"]: leaf["rounded"] for leaf in leaves if leaf.get("rounded")} == {"output_norm.weight": 1}


def test_the_model_is_the_files(files, tmp_path):
    """Loaded with this project's code, against stock transformers on the weights that the library dequantizes."""
    assert convert(files["q4_0"], tmp_path / "repo", "--dtype", "float32") == 0
    ours = AutoModelForImageTextToText.from_pretrained(tmp_path / "repo", trust_remote_code=True, dtype=torch.float32)
    stock = Gemma3ForConditionalGeneration(Gemma3Config.from_pretrained(tmp_path / "repo")).eval()
    weights = {name: torch.from_numpy(values) for name, values in expected_of(files["q4_0"]).items()}
    rows = stock.config.get_text_config().vocab_size - ROWS
    name = f"{EMBEDDING}.weight"
    weights[name] = torch.nn.functional.pad(weights[name], (0, 0, 0, rows))
    renamed = {}
    for name, values in weights.items():
        name = name.replace("language_model.model.", "model.language_model.")
        name = "model." + name if name.startswith(VISION) else name
        if name not in stock.state_dict():
            name = name.replace("vision_tower.vision_model.", "vision_tower.")
        renamed[name] = values
    missing, unexpected = stock.load_state_dict(renamed, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    stock.tie_weights()
    ids = torch.tensor([[2, 5, 8, 12, 3, 9]])
    with torch.inference_mode():
        torch.testing.assert_close(ours(ids).logits, stock(ids).logits, atol=1e-4, rtol=1e-4)


def metadata_of(config, kind):
    """What a file of a published size says, without its weights."""
    writer = gguf.GGUFWriter(None, "gemma3")
    synthetic_blocks._describe(writer, config.get_text_config())
    pieces = [SimpleNamespace(text=text, score=0.0, kind=1) for text in ["<pad>", "<eos>", "<bos>", "<unk>"]]
    synthetic_blocks._add_vocabulary(writer, pieces, "{{ bos_token }}" if kind == "it" else None, True)
    found = {key: value.value for key, value in writer.kv_data[0].items()}
    tokens = [f"<unused{number}>" for number in range(262144)]
    tokens[105:107], tokens[255999:256001] = (
        ("<start_of_turn>", "<end_of_turn>"),
        ("<start_of_image>", "<end_of_image>"),
    )
    found["tokenizer.ggml.tokens"] = tokens
    shape = SimpleNamespace(shape=(262144, config.get_text_config().hidden_size))
    return SimpleNamespace(path="model.gguf", metadata=found, tensors={"token_embd.weight": shape})


def tower_of(config):
    vision = config.vision_config
    metadata = {
        "clip.vision.image_size": vision.image_size,
        "clip.vision.patch_size": vision.patch_size,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.block_count": vision.num_hidden_layers,
        "clip.vision.attention.head_count": vision.num_attention_heads,
        "clip.vision.attention.layer_norm_epsilon": float(np.float32(vision.layer_norm_eps)),
    }
    shape = SimpleNamespace(shape=(vision.hidden_size, config.get_text_config().hidden_size))
    return SimpleNamespace(path="mmproj.gguf", metadata=metadata, tensors={"mm.input_projection.weight": shape})


@pytest.mark.parametrize("kind", ["it", "pt"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_the_configuration_is_the_published_one(size, kind):
    config = published_config(size, kind)
    found = config_of(metadata_of(config, kind), tower_of(config) if size.multimodal else None)
    assert found.to_dict() == config.to_dict()


def test_what_the_metadata_says_counts():
    """Not what a size has: other windows, patterns and bases, a file without a window, other ends."""
    model = metadata_of(published_config(SIZES[0], "pt"), "pt")
    model.metadata |= {"gemma3.rope.freq_base_swa": 5e3, "gemma3.attention.sliding_window_pattern": 3}
    config = config_of(model, None)
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 5e3
    assert config.layer_types[:3] == ["sliding_attention", "sliding_attention", "full_attention"]
    del model.metadata["gemma3.attention.sliding_window"]
    assert set(config_of(model, None).layer_types) == {"full_attention"}


def typed_by_llama_cpp(pieces):
    """Tokens, scores and types as llama.cpp's converter writes them, with made-up tokens to fill 64 rows."""
    pieces = [*pieces, Piece("<image_soft_token>", 0.0, Kind.CONTROL)]
    texts = [piece.text if piece.text != "▁▁" else "  " for piece in pieces]
    special = {"<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"}
    special |= {"<start_of_image>", "<end_of_image>", "<image_soft_token>"}
    kinds = [3 if piece.text in special else int(piece.kind) for piece in pieces]
    scores = [-1000.0 if kind in (3, 4) else piece.score for kind, piece in zip(kinds, pieces, strict=True)]
    more = range(len(texts), len(texts) + 63)
    return texts + [f"[PAD{n}]" for n in more], scores + [-10000.0] * 63, kinds + [5] * 63


@pytest.mark.parametrize("multimodal", [True, False])
@pytest.mark.parametrize("writer", ["google", "llama.cpp", "finetune"])
def test_the_tokenizer_is_the_published_one(writer, multimodal, tmp_path):
    """Byte for byte what Kaggle's tokenizer.model becomes, whoever wrote the file."""
    pieces = small_pieces(tmp_path)
    config = CONFIG if multimodal else CONFIG.text_config
    texts, scores, kinds = ([p.text for p in pieces], [p.score for p in pieces], [int(p.kind) for p in pieces])
    if writer == "llama.cpp":
        texts, scores, kinds = typed_by_llama_cpp(pieces)
    elif writer == "google":
        kinds = [1 if kind == 4 else kind for kind in kinds]
    else:  # as exporters that know no control tokens write the turns alone
        kinds = [
            1 if text in ("<start_of_turn>", "<end_of_turn>") else kind for text, kind in zip(texts, kinds, strict=True)
        ]
    names = ("tokens", "scores", "token_type")
    metadata = {f"tokenizer.ggml.{name}": values for name, values in zip(names, (texts, scores, kinds), strict=True)}
    metadata |= {"tokenizer.ggml.model": "llama", "tokenizer.chat_template": "{{ messages }}"}
    found = GgufTokenizer.of(SimpleNamespace(path=tmp_path / "model.gguf", metadata=metadata))
    assert found.mended == {"google": 9, "llama.cpp": 0, "finetune": 2}[writer]
    for name in "theirs", "ours":
        (tmp_path / name).mkdir()
    path, theirs, ours = tmp_path / "tokenizer.model", tmp_path / "theirs", tmp_path / "ours"
    write_tokenizer_files(path, theirs, variant="it", multimodal=multimodal, config=config)
    found.write(ours, config, "it")
    assert (ours / "chat_template.jinja").read_text() == "{{ messages }}"
    for file in theirs.iterdir():
        if file.name != "chat_template.jinja":
            assert (ours / file.name).read_bytes() == file.read_bytes(), file.name


def test_a_tokenizer_of_merges_keeps_them(tmp_path):
    """Converters that find no tokenizer.model write merges in place of scores."""
    pieces = small_pieces(tmp_path)
    texts, _, kinds = typed_by_llama_cpp(pieces)
    metadata = {"tokens": texts, "token_type": kinds, "merges": ["b c", "a b", "▁ a"], "model": "gpt2"}
    model = SimpleNamespace(path="m.gguf", metadata={f"tokenizer.ggml.{name}": v for name, v in metadata.items()})
    GgufTokenizer.of(model).write(tmp_path, CONFIG, "pt")
    made = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert made.encode("abc<td>", add_special_tokens=False).tokens == ["a", "bc", "<td>"]


def test_the_real_vocabulary_comes_back(tmp_path):
    """Out of llama.cpp's rewriting of it, and out of Google's typing: piece by piece SentencePiece's."""
    try:
        model, expected = GgufFile(gguf_path()), read_sentencepiece(tokenizer_model_path())
    except Unavailable as reason:
        pytest.skip(str(reason))
    found = GgufTokenizer.of(model)
    assert (found.pieces, found.mended) == (expected, 0)
    google = model.metadata | {
        "tokenizer.ggml.tokens": [piece.text for piece in expected],
        "tokenizer.ggml.scores": [piece.score for piece in expected],
        "tokenizer.ggml.token_type": [1 if piece.kind == 4 else int(piece.kind) for piece in expected],
    }
    found = GgufTokenizer.of(SimpleNamespace(path="m.gguf", metadata=google))
    assert found.pieces == expected
    assert found.mended == sum(piece.kind == 4 for piece in expected)


def test_split_files_are_one(google, tmp_path, capsys):
    folder = tmp_path / "split"
    folder.mkdir()
    reader = gguf.GGUFReader(google)
    names = [tensor.name for tensor in reader.tensors]
    shutil.copy(google.parent / TOWER, folder)
    for number in range(3):
        mine = set(names[number::3])
        keys = {"split.no": number, "split.count": 3, "split.tensors.count": len(names)}
        path = folder / f"model-{number + 1:05d}-of-00003.gguf"
        rewritten(google, path, keys=keys, tensors={name: None for name in names if name not in mine})
    assert convert(google, tmp_path / "whole") == 0
    for number, given in enumerate([folder, folder / "model-00002-of-00003.gguf"]):
        assert convert(given, tmp_path / f"repo{number}", "--verify") == 0
        for file in (tmp_path / "whole").glob("*.safetensors"):
            assert (tmp_path / f"repo{number}" / file.name).read_bytes() == file.read_bytes()
    (folder / "model-00003-of-00003.gguf").unlink()
    capsys.readouterr()
    assert convert(folder, tmp_path / "lacking") == 2
    assert "1 of 3 parts are missing: model-00003-of-00003.gguf" in said(capsys)


def test_text_models(google, tmp_path, capsys):
    """Without an mmproj file, and with one that is not wanted: a text model, and that is said."""
    assert convert(google, tmp_path / "dropped", "--text-only") == 0
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(google, alone)
    capsys.readouterr()
    assert convert(alone / MODEL, tmp_path / "text", "--verify") == 0
    assert "no mmproj file beside it: it becomes a text model" in capsys.readouterr().out
    for name in "dropped", "text":
        assert json.loads((tmp_path / name / "config.json").read_text())["model_type"] == "gemma3_text"
        assert command_line(["verify", str(tmp_path / name), "--checkpoint", str(google)]) == 0
    assert convert(alone / MODEL, tmp_path / "named", "--mmproj", str(google.parent / TOWER)) == 0
    assert json.loads((tmp_path / "named" / "config.json").read_text())["model_type"] == "gemma3"
    assert convert(alone / MODEL, tmp_path / "none", "--text-only") == 2


def test_the_variant_and_the_template_are_the_files(google, tmp_path):
    assert convert(google, tmp_path / "chat") == 0
    assert json.loads((tmp_path / "chat" / "conversion.json").read_text())["options"]["variant"] == "it"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "chat")
    assert "<start_of_turn>user" in tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    generation = json.loads((tmp_path / "chat" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, IDS["<end_of_turn>"]]
    base = tmp_path / "base"
    base.mkdir()
    path = rewritten(google, base / MODEL, keys={"tokenizer.chat_template": None})
    assert convert(path, tmp_path / "completion") == 0
    assert not (tmp_path / "completion" / "chat_template.jinja").exists()
    assert json.loads((tmp_path / "completion" / "generation_config.json").read_text())["eos_token_id"] == 1


def test_an_interrupted_conversion_goes_on(files, tmp_path, monkeypatch):
    options = ("--shard-size", "100KB")
    assert convert(files["q4_0"], tmp_path / "whole", *options) == 0
    original, written = shards.Shard.write, []

    def write(self, name, *args):
        written.append(name)
        if len(written) == 150:
            raise KeyboardInterrupt
        original(self, name, *args)

    monkeypatch.setattr(shards.Shard, "write", write)
    assert convert(files["q4_0"], tmp_path / "repo", *options) == 130
    done = len(list((tmp_path / "repo" / ".partial" / "shards").iterdir()))
    assert done
    assert convert(files["q4_0"], tmp_path / "repo", *options) == 0
    for file in (tmp_path / "whole").iterdir():
        if file.name != "conversion.json":
            assert (tmp_path / "repo" / file.name).read_bytes() == file.read_bytes(), file.name


def test_verify_finds_another_file(files, tmp_path, capsys):
    """A nibble, a scale, a norm of the source changed: each is seen."""
    assert convert(files["q4_0"], tmp_path / "repo") == 0
    model = GgufFile(files["q4_0"])
    for name, at, bit in (("blk.3.ffn_up.weight", 5, 1), ("blk.3.ffn_up.weight", 1, 4), ("output_norm.weight", 2, 64)):
        folder = tmp_path / f"{name}-{at}"
        shutil.copytree(files["q4_0"].parent, folder)
        with (folder / MODEL).open("r+b") as file:
            file.seek(model.tensors[name].offset + at)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ bit]))
        capsys.readouterr()
        assert command_line(["verify", str(tmp_path / "repo"), "--checkpoint", str(folder / MODEL)]) == 2
        assert "1 tensor differs" in said(capsys)


def _noise(shape):
    return np.random.default_rng(3).normal(0, 0.02, shape).astype(np.float32)


LINEAR = "blk.0.ffn_down.weight"
REFUSED = {
    "Q5_0": ({}, {LINEAR: (_noise((64, 96)), Type.Q5_0)}, "1 tensors, 1 in Q5_0: not on a symmetric grid of 32"),
    "Q4_1": ({}, {LINEAR: (_noise((64, 96)), Type.Q4_1)}, "(blk.0.ffn_down.weight is Q4_1)"),
    "F16": ({}, {LINEAR: (_noise((64, 96)).astype(np.float16), Type.F16)}, "1 in F16: not on a symmetric grid"),
    "embedding in Q5_1": ({}, {"token_embd.weight": (_noise((ROWS, 64)), Type.Q5_1)}, "token_embd.weight is Q5_1"),
    "gemma2": ({"general.architecture": "gemma2"}, {}, "its architecture is gemma2; only gemma3 is converted here"),
    "gemma3n": ({"general.architecture": "gemma3n"}, {}, "its architecture is gemma3n"),
    "llama": ({"general.architecture": "llama"}, {}, "its architecture is llama"),
    "LoRA": ({"general.type": "adapter"}, {}, "is a LoRA adapter, not a model"),
    "missing": ({}, {LINEAR: None}, f"does not fit in 1 places: missing {LINEAR}"),
    "unknown": ({}, {"output.weight": (_noise((ROWS, 64)), Type.F32)}, "unknown output.weight"),
    "shape": ({}, {"output_norm.weight": (_noise(32), Type.F32)}, "output_norm.weight is [32], its metadata says [64]"),
    "no width": ({"gemma3.embedding_length": None}, {}, "its metadata lacks 'embedding_length'"),
    "yarn": ({"gemma3.rope.scaling.type": "yarn"}, {}, "rope.scaling.type is yarn, expected linear or none"),
    "tokens": ({"tokenizer.ggml.model": "bert"}, {}, "tokenizer.ggml.model is bert"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(google, case, tmp_path, capsys):
    keys, tensors, message = REFUSED[case]
    (tmp_path / "source").mkdir()
    path = rewritten(google, tmp_path / "source" / MODEL, keys=keys, tensors=tensors)
    shutil.copy(google.parent / TOWER, tmp_path / "source")
    for verb in ("plan",), ("convert", "--output", str(tmp_path / "repo")):
        assert command_line([verb[0], "--checkpoint", str(path), *verb[1:]]) == 2
        line = said(capsys)
        assert message in line
        assert str(path) in line
        assert "\n" not in line
    assert not (tmp_path / "repo").exists()


def test_k_quants_are_refused(tmp_path, capsys):
    """The real 270M in Q4_K_M: every type that is not Q4_0 is counted."""
    try:
        path = gguf_path()
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert convert(path, tmp_path / "repo") == 2
    line = said(capsys)
    for text in "126 tensors", "27 in Q4_K", "81 in Q5_0":
        assert text in line


def test_towers_that_do_not_fit(google, tmp_path, capsys):
    folder = tmp_path / "source"
    for kind, changed, message in (
        ("width", {"mm.input_projection.weight": (_noise((32, 96)), Type.F16)}, "its tower is for a model of width 96"),
        ("type", {"v.blk.0.ffn_up.weight": (_noise((48, 32)), Type.Q8_0)}, "v.blk.0.ffn_up.weight is Q8_0"),
        ("lacking", {"v.blk.1.ln1.weight": None}, "missing v.blk.1.ln1.weight"),
    ):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        shutil.copy(google, folder)
        changed = {
            name: (v[0].astype(np.float16), v[1]) if v and v[1] == Type.F16 else v for name, v in changed.items()
        }
        rewritten(google.parent / TOWER, folder / TOWER, tensors=changed)
        assert convert(folder / MODEL, tmp_path / kind) == 2
        assert message in said(capsys)
    assert convert(google.parent / TOWER, tmp_path / "repo") == 2
    assert "is a vision tower (mmproj); give the file of the language model" in said(capsys)
    assert convert(google, tmp_path / "repo", "--mmproj", str(google)) == 2
    assert "expected an mmproj file of Gemma 3" in said(capsys)
    shutil.copy(google.parent / TOWER, folder / "another-mmproj.gguf")
    assert convert(folder, tmp_path / "repo") == 2
    assert "holds 2 mmproj files" in said(capsys)
    shutil.copy(google, folder / "another.gguf")
    assert convert(folder, tmp_path / "repo") == 2
    assert "holds 2 GGUF files of a language model" in said(capsys)


def test_damaged_files(google, tmp_path, capsys):
    content = google.read_bytes()
    tensor = GgufFile(google).tensors["blk.2.attn_q.weight"]
    infinite = bytearray(content)
    infinite[tensor.offset : tensor.offset + 2] = np.float16(np.inf).tobytes()
    for kind, changed, message in (
        ("cut", content[: len(content) // 2], "cut short"),
        ("header", content[:100], "not readable as a GGUF file (its header is cut short)"),
        ("version", content[:4] + b"\x07" + content[5:], "version 7"),
        ("scale", bytes(infinite), "blk.2.attn_q.weight holds a scale that is not finite"),
    ):
        path = tmp_path / f"{kind}.gguf"
        path.write_bytes(changed)
        assert convert(path, tmp_path / kind) == 2
        line = said(capsys)
        assert message in line
        assert str(path) in line
        assert line.endswith("download it again")
        assert not (tmp_path / kind).exists() or not any((tmp_path / kind).iterdir())


def test_options_that_are_not_for_gguf_files(google, tmp_path, capsys):
    for option, message in (
        (("--embedding", "int4"), "token_embd.weight is F16, not on an int4 grid"),
        (("--tolerance", "0.1"), "--tolerance: is for Flax checkpoints"),
        (("--donor", str(google.parent)), "--donor"),
    ):
        assert convert(google, tmp_path / "repo", *option) == 2
        assert message in said(capsys)
