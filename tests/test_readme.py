"""The README's snippets run as printed, on a small repo made by the whole path with untrained weights."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from demo import convert
from demo.model import build_model, quantized_weights
from demo.tokenizer import ROOT, build_tokenizer, write_processor_files

BLOCKS = re.findall(r"```py\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
MODEL_BLOCKS = [block for block in BLOCKS if "gradio_client" not in block]


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    (folder / "files").mkdir()
    write_processor_files(build_tokenizer(), folder / "files")
    torch.manual_seed(0)
    model = build_model()
    convert.convert(quantized_weights(model, torch.float32), model.config, folder / "files", folder / "repo")
    return folder / "repo"


def test_the_snippets_run_one_after_the_other(repo, tmp_path, monkeypatch, capsys):
    """In one namespace, as a reader would type them; the folder's name is the only change."""
    assert len(MODEL_BLOCKS) == 3
    Image.new("RGB", (90, 60), "red").save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in MODEL_BLOCKS:
        assert "gemma-3-27b-it-int4-awq" in block or "model=repo" in block
        exec(block.replace("gemma-3-27b-it-int4-awq", str(repo)), names)
    assert type(names["model"]).__module__.startswith("transformers_modules")
    answer = names["answer"][0, names["inputs"]["input_ids"].shape[-1] :]
    assert 0 < len(answer) <= 100
    printed = capsys.readouterr().out
    assert names["processor"].decode(answer, skip_special_tokens=True).strip() in printed
    assert (names["inputs"]["input_ids"] == names["processor"].tokenizer.image_token_id).sum() == 16
    assert names["pipe"].model.int4_bytes == names["model"].int4_bytes
