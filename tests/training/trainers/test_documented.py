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
    """Every number of the adapter is there again, and with adapters of the trained ones' dtype every logit."""
    for file in ROOT.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    config = trl.SFTConfig
    monkeypatch.setattr(trl, "SFTConfig", lambda *given, **named: config(*given, **named | {"max_steps": 2}))
    names, again = {}, {}
    exec(script, names)
    exec(AFTERWARDS, again)
    # Without the autocast that accelerate puts around `forward` for training.
    trained = names["trainer"].accelerator.unwrap_model(names["trainer"].model, keep_fp32_wrapper=False).eval()
    loaded = again["model"].eval()
    parameters = dict(loaded.named_parameters())
    adapters = {name: parameter for name, parameter in trained.named_parameters() if "lora_" in name}
    assert len(adapters) > 0
    assert any(parameter.any() for name, parameter in adapters.items() if "lora_B" in name)
    for name, parameter in adapters.items():
        assert torch.equal(parameters[name].to(parameter.dtype), parameter), name
        parameters[name].data = parameters[name].data.to(parameter.dtype)
    ids = torch.tensor([[2, 5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, trained(input_ids=ids).logits)
