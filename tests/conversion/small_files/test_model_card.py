"""What a card tells its reader: the front matter as the Hub reads it, the way to use, memory.

Run: pytest tests/conversion/small_files/test_model_card.py
"""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from conversion.part import Part
from conversion.sizes import SIZES, published_config
from conversion.small_files import guide
from conversion.small_files.model_card import export_card, model_card
from conversion.small_files.provenance import base_model, license_files

BY_NAME = {size.name: size for size in SIZES}
EMBEDDING = Part("embedding", ("language_model.model.embed_tokens.weight",), (262144, 5376), "embedding")
LINEARS = Part("linears", tuple(f"layers.{i}.up_proj.weight" for i in range(10)), (21504, 5376), "linear")


def card_of(size: str, variant: str = "it", kind: str = "flax", source: str | None = None, google: bool = True) -> str:
    config = published_config(BY_NAME[size], variant)
    words = guide.guide(config, [EMBEDDING, LINEARS], int4_embedding=True)
    return model_card(config, size if google else None, variant, "All are equal.", kind, source, words)


@pytest.mark.parametrize(("size", "task"), [("1B", "text-generation"), ("27B", "image-text-to-text")])
def test_the_hub_reads_the_front_matter(size, task):
    data = ModelCard(card_of(size)).data.to_dict()
    assert data["license"] == "gemma"
    assert data["pipeline_tag"] == task
    assert data["base_model"] == f"google/gemma-3-{size.lower()}-it"
    assert data["base_model_relation"] == "quantized"
    assert data["quantized_by"] == "google"
    assert data["tags"] == ["gemma3", "int4", "awq", "qat", "custom_code"]
    exported = ModelCard(export_card(card_of(size), "gguf", gemma=True)).data.to_dict()
    assert exported["tags"] == ["gemma3", "int4", "gguf", "qat"]
    assert exported["base_model"] == data["base_model"]


def test_weights_of_others_name_their_repo_and_no_quantizer():
    card = card_of("4B", kind="awq", source="someone/fine-tune-awq", google=False)
    data = ModelCard(card).data.to_dict()
    assert data["base_model"] == "someone/fine-tune-awq"
    assert data["base_model_relation"] == "quantized"
    assert "quantized_by" not in data
    assert "qat" not in data["tags"]
    assert "Base model: [someone/fine-tune-awq](https://huggingface.co/someone/fine-tune-awq)" in card
    assert "base_model" not in ModelCard(card_of("4B", kind="awq", google=False)).data.to_dict()


def test_the_way_to_use_is_that_of_the_model():
    pictures, text = card_of("27B"), card_of("1B")
    assert "transformers serve PATH_OR_REPO_ID --trust-remote-code" in pictures
    assert "transformers serve PATH_OR_REPO_ID" not in text
    for card in pictures, text:
        for words in "vllm serve PATH_OR_REPO_ID", "get_peft_model(model", "export REPO --format gguf", "## Memory":
            assert words in card
        assert "{{" not in card


def test_memory_of_the_27b():
    """Ten of 62 layers see everything; 1,024 tokens are 4096 keys and values of 2 bytes in each, and as many values."""
    config = published_config(BY_NAME["27B"], "it")
    text = config.get_text_config()
    windows = 52 * 1024 * 2 * 16 * 128 * 2
    assert guide.cache_bytes(text, 131072) == windows + 10 * 131072 * 2 * 16 * 128 * 2
    assert guide.cache_bytes(text, 1000) == 62 * 1000 * 2 * 16 * 128 * 2
    weights = 10 * 21504 * 5376
    assert guide.weight_bytes([EMBEDDING, LINEARS], True) == (weights + 262144 * 5376) * 4.5 / 8
    assert guide.weight_bytes([EMBEDDING, LINEARS], False) == weights * 4.5 / 8 + 262144 * 5376 * 2
    assert "| cache of 131,072 tokens | 11.2 |" in card_of("27B")
    assert "| cache of 32,768 tokens | 0.146 |" in card_of("1B")
    assert "131,072" not in card_of("1B")


def test_where_a_source_comes_from(tmp_path):
    snapshot = tmp_path / "models--someone--gemma-3-awq" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "model.gguf").touch()
    (snapshot / "LICENSE").write_text("terms")
    assert base_model(snapshot) == base_model(snapshot / "model.gguf") == "someone/gemma-3-awq"
    assert license_files(snapshot) == license_files(snapshot / "model.gguf") == [snapshot / "LICENSE"]


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        ("base_model: google/gemma-3-4b-it", "google/gemma-3-4b-it"),
        ('tags:\n- x\nbase_model:\n  - "google/gemma-3-4b-it"\n- b', "google/gemma-3-4b-it"),
        ("license: gemma", None),
    ],
)
def test_the_card_of_a_folder_names_the_base_model(tmp_path, front, expected):
    (tmp_path / "README.md").write_text(f"---\n{front}\n---\nbase_model: not/this\n")
    assert base_model(tmp_path) == base_model(tmp_path / "model.gguf") == expected


def test_a_folder_that_is_no_repo_gives_no_license(tmp_path: Path):
    (tmp_path / "LICENSE").write_text("of something else")
    assert license_files(tmp_path / "model.gguf") == []
    (tmp_path / "config.json").touch()
    assert license_files(tmp_path) == [tmp_path / "LICENSE"]
