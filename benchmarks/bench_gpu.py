"""The GPU backend against bfloat16 cuBLAS, PyTorch's own int4 operator, gemlite and the memory's speed, in one run.

    python -m benchmarks.bench_gpu kernels --sizes 27b                  # every shape, 1 to 4096 rows
    python -m benchmarks.bench_gpu decode --sizes 27b --batch 1 16      # tokens/s of a whole model, compiled and eager
    python -m benchmarks.bench_gpu prefill --sizes 27b                  # against the same model in bfloat16
    python -m benchmarks.bench_gpu all --tiny --device cpu              # does the script run? (no Triton, no meaning)

Weights are random, in the published shapes of the language model, made on the device; nothing is written but `--out`,
one JSON line a result. gemlite takes part where it can be imported.

How a kernel is timed: a CUDA graph calls it on copies of its matrix that together are four times the L2 cache, so that
every call reads cold memory, back to back as in decoding; the median of the replays counts. GB/s are those of the int4
codes and scales, beside a device-to-device copy (bytes read plus bytes written) of the same run. Every result of ours
is compared with float64 before, computed into memory filled with NaN.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import math
import os
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from benchmarks.shapes import config_of, linear_shapes, random_scales

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("GEMMA3_INT4_BACKEND", "triton")
# The modeling files import each other relatively; transformers makes them a package when it loads a repo, as here.
package = types.ModuleType("gemma3_int4")
package.__path__ = [str(ROOT)]
sys.modules.setdefault("gemma3_int4", package)

from gemma3_int4 import modeling_gemma3_int4  # noqa: E402
from gemma3_int4.int4_backend import choose_backend  # noqa: E402
from gemma3_int4.int4_codes import dequantize, row_blocks  # noqa: E402
from gemma3_int4.int4_gpu_fused import FEW_ROWS  # noqa: E402
from gemma3_int4.int4_gpu_triton import Triton  # noqa: E402
from gemma3_int4.int4_layers import AwqLinear, Int4Embedding, Int4Linear  # noqa: E402

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
TINY = Gemma3TextConfig(
    vocab_size=512,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    query_pre_attn_scalar=32,
    sliding_window=16,
    layer_types=["sliding_attention", "full_attention"],
)


def text_config(name: str) -> Gemma3TextConfig:
    """The language model of a published size ("27b"), or of "tiny"."""
    return TINY if name == "tiny" else config_of(name).get_text_config()


class Product(NamedTuple):
    """Matrices [outputs, inputs] that share an input, and how often a token passes such."""

    outputs: tuple[int, ...]
    inputs: int
    times: int


def products(config: Gemma3TextConfig) -> dict[str, Product]:
    """The products of a model: what is one launch for few rows."""
    shapes, layers = linear_shapes(config), config.num_hidden_layers
    joint = {
        "q, k, v": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "o": ("self_attn.o_proj",),
        "gate, up": ("mlp.gate_proj", "mlp.up_proj"),
        "down": ("mlp.down_proj",),
    }
    found = {
        label: Product(tuple(shapes[name][0] for name in names), shapes[names[0]][1], layers)
        for label, names in joint.items()
    }
    return found | {"head": Product((config.vocab_size,), config.hidden_size, 1)}


def random_matrix(outputs: int, inputs: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Row-major codes and bfloat16 scales, such that a row has a norm of about 1."""
    codes = torch.randint(0, 256, (outputs, inputs // 2), dtype=torch.uint8, device=device)
    return codes, random_scales(outputs, inputs // 32, inputs=inputs, device=device)


class Clock:
    """Times calls on one device."""

    def __init__(self, device: torch.device, repeats: int):
        self.device, self.repeats = device, repeats
        cuda = device.type == "cuda"
        self.cache = torch.cuda.get_device_properties(device).L2_cache_size if cuda else 1 << 10

    def copies(self, nbytes: int) -> int:
        """How many copies of something exceed the cache four times."""
        return max(math.ceil(4 * self.cache / nbytes), 1)

    def seconds(self, calls: list[Callable[[], object]]) -> float:
        """Seconds of one call: the median over passes through all of them, in a CUDA graph where there is CUDA."""
        for call in calls:
            call()
        if self.device.type != "cuda":
            return statistics.median(wall_seconds(call) for call in calls)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        graph.replay()
        times = []
        for _ in range(self.repeats):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            graph.replay()  # untimed: while it runs the next one is launched, so that no launch is timed
            start.record()
            graph.replay()
            stop.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(stop) / 1e3 / len(calls))
        return statistics.median(times)

    def copy_bandwidth(self) -> float:
        """GB/s of a device-to-device copy, bytes read plus bytes written."""
        count = 1 << (31 if self.device.type == "cuda" else 20)
        source = torch.randint(0, 100, (count,), dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * source.nbytes / self.seconds([lambda: target.copy_(source)]) / 1e9


def wall_seconds(call: Callable[[], object]) -> float:
    """Wall-clock seconds of a call, work on the GPU included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def poisoned(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The result of a call during which fresh memory is filled with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # which is what torch ties the filling to
    try:
        return call()
    finally:
        torch.use_deterministic_algorithms(False)


def worst_errors(y: torch.Tensor, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> tuple[float, float]:
    """||y - y64|| / ||y64||, and the largest error in bfloat16 ulp of its row's largest element."""

    squared_error = squared = 0.0
    largest, row_error = torch.zeros(2, x.shape[0], dtype=torch.float64, device=x.device)
    for block in row_blocks(codes.shape[0], max(x.shape[1], x.shape[0])):
        exact = x.double() @ dequantize(codes[block], scales[block], torch.float32).double().T
        error = (y[:, block].double() - exact).abs()
        squared_error += error.square().sum().item()
        squared += exact.square().sum().item()
        largest = torch.maximum(largest, exact.abs().amax(dim=1))
        row_error = torch.maximum(row_error, error.amax(dim=1))
    ulp = torch.exp2(largest.log2().floor() - 7)
    return math.sqrt(squared_error / squared), (row_error / ulp).max().item()


def checked(call: Callable, x: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, name: str) -> float:
    """The relative error of a product.

    Raises:
        RuntimeError: it, or a single element, is too far from float64 (or NaN).
    """
    y = torch.cat(poisoned(lambda: call(x)), dim=1)
    relative, ulp = worst_errors(y, x, codes, scales)
    if not (relative < 1e-2 and ulp <= 2):
        raise RuntimeError(
            f"{name} is wrong at {tuple(codes.shape)} codes, {x.shape[0]} rows: relative error {relative:.2e} "
            f"(allowed 1e-2), worst element {ulp:.1f} ulp of its row's largest (allowed 2)."
        )
    return relative


# Who takes part: from codes and scales to a function of x, or None where that cannot be. The peers get matrices that
# share an input as one matrix.


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


def cublas(codes: torch.Tensor, scales: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The dequantized matrix in bfloat16."""

    weight = torch.empty(codes.shape[0], codes.shape[1] * 2, dtype=torch.bfloat16, device=codes.device)
    for block in row_blocks(*weight.shape):
        weight[block] = dequantize(codes[block], scales[block], torch.bfloat16)
    return lambda x: x @ weight.T


def torch_int4(codes: torch.Tensor, scales: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """PyTorch's operator with the tensor-core layout; random codes, so the order of nibbles is of no interest."""
    if codes.device.type != "cuda" or codes.shape[1] * 2 % 128 or codes.shape[0] % 8:
        return None
    weight = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
    pairs = torch.stack([scales.T, torch.zeros_like(scales.T)], dim=-1).contiguous()
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, weight, 32, pairs)


def gemlite(codes: torch.Tensor, scales: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor] | None:
    if codes.device.type != "cuda" or importlib.util.find_spec("gemlite") is None:
        return None
    from gemlite.helper import A16Wn

    single = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)  # uint8 [N, K]
    maker = A16Wn(device=str(codes.device), dtype=torch.bfloat16)
    zeros = torch.full_like(scales, 8)
    return maker.from_weights(single, scales, zeros, W_nbits=4, group_size=32).forward


PEERS = {"cublas": cublas, "torch_int4": torch_int4, "gemlite": gemlite}


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
            backend = choose_backend(device, torch.bfloat16, outputs, product.inputs)
            make = functools.partial(ours, backend, product.outputs)
            rows = [m for m in args.rows if label != "head" or m <= 64]  # generate asks for the last token's logits
            inputs = {m: torch.randn(m, product.inputs, device=device).bfloat16() for m in rows}
            call = make(codes, scales)
            errors = {m: checked(call, x, codes, scales, backend.name) for m, x in inputs.items()}
            del call
            seconds = {"ours": timed(clock, make, codes, scales, inputs)}
            for peer in args.peers:
                seconds[peer] = timed(clock, PEERS[peer], codes, scales, inputs)
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


def timed(clock: Clock, make: Callable, codes: torch.Tensor, scales: torch.Tensor, inputs: dict) -> dict[int, float]:
    """Rows -> seconds of the product that `make` builds from codes and scales; empty where it cannot build one."""
    before = torch.cuda.memory_allocated() if clock.device.type == "cuda" else 0
    calls = [make(codes, scales)]
    if calls[0] is None:
        return {}
    nbytes = torch.cuda.memory_allocated() - before if clock.device.type == "cuda" else codes.nbytes
    calls += [make(codes, scales) for _ in range(clock.copies(max(nbytes, codes.nbytes)) - 1)]
    return {m: clock.seconds([lambda call=call, x=x: call(x) for call in calls]) for m, x in inputs.items()}


# Whole models


def int4_model(config: Gemma3TextConfig, device: torch.device) -> torch.nn.Module:
    """The class that `from_pretrained` gives, with random weights that never were anything but int4."""
    config._int4_checkpoint = modeling_gemma3_int4.Int4Checkpoint(
        keep=(), packed_embedding=True, scale_dtypes={"model.embed_tokens.scales": torch.bfloat16}
    )
    model = _on_meta(modeling_gemma3_int4.Gemma3ForCausalLM, config)
    for name in [name for name, module in model.named_modules() if isinstance(module, AwqLinear)]:
        rows, columns = model.get_submodule(name).rows, model.get_submodule(name).columns
        backend = choose_backend(device, torch.bfloat16, rows, columns)
        packed = backend.pack(*random_matrix(rows, columns, device))
        model.set_submodule(name, Int4Linear(rows, columns, torch.bfloat16, backend, packed).eval())
    stored = model.get_input_embeddings()
    matrix = random_matrix(stored.rows, stored.columns, device)
    model._set_int4_embedding(Int4Embedding(*matrix, torch.bfloat16, stored.embed_scale))
    modeling_gemma3_int4.use_fused_modules(model)
    return _filled(model, device)


def bfloat16_model(config: Gemma3TextConfig, device: torch.device) -> torch.nn.Module:
    """Stock Gemma 3 in bfloat16, random."""
    model = _filled(_on_meta(Gemma3ForCausalLM, config), device)
    model.tie_weights()
    return model


def _on_meta(model_class: type, config: Gemma3TextConfig) -> torch.nn.Module:
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        return model_class(config).to(torch.bfloat16).eval().requires_grad_(False)


def _filled(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Random values for what is still without memory: 1 for norms (stored as 0), rows of norm 1 for matrices."""
    for owner in model.modules():
        for name, tensor in list(owner.named_parameters(recurse=False)):
            if tensor.is_meta:
                value = torch.zeros(tensor.shape, dtype=torch.bfloat16, device=device)
                if tensor.dim() > 1:
                    value.normal_(std=tensor.shape[1] ** -0.5)
                setattr(owner, name, torch.nn.Parameter(value, requires_grad=False))
    model.model.rotary_emb = type(model.model.rotary_emb)(config=model.config).to(device)  # its buffers were meta, too
    embedding = model.get_input_embeddings()
    if "embed_scale" in dict(embedding.named_buffers()):
        embedding.embed_scale = torch.tensor(model.config.hidden_size**0.5, device=device)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def models(args: argparse.Namespace, name: str, device: torch.device) -> Iterator[tuple[str, torch.nn.Module]]:
    """The int4 model, then, if asked for, the bfloat16 one; the first is gone when the second comes."""
    for kind, build in (("int4", int4_model), ("bf16", bfloat16_model)):
        if kind in args.models:
            reset_peak(device)
            yield kind, build(text_config(name), device)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None


def token_bytes(model: torch.nn.Module) -> int:
    """Bytes of weights that one decoding step reads."""
    return getattr(model, "int4_bytes", 0) + sum(parameter.nbytes for parameter in model.parameters())


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


def backend_of(model: torch.nn.Module) -> str:
    return getattr(model, "int4_backend", "cublas")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["kernels", "decode", "prefill", "all"])
    parser.add_argument("--sizes", nargs="+", default=["27b"], help="270m 1b 4b 12b 27b")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS)
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--models", nargs="+", choices=["int4", "bf16"], default=["int4", "bf16"])
    parser.add_argument("--modes", nargs="+", choices=["compiled", "eager"], default=["compiled", "eager"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--context", nargs="+", type=int, default=[1024])
    parser.add_argument("--prefill", nargs="+", type=int, default=[2048, 8192])
    parser.add_argument("--tokens", type=int, default=64, help="new tokens of a decoding run")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--budget-gb", type=float, help="fail beyond this much device memory")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of two small layers, few rows and tokens")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.tiny:
        args.sizes, args.rows, args.context, args.prefill, args.tokens = ["tiny"], [1, 5], [20], [20], 4
    device = torch.device(args.device)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        print(f"{properties.name}, {properties.multi_processor_count} multiprocessors, torch {torch.__version__}")
        if args.budget_gb:
            torch.cuda.set_per_process_memory_fraction(args.budget_gb * 1e9 / properties.total_memory)
    torch.manual_seed(time.time_ns() % 2**31)  # fresh inputs, every run
    clock, report = Clock(device, args.repeats), Report(args.out)
    parts = {"kernels": bench_kernels, "prefill": bench_prefill, "decode": bench_decode}
    for part, run in parts.items():
        if args.part in (part, "all"):
            run(args, clock, report)


if __name__ == "__main__":
    main()
