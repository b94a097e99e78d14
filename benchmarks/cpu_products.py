"""The work of bench_kernels: a table of one int4 product in every shape, on this CPU."""

from __future__ import annotations

import torch
from gemma3_int4.int4_cpu_aten import AtenCpu
from gemma3_int4.int4_cpu_native import NativeCpu

from benchmarks.machine import best_seconds, dense_dtype, gemm_rate, read_bandwidth
from benchmarks.shapes import config_of, linear_shapes
from conversion.sizes import VOCABULARY


def measure(sizes: list[str], row_counts: list[int], threads: int | None, walk: int, scale_dtype: str) -> None:
    """Prints the table.

    Args:
        sizes: Names of published sizes.
        row_counts: Rows of activations.
        threads: Of torch; None leaves them.
        walk: MB of int4 weights to walk through.
        scale_dtype: "bfloat16", "float16" or "float32".
    """
    if threads:
        torch.set_num_threads(threads)
    backends = [
        backend
        for backend in (NativeCpu, AtenCpu)
        if backend.why_not(torch.device("cpu"), torch.bfloat16, 64, 64) is None
    ]
    bandwidth = read_bandwidth()
    dtype, gemm = gemm_rate()
    print(f"{torch.get_num_threads()} threads; read {bandwidth:.1f} GB/s; {dtype} GEMM {gemm:.0f} GFLOP/s\n")
    titles = [f"{backend.name} {what}" for backend in backends for what in ("us", "GB/s", "of read", "GFLOP/s")]
    print("| shape | rows |", " | ".join([*titles, f"{dtype} us", f"{dtype} GFLOP/s", "speed-up"]), "|")
    print("|---" * (len(titles) + 5) + "|")
    for (outputs, inputs), label in labeled_shapes(sizes).items():
        codes = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8)
        scales = torch.rand(outputs, inputs // 32).to(getattr(torch, scale_dtype))
        dense = torch.randn(outputs, inputs).to(dense_dtype())
        packed = []
        for backend in backends:
            copies = max(1, min(64, walk * 1_000_000 // codes.nbytes))
            first = backend.pack(codes, scales)
            packed.append([first, *({k: v.clone() for k, v in first.items()} for _ in range(copies - 1))])
        for rows in row_counts:
            x = torch.randn(rows, inputs).bfloat16()
            cells, flops = [], 2 * rows * outputs * inputs
            for backend, copies in zip(backends, packed, strict=True):
                walked = copies if rows <= 16 else copies[:1]
                seconds = best_seconds(lambda b=backend, w=walked, x=x: [b.linear(x, t) for t in w], 5) / len(walked)
                speed = sum(tensor.nbytes for tensor in copies[0].values()) / seconds / 1e9
                cells += [
                    f"{seconds * 1e6:.0f}",
                    f"{speed:.1f}",
                    f"{speed / bandwidth:.0%}",
                    f"{flops / seconds / 1e9:.0f}",
                ]
                if backend is backends[0]:
                    ours = seconds
            x = x.to(dense.dtype)
            seconds = best_seconds(lambda x=x, w=dense: torch.nn.functional.linear(x, w), 5)
            cells += [f"{seconds * 1e6:.0f}", f"{flops / seconds / 1e9:.0f}", f"{seconds / ours:.2f}"]
            print(f"| {label} {outputs}x{inputs} | {rows} |", " | ".join(cells), "|", flush=True)


def labeled_shapes(names: list[str]) -> dict[tuple[int, int], str]:
    """(outputs, inputs) -> the projections that have them, "4B k/v"."""
    found: dict[tuple[int, int], list[str]] = {}
    for name in names:
        config = config_of(name).get_text_config()
        shapes = linear_shapes(config) | {"head": (VOCABULARY, config.hidden_size)}
        alike: dict[tuple[int, int], list[str]] = {}
        for module, shape in shapes.items():
            alike.setdefault(shape, []).append(module.split(".")[-1].removesuffix("_proj"))
        for shape, modules in alike.items():
            found.setdefault(shape, []).append(f"{name.upper()} {'/'.join(modules)}")
    return {shape: ", ".join(labels) for shape, labels in found.items()}
