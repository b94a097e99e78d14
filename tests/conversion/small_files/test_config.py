"""config.json says the same under every name that a loader looks for.

Run: pytest tests/conversion/small_files/test_config.py
"""

import json

import pytest
from transformers import AutoConfig

from conversion.sizes import SIZES, published_config
from conversion.small_files.repo_files import model_config


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_the_rope_factor_stands_under_both_names(size, tmp_path):
    config = published_config(size, "it")
    values = model_config(config, "bfloat16")
    text = values.get("text_config", values)
    assert text.get("rope_scaling") == ({"rope_type": "linear", "factor": 8.0} if size.multimodal else None)
    (tmp_path / "config.json").write_text(json.dumps(values))
    read = AutoConfig.from_pretrained(tmp_path).get_text_config()
    assert read.rope_parameters == config.get_text_config().rope_parameters
    del text["rope_parameters"]  # what a loader of before transformers 5 sees
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert AutoConfig.from_pretrained(tmp_path).get_text_config().rope_parameters == read.rope_parameters
