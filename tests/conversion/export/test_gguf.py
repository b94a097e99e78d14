"""GGUF files: the `gguf` library reads every weight, the metadata and the tokenizer back.

Run: pytest tests/conversion/export/test_gguf.py
"""

import math
from pathlib import Path

import gguf
import jinja2
import ml_dtypes
import numpy as np
import pytest

from conversion.export.export import export
from conversion.export.gguf_vocabulary import Vocabulary
from conversion.formats.gguf_names import tensor_name
from conversion.repos.awq_repo import AwqRepo
from conversion.small_files.tokenizer import build_tokenizer, read_sentencepiece
from real270m.fetch import Unavailable
from real270m.tokenizer_model import tokenizer_model_path
from tests.conversion.helpers.awq_source import PREFIX
from tests.conversion.helpers.small_tokenizer import IDS


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}


def test_gguf_holds_every_weight_of_the_language_model(source, llama):
    found = tensors_of(llama / "model-Q4_0.gguf")
    repo = AwqRepo(source.path)
    for name, codes in source.codes.items():
        scales = source.scales[name].astype(np.float16).astype(np.float32)
        expected = codes * np.repeat(scales, 32, axis=1)
        np.testing.assert_array_equal(found.pop(tensor_name(repo.config, name)), expected)
    query = np.float32(math.sqrt(32 / 48))  # llama.cpp divides by sqrt(head_dim), the model by sqrt(48)
    for name in (name for name in source.weights if name.startswith(PREFIX) and "norm" in name):
        factor = query if "q_norm" in name else 1
        expected = (source.weights[name] + 1) * factor
        np.testing.assert_array_equal(found.pop(tensor_name(repo.config, name)), expected)
    assert not found


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
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    said = jinja2.Template(found["tokenizer.chat_template"]).render(messages=turns, bos_token="<bos>")
    assert said == "<bos><start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\nHi.<end_of_turn>\n"


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


def test_gguf_counts_what_float16_does_not_hold_of_a_tower(source, tmp_path):
    lines = []
    export(source.path, tmp_path / "out", "gguf", report=lines.append)
    matrices = [
        weight
        for name, weight in source.weights.items()
        if ("vision_tower" in name or "projector" in name) and weight.ndim == 2 and ".embeddings." not in name
    ]
    inexact = sum(np.count_nonzero(weight.astype(np.float16).astype(np.float32) != weight) for weight in matrices)
    assert f"vision tower: {inexact} of {sum(map(np.size, matrices))} values rounded to float16" in lines


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
    vocabulary = Vocabulary.of(tmp_path)
    assert [token.replace(" ", "\u2581") for token in vocabulary.tokens] == [piece.text for piece in pieces]
    theirs, ours = np.array([piece.score for piece in pieces]), np.array(vocabulary.scores)
    reached = (np.array(vocabulary.kinds) == gguf.TokenType.NORMAL) & (ours > ours.min())
    assert reached.sum() > 230_000
    assert (np.diff(ours[reached][np.argsort(theirs[reached])]) > 0).all()
