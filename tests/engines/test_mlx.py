"""MLX, on its CPU backend: the exported repo, text in mlx-lm, pictures in mlx-vlm."""

from tests.engines.helpers.agreement import agreement, run

EXCUSED = 0.25


def test_mlx(case, reference_of, report, tmp_path):
    ours = reference_of(case)
    result = run("mlx", "run_mlx.py", case.exported("mlx", tmp_path), case, ours, tmp_path)
    found = agreement(ours, result)
    report(*found.lines())
    assert found.widest < EXCUSED
