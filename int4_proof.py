# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Which backend is right on a device, and how fast: each against float64, on a model's own shapes and codes.

What this file offers:
    Sample       a shape of the model, with codes and scales of the first rows of a matrix that has it
    Verdict      what a backend did with a shape
    examine      the verdict: packing, rows of the embedding, products and the gradient's product, times
    choose       the backend for each shape, from the verdicts
    with_gemm    a backend that leaves many rows to the device's GEMM
    table        the verdicts as text

A matrix is its sample's rows again and again: 248 of them, so that a kernel which takes a row for another one 8, 16 or
any power of two further on is wrong, and float64 has no more to do than these. The largest are cut to `MOST_WEIGHTS`.

**Right** is what keeps the bound in every element, for 1, 4, 32 and 512 rows of activations, a first time in memory
filled with NaN: |y - exact| <= u |exact| + v sum |x| |w|. u is the rounding of the result; v that of each weight
(bfloat16) or of the sums (float32). Half of the rows of activations are a single 1, so that the sum is one weight, and
a code that was misread is seen; the others are random, and their errors together are bounded as well (`NORM`). The
comparison is made on the CPU.
"""

import contextlib
import copyreg
import functools
import math
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch

from .int4_backend import BACKENDS, Backend, needs_proof
from .int4_codes import Packed, Reference, dequantize, row_blocks
from .int4_compiled import Compiled

ROWS = (1, 4, 32, 512)
GEMM_ROWS = (32, 512)  # for which dequantized weights and the device's GEMM are timed beside the backend's own product
PERIOD = 248
MOST_WEIGHTS = 1 << 27
# dtype of the model -> u and v of the bound, and the largest ||y - exact|| / ||exact||
BOUNDS = {torch.bfloat16: (2**-8, 2**-8), torch.float32: (2**-22, 2**-17)}
NORM = {torch.bfloat16: 1e-2, torch.float32: 1e-4}
# What is weighed: the time of one prompt of 512 tokens and an answer of 256, by rows of activations.
PASSES = {1: 256, 512: 1}


@dataclass(frozen=True)
class Sample:
    """A shape, how many matrices of the model have it, and the first rows of one of them, on the CPU."""

    outputs: int
    inputs: int
    times: int
    codes: torch.Tensor  # row-major, uint8 [PERIOD or fewer, K/2]
    scales: torch.Tensor  # [PERIOD or fewer, K/32]


@dataclass(frozen=True)
class Verdict:
    """What a backend did with a shape."""

    backend: str
    outputs: int
    inputs: int
    times: int
    state: str  # "right"; "wrong", "failed" or "cannot", which `why` explains
    why: str = ""
    error: float = 0.0  # the worst, as a share of the bound
    seconds: dict[int, float] = field(default_factory=dict)  # by rows of activations
    gemm_seconds: dict[int, float] = field(default_factory=dict)  # with dequantized weights
    nbytes: int = 0  # of codes and scales

    @property
    def shape(self) -> tuple[int, int]:
        return self.outputs, self.inputs

    @classmethod
    def from_json(cls, fields: dict) -> "Verdict":
        """From JSON, which makes strings of the numbers of rows."""
        for name in ("seconds", "gemm_seconds"):
            fields[name] = {int(rows): float(seconds) for rows, seconds in fields[name].items()}
        return cls(**fields)


def examine(backend: type[Backend], sample: Sample, device: torch.device, dtype: torch.dtype) -> Verdict:
    """Tries a backend on one shape. What it raises is its verdict."""
    told = {"backend": backend.name, "outputs": sample.outputs, "inputs": sample.inputs, "times": sample.times}
    try:
        if why := backend.why_not(device, dtype, sample.outputs, sample.inputs):
            return Verdict(**told, state="cannot", why=why)
        trial = _Trial(backend, sample, device, dtype)
        for step in (trial.packing, trial.embedding, trial.gradient, *(_products(trial, rows) for rows in ROWS)):
            if why := step():
                return Verdict(**told, state="wrong", why=why, error=trial.error)
    except Exception as error:  # noqa: BLE001
        why = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
        return Verdict(**told, state="failed", why=why)
    times = {"seconds": trial.seconds, "gemm_seconds": trial.gemm_seconds, "nbytes": trial.nbytes}
    return Verdict(**told, state="right", error=trial.error, **times)


def _products(trial: "_Trial", rows: int) -> Callable[[], str | None]:
    return lambda: trial.products(rows)


class _Trial:
    """One backend with one shape. Its steps give what is wrong, or None."""

    def __init__(self, backend: type[Backend], sample: Sample, device: torch.device, dtype: torch.dtype):
        self.backend, self.sample, self.device, self.dtype = backend, sample, device, dtype
        # the last outputs of a block may be fewer, as in the whole matrix
        most = max(MOST_WEIGHTS // sample.inputs // 256, 1) * 256 + sample.outputs % 256
        self.outputs = min(sample.outputs, most)
        self.weight = dequantize(sample.codes, sample.scales, torch.float32).double()  # [PERIOD, K]
        self.codes, self.scales = (self._whole(part).to(device) for part in (sample.codes, sample.scales))
        self.packed: Packed = backend.pack(self.codes, self.scales)
        self.nbytes = self.codes.nbytes + self.scales.nbytes
        self.error, self.seconds, self.gemm_seconds = 0.0, {}, {}

    def _whole(self, rows: torch.Tensor) -> torch.Tensor:
        return rows[torch.arange(self.outputs) % len(rows)]

    def packing(self) -> str | None:
        unpacked = self.backend.unpack(self.packed)
        del self.packed  # and the codes, so that they are in memory once
        same = all(map(torch.equal, unpacked, (self.codes, self.scales)))
        self.packed = self.backend.pack(self.codes, self.scales)
        del self.codes, self.scales
        return None if same else "what is unpacked is not what was packed"

    def embedding(self) -> str | None:
        ids = torch.tensor([0, self.outputs - 1, *range(1, self.outputs, max(self.outputs // 37, 1))])
        with self._poison():
            found = self.backend.embedding(ids.to(self.device), self.packed, self.dtype).cpu()
        rows = ids % len(self.weight)
        expected = dequantize(self.sample.codes[rows], self.sample.scales[rows], self.dtype)
        return None if torch.equal(found, expected) else "rows of the embedding are not the weights"

    def gradient(self) -> str | None:
        grad = _activations(4, self.outputs, self.dtype)[0]
        of_row = torch.arange(self.outputs) % len(self.weight)
        sums = torch.zeros(2, len(grad), len(self.weight), dtype=torch.float64)
        sums.index_add_(2, of_row, torch.stack([grad.double(), grad.double().abs()]))
        exact, terms = sums[0] @ self.weight, sums[1] @ self.weight.abs()
        with self._poison():
            found = self.backend.grad_input(grad.to(self.device), self.packed)
        why = self._compare(found, exact, terms, self.sample.inputs)
        return why and f"the gradient of the input {why}"

    def products(self, rows: int) -> str | None:
        ways = {"": lambda x: self.backend.linear(x, self.packed)}
        if rows in GEMM_ROWS and needs_proof(self.device) and not issubclass(self.backend, Reference):
            gemm = with_gemm(self.backend, self.outputs, 0)
            ways[" by dequantized weights"] = lambda x: gemm.linear(x, self.packed)
        told = f"the product{{}} of {rows} row{'s' * (rows > 1)} {{}}"
        for given in _activations(rows, self.sample.inputs, self.dtype):
            x = given.to(self.device)
            exact, terms = given.double() @ self.weight.T, given.double().abs() @ self.weight.abs().T
            for name, way in ways.items():
                with self._poison():
                    found = way(x)
                if why := self._compare(found, exact, terms, self.outputs):
                    return told.format(name, why)
        for name, way in ways.items():
            seconds, found = _timed(lambda way=way: way(x), self.device)
            if why := self._compare(found, exact, terms, self.outputs):
                return told.format(name, why)
            (self.gemm_seconds if name else self.seconds)[rows] = seconds
        return None

    def _poison(self) -> contextlib.AbstractContextManager:
        # torch.compile would compile once more for it, and its code takes memory that it does not fill
        return contextlib.nullcontext() if self.backend is Compiled else _poisoned_memory()

    def _compare(self, found: torch.Tensor, exact: torch.Tensor, terms: torch.Tensor, columns: int) -> str | None:
        """A result [M, columns] against float64, which has the first of the columns' period."""
        if (found.dtype, *found.shape) != (self.dtype, len(exact), columns):
            return f"is {found.dtype} {tuple(found.shape)}"
        u, v = BOUNDS[self.dtype]
        bound = exact.abs() * u + terms * v + 1e-30
        worst = squared_error = squared = 0.0
        for part in found.cpu().split(exact.shape[1], dim=1):
            width = part.shape[1]
            error = (part.double() - exact[:, :width]).abs()
            share = (error / bound[:, :width]).max().item()
            if not share <= 1:  # NaN is neither
                self.error = max(self.error, share)
                return f"is off by {min(share, 1e6):.3g} times the bound"
            worst = max(worst, share)
            squared_error += error.square().sum().item()
            squared += exact[:, :width].square().sum().item()
        self.error = max(self.error, worst)
        norm = math.sqrt(squared_error / squared) if squared else 0.0
        return None if norm <= NORM[self.dtype] else f"has a relative error of {norm:.2e}, allowed {NORM[self.dtype]}"


