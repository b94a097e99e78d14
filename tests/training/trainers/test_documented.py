"""The scripts of docs/training.md, two steps each, and what follows them there."""

import re

import pytest
import torch
import trl

from demo.places import ROOT

PAGE = (ROOT / "docs" / "training.md").read_text("utf-8")
TEXT, PICTURES, AFTERWARDS = re.findall(r"```py\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("script", [TEXT, PICTURES], ids=["text", "pictures"])
def test_a_script_leaves_an_adapter_that_answers_alike(script, tmp_path, monkeypatch):
    for file in ROOT.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    config = trl.SFTConfig
    monkeypatch.setattr(trl, "SFTConfig", lambda *given, **named: config(*given, **named | {"max_steps": 2}))
    trained, loaded = {}, {}
    exec(script, trained)
    exec(AFTERWARDS, loaded)
    ids = torch.tensor([[2, 5, 6, 7]])
    with torch.no_grad():
        expected = trained["trainer"].model.eval()(input_ids=ids).logits
        found = loaded["model"].eval()(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0.5)  # near, not bit for bit
