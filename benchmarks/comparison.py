"""Rows of bench_generate side by side: ratios to llama.cpp, and the table."""

from __future__ import annotations

ENGINES = ("native", "aten", "compiled", "llama", "llama-fa", "bf16", "gptqmodel")


def machine_line(row: dict) -> str:
    """Where and under which conditions a row was measured."""
    return (
        f"{row['cpu']}, {row['threads']} threads: reads {row['read_gb_s']:.1f} GB/s, {row['gemm_dtype']} GEMM "
        f"{row['gemm_gflop_s']:.0f} GFLOP/s; load average before {row['load_average']:.1f}"
    )


def over_llama(row: dict, rows: list[dict], what: str) -> float | None:
    """How many times the speed of the better of llama.cpp's rows of this model and run; None where there is none."""
    alike = [r for r in rows if (r["run"], r["model"]) == (row["run"], row["model"])]
    speeds = [r[what] for r in alike if r["engine"].startswith("llama") and what in r]
    return row[what] / max(speeds) if speeds and what in row else None


COLUMNS = {  # title -> (key, digits)
    "prefill tok/s": ("prefill", 0),
    "decode tok/s": ("decode", 1),
    "GFLOP/s": ("gflop_s", 0),
    "GB/s": ("gb_s", 1),
    "load s": ("load_s", 1),
    "loaded MB": ("loaded_mb", 0),
    "peak MB": ("peak_mb", 0),
    "first call s": ("first_call_s", 1),
    "picture s": ("picture_s", 1),
    "prefill / llama": ("prefill_ratio", 2),
    "decode / llama": ("decode_ratio", 2),
    "picture / llama": ("pictures_ratio", 2),
}


def table(rows: list[dict]) -> str:
    """Markdown; an engine that failed has its reason in place of the first number."""
    lines = ["| " + " | ".join(["model", "engine", *COLUMNS]) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in rows:
        ratios = {f"{what}_ratio": over_llama(row, rows, what) for what in ("prefill", "decode", "pictures")}
        found = [((row | ratios).get(key), digits) for key, digits in COLUMNS.values()]
        cells = ["-" if value is None else f"{value:.{digits}f}" for value, digits in found]
        if "failed" in row:
            cells[0] = f"failed: {row['failed']}"
        lines.append("| " + " | ".join([row["model"], row["engine"], *cells]) + " |")
    return "\n".join(lines)