def _activations(rows: int, inputs: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Activations [rows, K] on the CPU: random in the even rows and a single 1 in the odd ones; of one row, both."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(max(rows, 4), inputs, generator=generator).to(dtype)
    x[1::2] = 0
    odd = torch.arange(1, len(x), 2)
    x[odd, (inputs - 1 - odd // 2 * 41) % inputs] = 1
    return [x] if rows > 1 else list(x[:, None])


@contextlib.contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Within, fresh memory is filled with NaN."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)  # which is what torch ties the filling to
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _timed(call: Callable[[], torch.Tensor], device: torch.device) -> tuple[float, torch.Tensor]:
    """The shortest time of a call of several, with weights that are not in a GPU's cache; what the last one gave."""
    flush = torch.empty(0 if device.type == "cpu" else 1 << 28, dtype=torch.uint8, device=device)
    times: list[float] = []
    while (sum(times) < 0.05 and len(times) < 30) or (sum(times) < 0.1 and len(times) < 7):
        flush.zero_()
        if device.type == "cuda":  # while memory is flushed the call is launched, so that no launch is timed
            with torch.cuda.device(device):
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                found = call()
                stop.record()
                stop.synchronize()
            times.append(start.elapsed_time(stop) / 1e3)
        else:
            _synchronize(device)
            begun = time.perf_counter()
            found = call()
            _synchronize(device)
            times.append(time.perf_counter() - begun)
    return min(times), found


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class _WithGemm(type):
    """Of what `with_gemm` makes, so that a model that has it can be pickled."""


@functools.cache
def with_gemm(backend: type[Backend], outputs: int, rows: int) -> type[Backend]:
    """A backend that multiplies so many rows and more by dequantized weights, in blocks, with the device's GEMM."""

    class WithGemm(backend, metaclass=_WithGemm):
        made_from = backend, outputs, rows

        @staticmethod
        def linear(x: torch.Tensor, packed: Packed) -> torch.Tensor:
            if x.shape[0] < rows:
                return backend.linear(x, packed)
            y = x.new_empty(x.shape[0], outputs)
            for block in row_blocks(outputs, x.shape[1]):
                ids = torch.arange(block.start, block.stop, device=x.device)
                y[:, block] = x @ backend.embedding(ids, packed, x.dtype).T
            return y

    return WithGemm


copyreg.pickle(_WithGemm, lambda made: (with_gemm, made.made_from))


@dataclass(frozen=True)
class Choice:
    """What a shape is multiplied by. gemm_rows: from so many rows on, by the device's GEMM; 0: never."""

    backend: str
    gemm_rows: int = 0


def choose(verdicts: list[Verdict]) -> dict[tuple[int, int], Choice]:
    """The backend for each shape: the fastest over the whole model of those that were nowhere wrong or failing.

    A shape that it cannot multiply goes to the fastest that can; where none is right, to the reference.
    """
    distrusted = {verdict.backend for verdict in verdicts if verdict.state in ("wrong", "failed")}
    shapes: dict[tuple[int, int], dict[str, Verdict]] = {verdict.shape: {} for verdict in verdicts}
    for verdict in verdicts:
        if verdict.state == "right" and verdict.backend not in distrusted:
            shapes[verdict.shape][verdict.backend] = verdict
    fastest = {shape: min(able.values(), key=_cost, default=None) for shape, able in shapes.items()}
    names = [backend.name for backend in BACKENDS if any(backend.name in able for able in shapes.values())]

    def total(name: str) -> float:
        return sum(_cost(able.get(name, fastest[shape])) for shape, able in shapes.items() if able)

    winner = min(names, key=total, default=Reference.name)
    chosen = {}
    for shape, able in shapes.items():
        verdict = able.get(winner, fastest[shape])
        chosen[shape] = Choice(verdict.backend, _gemm_rows(verdict)) if verdict else Choice(Reference.name)
    return chosen


def _cost(verdict: Verdict) -> float:
    best = {rows: min(seconds, verdict.gemm_seconds.get(rows, seconds)) for rows, seconds in verdict.seconds.items()}
    return verdict.times * sum(passes * best[rows] for rows, passes in PASSES.items())


def _gemm_rows(verdict: Verdict) -> int:
    """From how many rows on the device's GEMM is clearly faster, as far as was measured."""
    found = 0
    for rows in sorted(verdict.gemm_seconds, reverse=True):
        if verdict.gemm_seconds[rows] > 0.95 * verdict.seconds[rows]:
            break
        found = rows
    return found


def table(verdicts: list[Verdict], choices: dict[tuple[int, int], Choice]) -> str:
    """The verdicts, in Markdown: for each backend the whole model, and below it each shape."""
    lines = [
        "| backend | matrices | verdict | worst error / bound | GB/s, 1 row |"
        + "".join(f" us, {rows} row{'s' * (rows > 1)} |" for rows in ROWS)
        + "".join(f" GEMM, {rows} |" for rows in GEMM_ROWS),
        "|---" * (5 + len(ROWS) + len(GEMM_ROWS)) + "|",
    ]
    for name in dict.fromkeys(verdict.backend for verdict in verdicts):
        of_name = [verdict for verdict in verdicts if verdict.backend == name]
        right = [verdict for verdict in of_name if verdict.state == "right"]
        if all(verdict.state == "cannot" and verdict.why == of_name[0].why for verdict in of_name):
            lines.append(_line(name, "all", f"cannot: {of_name[0].why}", []))
            continue
        if len(right) == len(of_name) > 1:
            taken = sum(choices[verdict.shape].backend == name for verdict in right)
            state = "right" if not taken else "**chosen**" if taken == len(right) else f"chosen for {taken} shapes"
            lines.append(_line(name, "all", state, right))
        for verdict in of_name:
            chosen = choices[verdict.shape]
            state = "**chosen**" if verdict.state == "right" and chosen.backend == name else verdict.state
            if chosen.backend == name and chosen.gemm_rows:
                state += f", GEMM from {chosen.gemm_rows} rows on"
            what = f"{verdict.times} of {verdict.outputs} x {verdict.inputs}"
            lines.append(_line(name, what, f"{state}: {verdict.why}" if verdict.why else state, [verdict]))
    return "\n".join(lines)


def _line(name: str, what: str, state: str, verdicts: list[Verdict]) -> str:
    def microseconds(times: Callable[[Verdict], dict[int, float]], rows: int) -> str:
        if not verdicts or not all(rows in times(verdict) for verdict in verdicts):
            return ""
        return f"{1e6 * sum(verdict.times * times(verdict)[rows] for verdict in verdicts):.0f}"

    cells = [name, what, state, "", ""]
    if verdicts and all(verdict.seconds for verdict in verdicts):
        cells[3] = f"{max(verdict.error for verdict in verdicts):.2f}"
        seconds = sum(verdict.times * verdict.seconds[1] for verdict in verdicts)
        cells[4] = f"{sum(verdict.times * verdict.nbytes for verdict in verdicts) / seconds / 1e9:.1f}"
    cells += [microseconds(lambda verdict: verdict.seconds, rows) for rows in ROWS]
    cells += [microseconds(lambda verdict: verdict.gemm_seconds, rows) for rows in GEMM_ROWS]
    return "| " + " | ".join(cells) + " |"
