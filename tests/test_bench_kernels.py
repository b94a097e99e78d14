"""`bench_kernels` measures every shape that it is asked for.

Run with: python -m pytest tests/test_bench_kernels.py
"""

from benchmarks import cpu_products


def test_every_shape_is_measured_at_every_number_of_rows(monkeypatch, capsys):
    monkeypatch.setattr(cpu_products, "labeled_shapes", lambda sizes: {(64, 128): "one", (128, 64): "other"})
    monkeypatch.setattr(cpu_products, "read_bandwidth", lambda: 10.0)
    monkeypatch.setattr(cpu_products, "gemm_rate", lambda: ("float32", 100.0))
    cpu_products.measure(["1b"], [1, 32], None, 1, "bfloat16")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| one", "| other"))]
    assert [line.split("|")[1:3] for line in lines] == [
        [" one 64x128 ", " 1 "],
        [" one 64x128 ", " 32 "],
        [" other 128x64 ", " 1 "],
        [" other 128x64 ", " 32 "],
    ]
    numbers = [float(cell.strip(" %")) for line in lines for cell in line.split("|")[3:-1]]
    assert min(numbers) >= 0
