# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""When, where and of what backends are proven: once for a repo on a kind of device, and kept on record.

What this file offers:
    settle_backends    proves, or finds on record, what a repo's matrices need on accelerators, and settles it
    prove              the proof for one device
    read_sources       the shapes of a repo, and where their codes are
    report             the proofs for devices, as text

The record is `$XDG_CACHE_HOME/gemma3-int4/proofs/KEY.json`, or that below `~/.cache`; the key is a hash of all that
could change it: device, driver, libraries, our files, the model's shapes.

The environment variable GEMMA3_INT4_PROOF, or the argument `int4_proof` of `from_pretrained`, is one or more of these
words, with commas: `skip`: nothing is proven, and accelerators get the reference; `again`: whatever is on record;
`here`: in this process. Where GEMMA3_INT4_BACKEND or `int4_backend` names a backend, nothing is proven either.
"""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import logging

from .int4_backend import BACKENDS, asked, needs_proof, settle
from .int4_codes import Reference, from_awq, recover_codes
from .int4_cpu_build import cache_folder
from .int4_cpu_hardware import cpu
from .int4_proof import PERIOD, Choice, Sample, Verdict, choose, table, with_gemm
from .int4_trial import try_here, try_in_children

logger = logging.get_logger(__name__)

WORDS = {"skip", "again", "here"}
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}  # of scales, as safetensors says it


@dataclasses.dataclass(frozen=True)
class Source:
    """A shape, how many matrices of a repo have it, and where the first of them is."""

    outputs: int
    inputs: int
    times: int
    scale_dtype: torch.dtype
    read: Callable[[], tuple[torch.Tensor, torch.Tensor]]  # codes and scales of its first rows

    def sample(self) -> Sample:
        return Sample(self.outputs, self.inputs, self.times, *self.read())


@dataclasses.dataclass(frozen=True)
class Proof:
    """What was found on one kind of device."""

    facts: dict[str, str]  # of the device, the libraries, our files and the model: the key
    verdicts: list[Verdict]
    seconds: float
    date: str

    @property
    def choices(self) -> dict[tuple[int, int], Choice]:
        return choose(self.verdicts)

    @property
    def names(self) -> list[str]:
        """What is used, the most used first."""
        used = [choice.backend for choice in self.choices.values()]
        return sorted(set(used), key=used.count, reverse=True)

    def text(self) -> str:
        told = {name: fact for name, fact in self.facts.items() if name not in ("shapes", "files")}
        facts = "".join(f"- {name}: {fact}\n" for name, fact in told.items())
        return f"{facts}- proven: {self.date}, in {self.seconds:.1f} s\n\n{table(self.verdicts, self.choices)}"


_PROOFS: dict[tuple[str, str], Proof] = {}  # device and dtype of the model -> what was found
_KNOWN: dict[str, Proof] = {}  # by key, what this process has found or read


def settle_backends(
    devices: Iterable[torch.device], dtype: torch.dtype, files: list[str], side_file: str | None, how: str | None
) -> None:
    """Settles what multiplies by the int4 matrices of a repo on these devices; CPUs need nothing.

    Args:
        devices: that the model is on, or moves to.
        dtype: of the model.
        files: of the repo that hold weights.
        side_file: with the scales of the embedding, where it is int4 and the files have it plain.
        how: what `int4_proof` said.

    Raises:
        ValueError: `how`, or the environment variable, is no such word.
    """
    words = _words(how)
    devices = sorted({device for device in devices if needs_proof(device)}, key=str)
    if not devices or asked() or dtype == torch.float16:
        return
    if "skip" in words or os.environ.get("SPACES_ZERO_GPU"):
        why = "the proof is skipped" if "skip" in words else "on ZeroGPU no GPU is there when a model is loaded"
        logger.warning_once(f"int4: {why}, so that the reference multiplies. GEMMA3_INT4_BACKEND names a backend.")
        return
    try:
        sources = read_sources(files, side_file)
    except (OSError, SafetensorError) as error:
        logger.warning(f"int4: without the repo's files nothing is proven, and the reference multiplies: {error}")
        return
    for device in devices:
        proof = prove(sources, device, dtype, words)
        _PROOFS[str(device), str(dtype)] = proof
        for shape, choice in proof.choices.items():
            backend = next(backend for backend in BACKENDS if backend.name == choice.backend)
            if choice.gemm_rows:
                backend = with_gemm(backend, shape[0], choice.gemm_rows)
            settle(device, dtype, *shape, backend)


def report(devices: Iterable[torch.device], dtype: torch.dtype) -> str:
    """The proofs for these devices, in Markdown."""
    texts = []
    for device in sorted(set(devices), key=str):
        proof = _PROOFS.get((str(device), str(dtype)))
        nothing = "chosen by rule, not by proof (int4_backend.py; int4_prove.py tries all)"
        texts.append(f"## int4 on {device}, {dtype}\n\n{proof.text() if proof else nothing}\n")
    return "\n".join(texts)


def prove(sources: list[Source], device: torch.device, dtype: torch.dtype, words: Iterable[str] = ()) -> Proof:
    """The proof for one device, on record or made now. Warns of what failed."""
    facts = _facts(sources, device, dtype)
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    known = None if "again" in words else _KNOWN.get(key) or _read(key, facts)
    if known is None:
        logger.warning(f"int4 on {facts['device']}: trying which kernels are right and fastest here, once ...")
        begun = time.monotonic()
        samples = [source.sample() for source in sources]
        run = try_here if "here" in words else try_in_children
        verdicts = run(samples, device, dtype)
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        known = Proof(facts, verdicts, time.monotonic() - begun, date)
        _write(key, known)
    _announce(known, new=key not in _KNOWN)
    _KNOWN[key] = known
    return known


def _announce(proof: Proof, new: bool) -> None:
    failed = {verdict.backend: verdict for verdict in proof.verdicts if verdict.state in ("wrong", "failed")}
    reasons = [
        f"{name} {'is wrong' if verdict.state == 'wrong' else 'fails'} at {verdict.outputs} x {verdict.inputs}: "
        f"{verdict.why}"
        for name, verdict in failed.items()
    ]
    line = f"int4 on {proof.facts['device']}: {', '.join(proof.names)}, tried in {proof.seconds:.1f} s; "
    line += "model.int4_report has the table"
    if reasons:
        line += f". {'; '.join(reasons)}. docs/devices.md says how to report it"
    if failed and proof.names == [Reference.name]:
        logger.warning_once(line)
    elif new:
        (logger.warning if failed else logger.info)(line)


def _words(how: str | None) -> set[str]:
    given = how or os.environ.get("GEMMA3_INT4_PROOF") or ""
    words = {word.strip() for word in given.split(",") if word.strip()}
    if words - WORDS:
        name = "int4_proof" if how else "GEMMA3_INT4_PROOF"
        raise ValueError(f"{name}={given}: expected one or more of {', '.join(sorted(WORDS))}, with commas.")
    return words


# What it is about


def read_sources(files: list[str], side_file: str | None) -> list[Source]:
    """Every shape of a repo's int4 matrices, from the headers of its files.

    Args:
        files: that hold weights, all of the repo.
        side_file: with the scales of the embedding, where it is int4 and the files have it plain.
    """
    stored = {}
    for path in files:
        file = safe_open(path, framework="pt")
        stored |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    found: dict[tuple, Source] = {}
    for name in sorted(stored):
        module, _, kind = name.rpartition(".")
        embedding = module.endswith("embed_tokens")
        if kind == "qweight":
            words, scales = stored[name], stored[f"{module}.scales"]
            rows, columns = words.get_shape()
            shape = (rows, columns * 8) if embedding else (columns * 8, rows)
            read = functools.partial(_of_embedding if embedding else _of_linear, words, scales)
        elif kind == "weight" and embedding and side_file:
            file = safe_open(side_file, framework="pt")
            (only,) = file.keys()
            scales = file.get_slice(only)
            shape = tuple(stored[name].get_shape())
            read = functools.partial(_of_plain, stored[name], scales)
        else:
            continue
        key = *shape, DTYPES[scales.get_dtype()]
        known = found.setdefault(key, Source(*shape, 0, DTYPES[scales.get_dtype()], read))
        found[key] = dataclasses.replace(known, times=known.times + 1)
    return list(found.values())


def _of_linear(words, scales) -> tuple[torch.Tensor, torch.Tensor]:
    return from_awq(words[:, : PERIOD // 8].contiguous(), scales[:, :PERIOD])


def _of_embedding(words, scales) -> tuple[torch.Tensor, torch.Tensor]:
    return words[:PERIOD].view(torch.uint8), scales[:PERIOD]


def _of_plain(weight, scales) -> tuple[torch.Tensor, torch.Tensor]:
    rows, scales = weight[:PERIOD], scales[:PERIOD]
    return recover_codes(rows, scales, rows.dtype), scales


def _facts(sources: list[Source], device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """All that could change a verdict."""
    files = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("int4_*.py")):
        files.update(path.read_bytes())
    shapes = [(source.outputs, source.inputs, source.times, str(source.scale_dtype)) for source in sources]
    name, details = _device_facts(device)
    triton = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        triton = importlib.metadata.version("triton")
    version = torch.version
    return {
        "device": name,
        "details": details,
        "model": f"{dtype}, {len(sources)} shapes",
        "torch": f"{torch.__version__} {version.git_version[:9]}, CUDA {version.cuda}, ROCm {version.hip}",
        "triton": f"{triton}{', interpreted' * (os.environ.get('TRITON_INTERPRET') == '1')}",
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "files": files.hexdigest(),
        "shapes": str(shapes),
    }


def _device_facts(device: torch.device) -> tuple[str, str]:
    """Name of a device; what else there is to know of it, its driver among that."""
    if device.type == "cpu":
        features = ", ".join(sorted(cpu().features & {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"}))
        return f"CPU {platform.machine()}", f"{features or 'no AVX2'}; {torch.get_num_threads()} threads"
    if device.type == "cuda":
        driver = "unknown"
        with contextlib.suppress(OSError):
            driver = re.search(r"\d+\.\d+\S*", Path("/proc/driver/nvidia/version").read_text()).group()
        own = torch.cuda.get_device_properties(device)  # its uuid and address are not of its kind
        what = f"{own.major}.{own.minor} {getattr(own, 'gcnArchName', '')}, {own.multi_processor_count} processors"
        return own.name, f"{what}, {own.total_memory >> 20} MB; driver {driver}"
    if device.type == "xpu":
        own = torch.xpu.get_device_properties(device)
        return own.name, f"{own.total_memory >> 20} MB; driver {own.driver_version}"
    return f"{device.type}, {platform.machine()}", platform.processor()


# The record


def _read(key: str, facts: dict[str, str]) -> Proof | None:
    """What is on record; None where that is nothing, or damaged."""
    try:
        kept = json.loads((cache_folder("proofs") / f"{key}.json").read_text())
        verdicts = [Verdict.from_json(fields) for fields in kept["verdicts"]]
        return Proof(facts, verdicts, float(kept["seconds"]), str(kept["date"])) if kept["facts"] == facts else None
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _write(key: str, proof: Proof) -> None:
    try:
        path = cache_folder("proofs") / f"{key}.json"
        descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=".")
        with open(descriptor, "w") as file:
            json.dump(dataclasses.asdict(proof), file, indent=1)
        os.replace(scratch, path)
    except (OSError, RuntimeError) as error:
        logger.warning(f"int4: the proof is made anew at every start, because it cannot be kept: {error}")
