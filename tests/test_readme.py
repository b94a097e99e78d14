"""What the README tells a reader to type works: the snippets alone, in the folder of the shipped checkpoint."""

import re
from pathlib import Path

import pytest

from demo.places import ROOT

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```py\n(.*?)```", README, flags=re.DOTALL)
MODEL_BLOCKS = [block for block in BLOCKS if "gradio_client" not in block and "Reader" not in block]  # tests/chat: one
(READER_BLOCK,) = (block for block in BLOCKS if "Reader" in block)


@pytest.mark.skipif(not (ROOT / "config.json").exists(), reason="no checkpoint at the root")
@pytest.mark.parametrize("block", MODEL_BLOCKS)
def test_each_snippet_answers_by_itself(block: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(block, names)
    assert capsys.readouterr().out == "It is a turtle.\n"
    model = names["pipe"].model if "pipe" in names else names["model"]
    assert type(model).__module__.startswith("transformers_modules")
    assert model.int4_bytes > 0


@pytest.mark.skipif(not (ROOT / "config.json").exists(), reason="no checkpoint at the root")
def test_the_reader_goes_on_with_the_first_snippets_chat(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(MODEL_BLOCKS[0] + READER_BLOCK, names)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "It is a turtle."
    inputs = names["inputs"]
    expected = names["model"].generate(**inputs, max_new_tokens=100, do_sample=False)
    assert second == names["processor"].decode(expected[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_both_ways_to_load_are_shown() -> None:
    assert ["AutoModelForImageTextToText" in block for block in MODEL_BLOCKS] == [True, False]
    assert ["pipeline(" in block for block in MODEL_BLOCKS] == [False, True]


@pytest.mark.parametrize(
    "page",
    ["README.md", *(f"docs/{name}.md" for name in ("cpu", "devices", "engines", "training"))]
    + ["demo/RESULTS.md", "benchmarks/RESULTS.md"],
)
def test_every_target_that_a_page_names_is_there(page: str) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    text = (ROOT / page).read_text("utf-8")
    named = set(re.findall(r"(?:`|^)make ([a-z0-9][a-z0-9-]*)", text, flags=re.MULTILINE))
    assert named <= targets


def test_every_file_that_the_start_names_is_there() -> None:
    start = README[README.index("## Start") : README.index("## The checkpoint")]
    named = re.findall(r"[\w./-]+/[\w-]+\.(?:py|txt|png)", start)
    assert {"requirements/install.py", "requirements/model.txt", "examples/turtle.png"} <= set(named)
    assert all((ROOT / Path(name)).exists() for name in named)
