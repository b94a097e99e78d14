"""Conversion against merely reading, and against the straightforward way: time and memory in one run.

    python -m benchmarks.synthetic_checkpoint --size 4b --output DIR
    python -m benchmarks.bench_convert --checkpoint DIR [--config DIR.json] [--rounds 3] [--only convert,read]
    python -m benchmarks.bench_convert --load REPO       # memory while a repo is loaded, and what stays of it

Each contender is a process of its own, one after the other, in every round; the table gives the fastest round (the
others are the machine's noise) and the highest peak memory. Files come from the page cache if they fit.

* `read`: the least that any conversion must do. tensorstore reads every leaf, one after the other, and drops it; of a
  GGUF file or a folder of them, every byte is read.
* `convert`: `convert_flax.py`, from start to published repo, fsync and SHA-256 of every file included.
* `verify`: `convert_flax.py verify` of that repo against its source.
* `generate`: transformers loads that repo and generates 32 tokens after a prompt of 64.
* `straightforward`: restore all with Orbax, absmax/7 for every group, pack, save: no proof, no other candidates. It
  wants 1.6 times the memory of the float32 weights, and is what the system kills where that is too much.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks.memory import read_into_page_cache

# What each imports before its clock starts.
CONTENDERS = {
    "read": ("tensorstore",),
    "convert": ("convert_flax",),
    "verify": ("convert_flax",),
    "generate": ("torch", "transformers.models.gemma3.modeling_gemma3"),
    "straightforward": ("orbax.checkpoint", "ml_dtypes", "safetensors.numpy", "conversion.sizes"),
}
OF_THE_REPO = ("verify", "generate")  # these take what `convert` has written


def read(checkpoint: Path) -> None:
    if files := _gguf_files(checkpoint):
        for file in files:
            read_into_page_cache(str(file))
        return
    import tensorstore as ts

    for spec in _specs(checkpoint):
        ts.open(spec, open=True, read=True).result()[...].read().result()


def _gguf_files(checkpoint: Path) -> list[Path]:
    return [checkpoint] if checkpoint.suffix == ".gguf" else sorted(checkpoint.glob("*.gguf"))


def _specs(checkpoint: Path) -> list[dict]:
    """tensorstore specs of every leaf of an OCDBT checkpoint of zarr 2 arrays."""
    import tensorstore as ts

    base = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{checkpoint.absolute()}/"}}
    keys = ts.KvStore.open(base).result().list().result()
    names = [key.decode().removesuffix(".zarray") for key in keys if key.endswith(b"/.zarray")]
    return [{"driver": "zarr", "kvstore": base | {"path": name}, "fill_missing_data_reads": False} for name in names]


def convert(checkpoint: Path, config: Path | None, output: Path) -> None:
    import convert_flax

    words = ["--checkpoint", str(checkpoint), "--output", str(output)] + (["--config", str(config)] if config else [])
    if convert_flax.main(words):
        raise SystemExit("convert_flax.py failed")


def verify(checkpoint: Path, output: Path) -> None:
    import convert_flax

    if convert_flax.main(["verify", str(output), "--checkpoint", str(checkpoint)]):
        raise SystemExit("convert_flax.py verify failed")


def generate(output: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(output, trust_remote_code=True)
    prompt = torch.arange(1000, 1064).unsqueeze(0)
    ids = model.generate(prompt, max_new_tokens=32, min_new_tokens=32, do_sample=False)
    if ids.shape != (1, 96):
        raise SystemExit(f"expected 32 new tokens, there are {ids.shape[1] - 64}")


def straightforward(checkpoint: Path, config: Path | None, output: Path) -> None:
    """What a script of one page does: everything in memory, one array operation after the other."""
    import ml_dtypes
    import numpy as np
    import orbax.checkpoint as ocp
    from safetensors.numpy import save_file

    from conversion.leaf_rules import EMBEDDING_LEAF
    from conversion.name_map import match_leaves
    from conversion.sizes import published_config, read_config, recognize

    tree = ocp.PyTreeCheckpointer().restore(checkpoint.absolute())
    leaves = {f"{module}/{name}": np.asarray(value) for module, inner in tree.items() for name, value in inner.items()}
    shapes = {name: leaf.shape for name, leaf in leaves.items()}
    model = read_config(config) if config else published_config(recognize(shapes), "it")
    tensors = {}
    for entry in match_leaves(shapes, model)[0]:
        for name, weight in zip(entry.tensors, entry.rule.axes.to_tensors(leaves[entry.leaf]), strict=True):
            if not entry.int4 or entry.leaf == EMBEDDING_LEAF:
                tensors[name] = np.ascontiguousarray(weight).astype(ml_dtypes.bfloat16)
                continue
            groups = weight.reshape(weight.shape[0], -1, 32)
            scales = np.abs(groups).max(axis=2) / np.float32(7)
            codes = np.rint(groups / scales[..., None]).astype(np.int32) + 8
            words = codes.reshape(weight.shape).T.reshape(weight.shape[1], -1, 8)
            packed = sum(words[..., source] << (4 * place) for place, source in enumerate((0, 2, 4, 6, 1, 3, 5, 7)))
            stem = name.removesuffix("weight")
            tensors[f"{stem}qweight"] = packed
            tensors[f"{stem}qzeros"] = np.full((weight.shape[1] // 32, packed.shape[1]), -0x77777778, np.int32)
            tensors[f"{stem}scales"] = np.ascontiguousarray(scales.T).astype(ml_dtypes.bfloat16)
    output.mkdir()
    save_file(tensors, output / "model.safetensors")


def load(repo: Path) -> None:
    """Prints the memory of this process before a repo is loaded, at most meanwhile, and after. Linux only.

    RssAnon is what must be there; RssFile are pages of mapped files, which the system takes back when it wants to.
    """
    import torch  # noqa: F401  (so that its own memory is there from the start)
    from transformers import AutoModelForCausalLM

    before, peak, done = _memory(), _memory(), threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            for name, size in _memory().items():
                peak[name] = max(peak[name], size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    try:
        model = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True)
    finally:
        done.set()
        watcher.join()
    stays = _memory()
    print(f"{repo}: {model.int4_backend}, loaded in {time.monotonic() - started:.0f} s\n")
    print("| GB | before | at most | stays |")
    print("|---|---|---|---|")
    for name in before:
        print(f"| {name} | {before[name] / 1e9:.2f} | {peak[name] / 1e9:.2f} | {stays[name] / 1e9:.2f} |")


def _memory() -> dict[str, int]:
    """Bytes of this process: RssAnon, RssFile, and VmHWM, the highest sum of the two so far."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    values = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[-1] == "kB"}
    return {name: values[name] for name in ("RssAnon", "RssFile", "VmHWM")}


