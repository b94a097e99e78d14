"""Whole models: from a prompt to its first token, and from one token to the next."""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from benchmarks.gpu.clock import Clock, peak_gb, reset_peak, wall_seconds
from benchmarks.gpu.models import backend_of, models, token_bytes
from benchmarks.report import Report


@torch.no_grad()
def bench_prefill(args: argparse.Namespace, clock: Clock, report: Report) -> None:
    """One forward pass over a prompt, with the logits of its last token: what comes before the first token."""
    for name in args.sizes:
        first = {}
        for kind, model in models(args, name, clock.device):
            report.add(
                "memory after loading", size=name, model=kind, peak_GB=peak_gb(clock.device), backend=backend_of(model)
            )
            for length in args.prefill:
                ids = torch.randint(3, model.config.vocab_size, (1, length), device=clock.device)

                def forward(model=model, ids=ids):
                    return model(ids, logits_to_keep=1, use_cache=True)

                forward()
                seconds = statistics.median(wall_seconds(forward) for _ in range(5))
                first[kind, length] = seconds
                report.add(
                    "prefill",
                    size=name,
                    model=kind,
                    tokens=length,
                    ms=seconds * 1e3,
                    tokens_per_s=length / seconds,
                    peak_GB=peak_gb(clock.device),
                )
            del model, forward
        for length in args.prefill:
            if ("int4", length) in first and ("bf16", length) in first:
                report.add(
                    "prefill against bf16", size=name, tokens=length, x=first["bf16", length] / first["int4", length]
                )


@torch.no_grad()
def bench_decode(args: argparse.Namespace, clock: Clock, report: Report) -> None:
    """`generate`, greedy: time to the first token, and the median step of the rest."""
    copy = clock.copy_bandwidth()
    for name in args.sizes:
        for kind, model in models(args, name, clock.device):
            for batch in args.batch:
                for context in args.context:
                    for mode in args.modes:
                        _decode(args, clock, report, name, kind, model, batch, context, mode, copy)
            del model


class StepTimes:
    """A streamer for `generate` that keeps the seconds of every step: of the prompt first, then of one token each.

    `generate` gives every token as it is, on the CPU, so that the GPU has then done its work.
    """

    def __init__(self):
        self.steps, self.last = [], None

    def put(self, tokens: torch.Tensor) -> None:
        now = time.perf_counter()
        if self.last is not None:  # what comes first is the prompt
            self.steps.append(now - self.last)
        self.last = now

    def end(self) -> None:
        pass


def _decode(args, clock, report, name, kind, model, batch, context, mode, copy) -> None:
    ids = torch.randint(3, model.config.vocab_size, (batch, context), device=clock.device)
    reset_peak(clock.device)

    def generate(times: StepTimes) -> None:
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=args.tokens,
            max_length=None,
            do_sample=False,
            cache_implementation="static" if mode == "compiled" else None,
            streamer=times,
        )

    for _ in range(2):  # warm-up: kernels, compilation, CUDA graphs
        generate(StepTimes())
    runs = [StepTimes() for _ in range(3)]
    for times in runs:
        generate(times)
    first = statistics.median(times.steps[0] for times in runs)
    seconds = statistics.median(step for times in runs for step in times.steps[1:])
    weights = token_bytes(model)
    report.add(
        "decode",
        size=name,
        model=kind,
        mode=mode,
        batch=batch,
        context=context,
        first_token_ms=first * 1e3,
        ms_per_step=seconds * 1e3,
        tokens_per_s=batch / seconds,
        weights_GB=weights / 1e9,
        GBps=weights / seconds / 1e9,
        of_copy=weights / seconds / 1e9 / copy,
        peak_GB=peak_gb(clock.device),
        backend=backend_of(model),
    )
