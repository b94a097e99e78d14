"""Loading: progress, facts, and what is said when it fails."""

from __future__ import annotations

from types import SimpleNamespace

from chat.loading import model_facts, progress_bar


def test_the_status_names_the_int4_backend_and_bytes() -> None:
    model = SimpleNamespace(int4_bytes=15_200_000_000, int4_backend="aten-cpu", device="cpu")
    assert model_facts(model, 27_400_000_000) == (
        "27.4 G parameters · 15.2 GB of int4 weights in memory · device cpu · backend aten-cpu"
    )


def test_loading_reports_progress() -> None:
    seen: list[str] = []
    bar = progress_bar(seen.append)
    for _ in bar(range(4), desc="Loading weights", mininterval=0, miniters=1):
        pass
    assert seen[:4] == ["loading weights 0%", "loading weights 25%", "loading weights 50%", "loading weights 75%"]
