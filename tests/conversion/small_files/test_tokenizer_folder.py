"""A folder of tokenizer files: copied, completed for a model that sees, refused where it is another model's."""

import pytest
from transformers import AutoProcessor

from conversion.errors import BadInput
from conversion.small_files.repo_files import PROCESSOR_FILES, write_tokenizer
from tests.conversion.small_files.test_tokenizer import convert, small_config


def test_a_folder_without_a_processor_gets_gemmas(tmp_path):
    source, repo = tmp_path / "source", tmp_path / "repo"
    source.mkdir(), repo.mkdir()
    convert(source)
    for name in PROCESSOR_FILES:
        (source / name).unlink()
    write_tokenizer(source, repo, small_config(), "it")
    processor = AutoProcessor.from_pretrained(repo)
    assert processor.image_seq_length == 16
    assert processor.image_processor.size["height"] == 56


def test_a_text_models_tokenizer_is_refused_for_one_that_sees(tmp_path):
    source, repo = tmp_path / "source", tmp_path / "repo"
    source.mkdir(), repo.mkdir()
    convert(source, multimodal=False)
    with pytest.raises(BadInput, match="a picture's; it is a text model's"):
        write_tokenizer(source, repo, small_config(), "it")
    write_tokenizer(source, repo, small_config().get_text_config(), "it")
