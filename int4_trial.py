# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""Backends tried in a process that may die of it: a kernel may throw, hang, or leave the device unusable.

What this file offers:
    try_in_children    every backend with every sample, each as far as it comes
    try_here           the same in this process
    child              what a child process does (`int4_prove.py` starts it)

What a child has said of a backend when it dies, or when `SECONDS` are over, stands; another child goes on with the
next backend.
"""

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .int4_backend import BACKENDS
from .int4_proof import Sample, Verdict, examine
from .int4_prove import SCRIPT

SECONDS = 120  # that one backend may take for all shapes of a model
START_SECONDS = 300  # until a child begins: it imports torch
MARK = "int4-proof "  # before each line that is for the parent


def try_here(samples: list[Sample], device: torch.device, dtype: torch.dtype) -> list[Verdict]:
    """All verdicts, in this process."""
    names = [backend.name for backend in BACKENDS]
    return [verdict for verdict, _ in _try_all(names, samples, device, dtype)]


def _try_all(
    names: list[str], samples: list[Sample], device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Verdict, bool]]:
    """Each backend with each sample, up to the first at which it is wrong or fails: verdict, and if it is its last."""
    for name in names:
        backend = next(backend for backend in BACKENDS if backend.name == name)
        for number, sample in enumerate(samples, 1):
            verdict = examine(backend, sample, device, dtype)
            over = verdict.state in ("wrong", "failed")
            yield verdict, over or number == len(samples)
            if over:
                break


def child(job: str) -> None:
    """What the child process does: tries what `job`, a file, says, and tells each verdict when it is there.

    It ends after a failure on a device, which may be in no state to go on.
    """
    with safe_open(job, framework="pt") as file:
        told = json.loads(file.metadata()["job"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    samples = [Sample(*shape, tensors[f"codes {i}"], tensors[f"scales {i}"]) for i, shape in enumerate(told["shapes"])]
    device, dtype = torch.device(told["device"]), getattr(torch, told["dtype"])
    print(f"{MARK}begin", flush=True)
    for verdict, last in _try_all(told["names"], samples, device, dtype):
        print(f"{MARK}{json.dumps([dataclasses.asdict(verdict), last])}", flush=True)
        if verdict.state == "failed":
            os._exit(0)


def try_in_children(samples: list[Sample], device: torch.device, dtype: torch.dtype) -> list[Verdict]:
    """All verdicts, however many processes that takes."""
    names, verdicts = [backend.name for backend in BACKENDS], []
    with tempfile.TemporaryDirectory(prefix="gemma3-int4-", ignore_cleanup_errors=True) as folder:
        while names:
            job = {"device": str(device), "dtype": str(dtype).removeprefix("torch."), "names": names}
            job["shapes"] = [(s.outputs, s.inputs, s.times) for s in samples]
            parts = {f"codes {i}": s.codes.contiguous() for i, s in enumerate(samples)}
            parts |= {f"scales {i}": s.scales.contiguous() for i, s in enumerate(samples)}
            path = Path(folder, "job.safetensors")
            save_file(parts, path, metadata={"job": json.dumps(job)})
            done, why = _one_child(path)
            if done is None:  # it never began
                return [*verdicts, *(_failed(name, samples[0], why) for name in names)]
            verdicts += [verdict for verdict, _ in done]
            names = names[sum(last for _, last in done) :]
            if why and names:
                since = next((i for i, (_, last) in enumerate(reversed(done)) if last), len(done))
                verdicts.append(_failed(names.pop(0), samples[since], why))
    return verdicts


def _failed(name: str, sample: Sample, why: str) -> Verdict:
    return Verdict(name, sample.outputs, sample.inputs, sample.times, "failed", why)


def _one_child(job: Path) -> tuple[list[tuple[Verdict, bool]] | None, str]:
    """What a child said before it ended, None where it never began; and why it ended, where it was not done."""
    done, why = None, ""
    log = job.with_suffix(".log")
    with log.open("w") as errors:
        try:
            process = subprocess.Popen(
                [sys.executable, SCRIPT, "--trial", str(job)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                text=True,
            )
        except OSError as error:
            return None, f"no process could be started to try it in: {error}"
        lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=_read_lines, args=(process.stdout, lines), daemon=True).start()
        limit, end = START_SECONDS, time.monotonic() + START_SECONDS
        try:
            while (line := lines.get(timeout=max(end - time.monotonic(), 0))) is not None:
                if line == "begin":
                    done = []
                else:
                    fields, last = json.loads(line)
                    done.append((Verdict.from_json(fields), last))
                if not done or done[-1][1]:  # another backend's time begins
                    limit, end = SECONDS, time.monotonic() + SECONDS
            why = _ending(process.wait(timeout=60))
            if not why and not done:
                why = "the process that tried it said nothing"
        except (queue.Empty, subprocess.TimeoutExpired):
            why = f"no answer within {limit} s"
        finally:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that hangs in the driver cannot be killed
                process.wait(timeout=10)
    if why and (said := log.read_text(errors="replace").strip()):
        why += f" ({said.splitlines()[-1][:200]})"
    return done, why


def _read_lines(stream, lines: queue.SimpleQueue) -> None:
    with stream:
        for line in stream:
            if line.startswith(MARK):
                lines.put(line.removeprefix(MARK).strip())
    lines.put(None)


def _ending(code: int) -> str:
    if code == 0:
        return ""
    if code > 0:
        return f"the process that tried it ended with {code}"
    with contextlib.suppress(ValueError):
        return f"the process that tried it died of {signal.Signals(-code).name}"
    return f"the process that tried it died of signal {-code}"
