"""The products of a model, each shape at every number of rows, ours beside the peers."""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable

import torch
from gemma3_int4 import int4_backend
from gemma3_int4.int4_gpu_fused import FEW_ROWS
from gemma3_int4.int4_gpu_triton import Triton

from benchmarks.gpu.checks import checked
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.peers import MAKERS
from benchmarks.gpu.products import products, random_matrix, text_config
from benchmarks.report import Report


def bench_kernels(args: argparse.Namespace, clock: Clock, report: Report) -> None:
    """Every shape at every number of rows; then, for one row, the sum over a token's products."""
    device = clock.device
    copy = clock.copy_bandwidth()
    report.add("copy", GBps=copy)
    for name in args.sizes:
        token = dict.fromkeys(("ours", *args.peers), 0.0)
        for label, product in products(text_config(name)).items():
            outputs = sum(product.outputs)
            codes, scales = random_matrix(outputs, product.inputs, device)
            nbytes = codes.nbytes + scales.nbytes
            backend = int4_backend.choose_backend(device, torch.bfloat16, outputs, product.inputs)
            make = functools.partial(ours, backend, product.outputs)
            rows = [m for m in args.rows if label != "head" or m <= 64]  # generate asks for the last token's logits
            inputs = {m: torch.randn(m, product.inputs, device=device).bfloat16() for m in rows}
            call = make(codes, scales)
            errors = {m: checked(call, x, codes, scales, backend.name) for m, x in inputs.items()}
            del call
            seconds = {"ours": timed(clock, make, codes, scales, inputs)}
            for peer in args.peers:
                seconds[peer] = timed(clock, MAKERS[peer], codes, scales, inputs)
            for m in rows:
                best = seconds["ours"][m]
                report.add(
                    "kernels",
                    size=name,
                    projection=label,
                    shape=f"{outputs}x{product.inputs}",
                    MB=nbytes / 1e6,
                    rows=m,
                    us=best * 1e6,
                    GBps=nbytes / best / 1e9,
                    of_copy=nbytes / best / 1e9 / copy,
                    TFLOPs=2 * m * outputs * product.inputs / best / 1e12,
                    **{f"x {peer}": seconds[peer].get(m, math.nan) / best for peer in args.peers},
                    error=errors[m],
                    backend=backend.name,
                )
            for who in token:
                token[who] += product.times * seconds[who].get(1, math.nan)
        ratios = {f"x {peer}": token[peer] / token["ours"] for peer in args.peers}
        report.add("sum over one token's products, one row", size=name, ms=token["ours"] * 1e3, **ratios)


def ours(
    backend: type, outputs: tuple[int, ...], codes: torch.Tensor, scales: torch.Tensor
) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """As the model computes: few rows in one launch, where the backend has that, more one by one."""
    parts = zip(codes.split(outputs), scales.split(outputs), strict=True)
    packed = [{name: tensor.clone() for name, tensor in backend.pack(*part).items()} for part in parts]

    def call(x: torch.Tensor) -> list[torch.Tensor]:
        if backend is Triton and x.shape[0] <= FEW_ROWS:
            return [backend.linears(x, packed)]
        return [backend.linear(x, tensors) for tensors in packed]

    return call


def timed(clock: Clock, make: Callable, codes: torch.Tensor, scales: torch.Tensor, inputs: dict) -> dict[int, float]:
    """Rows -> seconds of the product that `make` builds from codes and scales; empty where it cannot build one."""
    before = torch.cuda.memory_allocated() if clock.device.type == "cuda" else 0
    calls = [make(codes, scales)]
    if calls[0] is None:
        return {}
    nbytes = torch.cuda.memory_allocated() - before if clock.device.type == "cuda" else codes.nbytes
    calls += [make(codes, scales) for _ in range(clock.copies(max(nbytes, codes.nbytes)) - 1)]
    return {m: clock.seconds([lambda call=call, x=x: call(x) for call in calls]) for m, x in inputs.items()}
