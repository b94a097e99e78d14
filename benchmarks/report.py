"""A benchmark's results, as a table to read and as JSON lines to keep."""

from __future__ import annotations

import json
from pathlib import Path


class Report:
    """Prints a Markdown table as it grows and appends JSON lines to a file."""

    def __init__(self, out: Path | None):
        self.out, self.columns = out, None

    def add(self, part: str, **values) -> None:
        if self.columns != (part, *values):
            self.columns = (part, *values)
            print(f"\n### {part}\n\n| {' | '.join(values)} |\n|{'---|' * len(values)}", flush=True)
        print(f"| {' | '.join(_shown(value) for value in values.values())} |", flush=True)
        if self.out is not None:
            with self.out.open("a") as file:
                file.write(json.dumps({"part": part} | values) + "\n")


def _shown(value: object) -> str:
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
