"""The README's snippets run as printed, one after the other, in the folder of the shipped checkpoint."""

import re

import pytest

from demo.tokenizer import ROOT

BLOCKS = re.findall(r"```py\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
MODEL_BLOCKS = [block for block in BLOCKS if "gradio_client" not in block]  # tests/chat runs that one

pytestmark = pytest.mark.skipif(not (ROOT / "config.json").exists(), reason="no checkpoint at the root")


def test_the_snippets_run_one_after_the_other(monkeypatch, capsys):
    """In one namespace, as a reader would type them; the name of a repo that the reader has yet to make is replaced."""
    assert len(MODEL_BLOCKS) == 3
    monkeypatch.chdir(ROOT)
    names: dict = {}
    for block in MODEL_BLOCKS:
        exec(block.replace('"gemma-3-27b-it-int4-awq"', '"."'), names)
    assert type(names["model"]).__module__.startswith("transformers_modules")
    assert capsys.readouterr().out.splitlines() == ["It is a turtle."] * 2
    assert names["pipe"].model.int4_bytes == names["model"].int4_bytes > 0
