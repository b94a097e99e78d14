"""A picture of what bench_generate has measured: prefill and decode as multiples of llama.cpp's.

    python -m benchmarks.plot FILE.jsonl PICTURE.png [--lengths]

Of several runs of the same model the last one counts. Models without a row of llama.cpp are left out. `--lengths` draws
lines over the length of the prompt, of shapes that were measured with several, in place of bars.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.comparison import ENGINES, over_llama

COLORS = dict(zip(ENGINES, ("#1b6ca8", "#76b5d9", "#3f9e8f", "#8a8a8a", "#bdbdbd", "#d9a441", "#b5533c"), strict=True))


def read_rows(file: Path) -> list[dict]:
    """The rows of each model's last run, in the order of the file."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    last = {row["model"]: row["run"] for row in rows}
    return [row for row in rows if row["run"] == last[row["model"]]]


def draw(rows: list[dict], picture: Path) -> None:
    """Two panels of bars, a group for each model, a color for each engine."""
    from matplotlib import pyplot as plt  # takes seconds, which `--help` shall not

    plt.switch_backend("Agg")
    engines = [engine for engine in ENGINES if any(row["engine"] == engine for row in rows)]
    models = list(dict.fromkeys(row["model"] for row in rows if over_llama(row, rows, "decode") is not None))
    figure, panels = plt.subplots(2, 1, figsize=(max(2 + 2 * len(models), 8), 7), layout="constrained")
    for panel, what in zip(panels, ("decode", "prefill"), strict=True):
        for row in rows:
            ratio = over_llama(row, rows, what)
            if ratio is not None:
                place = models.index(row["model"]) + (engines.index(row["engine"]) + 0.5) / len(engines) * 0.86 - 0.43
                bar = panel.bar(place, ratio, 0.86 / len(engines), color=COLORS[row["engine"]])
                panel.bar_label(bar, fmt="%.2f", fontsize=7)
        panel.axhline(1, color="black", linewidth=0.8, zorder=0)
        panel.set_xticks(range(len(models)), [model.replace(", ", "\n") for model in models])
        panel.set_ylabel(f"{what}, times llama.cpp")
        panel.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLORS[engine]) for engine in engines]
    figure.legend(handles, engines, loc="outside upper center", ncols=len(engines), frameon=False)
    figure.savefig(picture, dpi=150)


def draw_lengths(rows: list[dict], picture: Path) -> None:
    """Two panels of lines over the prompt's length, one for each shape and engine but llama.cpp's."""
    from matplotlib import pyplot as plt

    plt.switch_backend("Agg")
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    lines = {(row["shape"], row["engine"]): [] for row in rows if not row["engine"].startswith("llama")}
    for row in sorted(rows, key=lambda row: row["prompt"]):
        if (row["shape"], row["engine"]) in lines and over_llama(row, rows, "prefill") is not None:
            lines[row["shape"], row["engine"]].append(row)
    for panel, what in zip(panels, ("prefill", "decode"), strict=True):
        for (shape, engine), found in lines.items():
            if len(found) > 1:
                ratios = [over_llama(row, rows, what) for row in found]
                panel.plot([row["prompt"] for row in found], ratios, marker="o", label=f"{shape}: {engine}")
        panel.axhline(1, color="black", linewidth=0.8, zorder=0)
        panel.set_xscale("log", base=2)
        lengths = sorted({row["prompt"] for row in rows})
        panel.set_xticks(lengths, [f"{length:,}" for length in lengths], fontsize=8)
        panel.minorticks_off()
        panel.set_xlabel("tokens of prompt")
        panel.set_ylabel(f"{what}, times llama.cpp")
        panel.set_ylim(0, 1.1 * panel.get_ylim()[1])
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(picture, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--lengths", action="store_true", help="lines over the prompt's length")
    args = parser.parse_args()
    (draw_lengths if args.lengths else draw)(read_rows(args.file), args.picture)


if __name__ == "__main__":
    main()
