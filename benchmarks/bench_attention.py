"""The attention of one prompt in one layer: our CPU kernel, blocks through PyTorch, and PyTorch's causal square.

    python -m benchmarks.bench_attention --length 4096

Layers as the published models have them: a global one and one with a window of the 1B, a global one of the 4B, and the
vision tower's square. Times are processor time, all threads together, the best of `--rounds`, each contestant once a
round; GFLOP/s count only what the layer looks at, so that work beyond that shows as a lower rate. The rate of a float32
GEMM stands above them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

SHAPES = {  # heads, key heads, numbers to a head, window (0: the past; None: a square)
    "1B, global": (4, 1, 256, 0),
    "1B, window": (4, 1, 256, 512),
    "4B, global": (8, 4, 256, 0),
    "tower": (16, 16, 72, None),
}


def best(contestants: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Seconds of processor time of each, after a first call that does not count."""
    seconds = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            start = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - start)
    return {name: min(times) for name, times in seconds.items()}


def measure(name: str, length: int, rounds: int) -> None:
    """Prints a line for each contestant."""
    import torch
    from gemma3_int4 import int4_attention, int4_cpu_attention
    from gemma3_int4.int4_masks import Rule

    heads, key_heads, dim, window = SHAPES[name]
    query, key, value = (torch.randn(1, n, length, dim).bfloat16() for n in (heads, key_heads, key_heads))
    rule, pairs = None, length**2
    if window is not None:
        end = torch.arange(1, length + 1, dtype=torch.int32)[None]
        first = (end - (window or length)).clamp(min=0)
        rule = Rule(first, end, None, start=0, offset=0, key_count=length)
        pairs = int((end - first).sum())
    if why := int4_cpu_attention.why_not(query, key, value, rule):
        raise SystemExit(f"no kernel here: {why}")

    def square() -> None:
        options = {"is_causal": rule is not None, "enable_gqa": True}
        torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)

    contestants = {"kernel": lambda: int4_cpu_attention.attend(query, key, value, rule, None), "square": square}
    if rule is not None:
        contestants["blocks"] = lambda: int4_attention.in_blocks(query, key, value, rule, None)
    for contestant, seconds in best(contestants, rounds).items():
        rate = 4 * pairs * heads * dim / seconds / 1e9
        print(f"{name} | {contestant} | {seconds:.2f} s | {rate:.0f} GFLOP/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    matrix = torch.randn(1536, 1536)
    seconds = best({"gemm": lambda: matrix @ matrix}, args.rounds)["gemm"]
    print(f"float32 GEMM: {2 * 1536**3 / seconds / 1e9:.0f} GFLOP/s of a processor")
    for name in args.shapes:
        measure(name, args.length, args.rounds)


if __name__ == "__main__":
    main()
