"""What the CPU benchmark says of its rows; it measures nothing here."""

import json
import sys

import pytest

from benchmarks import comparison, plot
from benchmarks.bench_generate import Failed, Peer
from benchmarks.choices import NAMES
from conversion.sizes import SIZES

ROWS = [
    {"run": 2, "model": "1B shape", "engine": "native", "prefill": 300.0, "decode": 30.0, "load_s": None},
    {"run": 2, "model": "1B shape", "engine": "llama", "prefill": 100.0, "decode": 15.0, "load_s": 1.0},
    {"run": 2, "model": "1B shape", "engine": "llama-fa", "prefill": 120.0, "decode": 12.0, "load_s": 1.0},
    {"run": 2, "model": "1B shape", "engine": "gptqmodel", "failed": "no g++"},
    {"run": 3, "model": "4B shape", "engine": "native", "prefill": 80.0, "decode": 8.0},
]
SEEING = [
    {"run": 4, "model": "4B shape", "engine": "native", "picture_s": 50.0, "pictures": 1 / 50},
    {"run": 4, "model": "4B shape", "engine": "llama-fa", "picture_s": 75.0, "pictures": 1 / 75},
    {"run": 4, "model": "4B shape, prompt 128", "engine": "llama-fa", "picture_s": 25.0, "pictures": 1 / 25},
]


def test_ratios_are_to_the_better_row_of_llama_cpp():
    assert comparison.over_llama(ROWS[0], ROWS, "prefill") == 2.5
    assert comparison.over_llama(ROWS[0], ROWS, "decode") == 2.0
    assert comparison.over_llama(ROWS[3], ROWS, "decode") is None
    assert comparison.over_llama(ROWS[4], ROWS, "decode") is None  # llama.cpp's rows are of another run


def test_ratios_of_questions_about_pictures_are_of_speeds_and_of_one_model():
    assert comparison.over_llama(SEEING[0], SEEING, "pictures") == 1.5
    assert "| 50.0 | - | - | 1.50 |" in comparison.table(SEEING).splitlines()[2]


def test_table_has_a_cell_for_every_column_and_says_why_an_engine_failed():
    titles, _, *lines = comparison.table(ROWS).splitlines()
    assert {line.count("|") for line in lines} == {titles.count("|")}
    assert lines[0].startswith("| 1B shape | native | 300 | 30.0 |")
    assert lines[0].endswith("| 2.50 | 2.00 | - |")
    assert lines[3].startswith("| 1B shape | gptqmodel | failed: no g++ | - |")


def test_an_engine_that_cannot_start_says_why(tmp_path, capsys):
    with pytest.raises(Failed, match=r"nowhere cannot be started \(No such file"):
        Peer("llama", tmp_path, tmp_path / "nowhere", 1, 1, 64)
    imports_nothing = tmp_path / "python"
    imports_nothing.write_text(f"#!{sys.executable} -I\nraise ImportError('no llama_cpp here')\n")
    imports_nothing.chmod(0o755)
    with pytest.raises(Failed, match="ImportError: no llama_cpp here"):
        Peer("llama", tmp_path, imports_nothing, 1, 1, 64)
    assert "Traceback" in capsys.readouterr().err
    crashes = tmp_path / "crashes"
    crashes.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashes.chmod(0o755)
    with pytest.raises(Failed, match="Segmentation fault"):
        Peer("llama", tmp_path, crashes, 1, 1, 64)


def test_the_picture_is_of_the_last_run_of_each_model(tmp_path):
    earlier = [{**ROWS[0], "run": 1}, {**ROWS[0], "run": 1, "engine": "bf16"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*earlier, *ROWS]))
    rows = plot.read_rows(file)
    assert rows == ROWS
    plot.draw(rows, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_over_lengths_has_a_line_for_each_shape(tmp_path):
    rows = [
        {"run": 5, "model": f"1B, prompt {n}", "shape": "1B", "prompt": n, "engine": engine, "prefill": x, "decode": x}
        for n in (512, 2048)
        for engine, x in (("native", 3.0), ("llama-fa", 2.0))
    ]
    plot.draw_lengths([*rows, {**rows[0], "shape": "4B", "model": "4B"}], tmp_path / "lines.png")
    assert (tmp_path / "lines.png").read_bytes().startswith(b"\x89PNG")


def test_options_can_name_every_published_size():
    assert [size.name.lower() for size in SIZES] == NAMES
