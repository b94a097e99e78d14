"""`convert_flax.py quality`: every token counted once, with the context it is due, and errors of one line.

Run: pytest tests/conversion/test_quality.py
"""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, PreTrainedTokenizerFast

import convert_flax
from conversion.errors import BadInput
from conversion.quality import BOS, measure, perplexity
from demo.flax_export import save_tree
from tests.conversion.helpers import tiny

SENTENCE = "the cat sat on a mat\nand it was good"
WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", *SENTENCE.split()]
TEXT = "\n".join([SENTENCE] * 5)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Gemma3ForCausalLM(tiny.text_config()).eval()


def _loss(model, tokens, begin, place):
    """Negative log-likelihood of one token after those from `begin` on, by the definition."""
    ids = torch.cat([torch.tensor([BOS]), tokens[begin:place]]).unsqueeze(0)
    with torch.no_grad():
        return -model(ids).logits[0, -1].log_softmax(dim=-1)[tokens[place]].item()


@pytest.mark.parametrize(("window", "stride"), [(16, 5), (16, 16), (7, 1), (37, 9), (100, 50)])
def test_every_token_counts_once_with_its_context(model, window, stride):
    tokens = torch.randint(4, tiny.ROWS, (37,), generator=torch.Generator().manual_seed(1))
    losses = []
    for place in range(len(tokens)):
        begin = 0
        while begin + window <= place:
            begin += stride
        losses.append(_loss(model, tokens, begin, place))
    expected = math.exp(sum(losses) / len(losses))
    assert perplexity(model, tokens, window, stride) == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    """A converted text model with a tokenizer of a dozen words."""
    folder = tmp_path_factory.mktemp("quality")
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>").save_pretrained(folder / "tokenizer")
    config = tiny.text_config()
    save_tree(tiny.make_tree(config), folder / "checkpoint")
    config_file = tiny.write_config(config, folder / "config.json")
    options = ("--tokenizer", str(folder / "tokenizer"), "--dtype", "float32", "--scale-dtype", "float32")
    assert tiny.run(folder / "checkpoint", folder / "repo", config_file, *options) == 0
    return folder / "repo"


def test_the_command_line(repo, tmp_path, capsys):
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["quality", str(repo), "--text", str(tmp_path / "text.txt"), "--dtype", "float32", "--device", "cpu"]
    assert convert_flax.main(words) == 0
    printed = capsys.readouterr().out
    tokens = torch.tensor([WORDS.index(word) for word in TEXT.split()])
    model = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True, dtype=torch.float32)
    losses = [_loss(model, tokens, 0, place) for place in range(len(tokens))]
    found = {unit: float(number) for number, unit in re.findall(r"([\d.]+) (per token|bits per byte)", printed)}
    assert found["per token"] == pytest.approx(math.exp(sum(losses) / 50), rel=1e-4)
    assert found["bits per byte"] == pytest.approx(sum(losses) / math.log(2) / 184, rel=1e-3)
    assert "184 bytes, 50 tokens" in printed
    assert "WARNING: 50 tokens are few" in printed
    assert f"lm_eval --model hf --model_args pretrained={repo},trust_remote_code=True,dtype=float32" in printed


@pytest.mark.parametrize(
    ("content", "options", "match"),
    [
        (b" \n\t\n", [], "text.txt: is empty"),
        (b"", [], "text.txt: is empty"),
        (b"\xef\xbb\xbf\n", [], "text.txt: is empty"),
        (None, [], "text.txt: no such file"),
        (b"caf\xe9", [], "cannot be read as UTF-8"),
        (TEXT.encode("utf-16"), [], "cannot be read as UTF-8"),
        (TEXT.encode("utf-16-le"), [], "holds zero bytes"),
        (b"\x1f\x8b\x08\xff", [], "is an archive (gzip)"),
        (SENTENCE.encode(), [], "10 tokens are too few"),
        ("Wörter, die er nicht kennt ".encode() * 20, [], "tokens of the text are <unk>"),
        (b"the cat", ["--window", "8"], "--window 8 --stride 1024"),
        (b"the cat", ["--stride", "2049"], "the stride is at most the window"),
    ],
)
def test_what_is_no_text(repo, tmp_path, capsys, content, options, match):
    if content is not None:
        (tmp_path / "text.txt").write_bytes(content)
    assert convert_flax.main(["quality", str(repo), "--text", str(tmp_path / "text.txt"), *options]) == 2
    _one_line(capsys, match)


@pytest.fixture
def copied(repo, tmp_path):
    """A repo to be changed, and a text beside it."""
    (tmp_path / "text.txt").write_text(TEXT)
    return Path(shutil.copytree(repo, tmp_path / "repo"))


def test_without_a_tokenizer_nothing_is_measured(copied, capsys):
    for name in "tokenizer.json", "tokenizer_config.json":
        (copied / name).unlink()
    assert convert_flax.main(["quality", str(copied), "--text", str(copied.parent / "text.txt")]) == 2
    _one_line(capsys, "holds no tokenizer.json, so no text can be read")
    with pytest.raises(BadInput, match=r"holds no tokenizer\.json"):
        measure(copied, TEXT, window=8, stride=8, device="cpu", dtype="float32", report=print)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cat": 5000}, "its tokenizer makes token 5000, the embedding has 192 rows: it is another model's"),
        ({"<bos>": 90}, "<bos> is token 90 of its tokenizer, expected 2"),
    ],
)
def test_another_models_tokenizer(copied, capsys, changed, said):
    values = json.loads((copied / "tokenizer.json").read_text())
    values["model"]["vocab"] |= changed
    for token in values["added_tokens"]:
        token["id"] = values["model"]["vocab"][token["content"]]
    (copied / "tokenizer.json").write_text(json.dumps(values))
    words = ["quality", str(copied), "--text", str(copied.parent / "text.txt"), "--device", "cpu"]
    assert convert_flax.main(words) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_what_is_no_repo(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("the cat")
    words = ["quality", str(tmp_path / "nowhere"), "--text", str(tmp_path / "text.txt")]
    assert convert_flax.main(words) == 2
    _one_line(capsys, "nowhere: no such folder")
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "config.json").write_text("{}")
    (tmp_path / "nowhere" / "tokenizer.json").write_text("{}")
    assert convert_flax.main(words) == 2
    assert f"error: {tmp_path / 'nowhere'}: cannot be loaded" in capsys.readouterr().err


def _one_line(capsys, match):
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1, error
    assert match in error[0]
