"""A picture of what bench_generate has measured: prefill and decode as multiples of llama.cpp's.

    python -m benchmarks.plot FILE.jsonl PICTURE.png

Of several runs of the same model the last one counts. Models without a row of llama.cpp are left out.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    draw(read_rows(args.file), args.picture)


if __name__ == "__main__":
    main()