def run_alone(contender: str, arguments: argparse.Namespace) -> dict | None:
    """Runs one contender in a process of its own: its seconds, CPU seconds and peak bytes; None if it was killed."""
    command = [sys.executable, "-m", "benchmarks.bench_convert", "--inside", contender]
    command += ["--checkpoint", str(arguments.checkpoint), "--output", str(arguments.output)]
    command += ["--config", str(arguments.config)] if arguments.config else []
    started = time.monotonic()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == -signal.SIGKILL:
        return None
    if result.returncode:
        raise SystemExit(f"{contender} failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1]) | {"process": time.monotonic() - started}


def run_inside(contender: str, arguments: argparse.Namespace) -> None:
    """The measured process."""
    if (score := Path("/proc/self/oom_score_adj")).exists():
        score.write_text("1000")  # out of memory, this process goes first
    for module in CONTENDERS[contender]:
        importlib.import_module(module)
    started, cpu = time.monotonic(), time.process_time()
    match contender:
        case "read":
            read(arguments.checkpoint)
        case "convert":
            convert(arguments.checkpoint, arguments.config, arguments.output)
        case "verify":
            verify(arguments.checkpoint, arguments.output)
        case "generate":
            generate(arguments.output)
        case "straightforward":
            straightforward(arguments.checkpoint, arguments.config, arguments.output)
    seconds, cpu = time.monotonic() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--checkpoint", type=Path)
    wanted.add_argument("--load", type=Path, metavar="REPO", help="only measure the memory of loading this repo")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--output", type=Path, default=Path("bench-output"), help="written and removed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(CONTENDERS))
    parser.add_argument("--inside", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.load)
        return
    if arguments.inside:
        run_inside(arguments.inside, arguments)
        return
    chosen = [name for name in CONTENDERS if name in arguments.only.split(",")]
    runs: dict[str, list[dict | None]] = {name: [] for name in chosen}
    for _ in range(arguments.rounds):
        for name in chosen:
            if None in runs[name]:
                continue
            if name not in OF_THE_REPO:
                shutil.rmtree(arguments.output, ignore_errors=True)
            runs[name].append(run_alone(name, arguments))
    shutil.rmtree(arguments.output, ignore_errors=True)
    size, kind = _size(arguments.checkpoint)
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{arguments.checkpoint.name}: {size / 1e9:.2f} GB of {kind}, {machine}\n")
    print("| | seconds | with imports | MB/s | CPU seconds | peak memory | time / read |")
    print("|---|---|---|---|---|---|---|")
    base = min(run["seconds"] for run in runs["read"]) if "read" in runs else float("nan")
    for name in chosen:
        if None in runs[name]:
            print(f"| {name} | killed, out of memory | | | | | |")
            continue
        best = min(runs[name], key=lambda run: run["seconds"])
        peak = max(run["peak"] for run in runs[name])
        rate, ratio = f"{size / best['seconds'] / 1e6:.0f}", f"{best['seconds'] / base:.2f}"
        if name == "generate":  # it does not read the source
            rate = ratio = ""
        print(
            f"| {name} | {best['seconds']:.1f} | {best['process']:.1f} | {rate} | {best['cpu']:.1f} "
            f"| {peak / 1e9:.2f} GB | {ratio} |"
        )


def _size(checkpoint: Path) -> tuple[int, str]:
    """Bytes of a source, and what they are; the float32 of a Flax checkpoint, which is stored compressed."""
    if files := _gguf_files(checkpoint):
        return sum(file.stat().st_size for file in files), "GGUF"
    from conversion.source.flax_checkpoint import FlaxCheckpoint

    return FlaxCheckpoint(checkpoint).nbytes, "float32"


if __name__ == "__main__":
    main()
