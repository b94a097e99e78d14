"""Prefill and decode: ours against llama.cpp, stock transformers and gptqmodel, on the same shapes, in one run.

    python -m benchmarks.bench_generate --models 270m 1b 4b 27b --engines native llama bf16 --out FILE.jsonl
    python -m benchmarks.bench_generate --models 1b --engines native llama-fa --prompt 4096 16384 --new 16 --rounds 1
    python -m benchmarks.bench_generate --models 27b --whole --engines native llama-fa --prompt 128 512 --new 16
    python -m benchmarks.plot FILE.jsonl PICTURE.png [--lengths]

Models are text-only repos with random codes in the published shapes (speed does not depend on the values); the GGUF
file is exported from the same repo, so that llama.cpp multiplies by the very same codes, the embedding in Q4_0 too.
Of the two large sizes only the first layers are taken (`LAYERS`, or `--layers`), for every engine alike, and the table
says so. `--whole` takes all of them, and the vision tower where the published model has one: then there is a question
about a picture too, and the time to the first token of its answer. `real270m` is the real model that `make real270m`
has left in the cache.

Each engine runs in a process of its own that stays alive; in every round each of them, one after the other, reads a
prompt of 512 tokens (`--prompt` names other lengths, each a row) and generates 128 more, greedily; with `--batch`,
several prompts at once, and tokens/s count those of all. Engines whose weights do not fit into memory together do all
their rounds one after the other, and the table says so. A first call, with `--warm-up` tokens at most, warms up. The
table gives the medians over the rounds. An engine that fails has a row that says why. Before an engine loads, the
weights are read into the page cache, and as much memory as they take is touched and given back: where a host lends a
virtual machine its memory page by page, the first touch is slower than any loader.

Engines: `native` (our kernels), `aten` (PyTorch's int4 operator), `compiled` (native, static cache, torch.compile),
`llama` (llama.cpp Q4_0), `llama-fa` (with flash attention), `bf16` (stock transformers), `gptqmodel` (stock
transformers with gptqmodel's AWQ kernel and a plain embedding). llama-cpp-python and gptqmodel live in environments of
their own, by default those of tests/engines.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.comparison import ENGINES, machine_line, table
from benchmarks.memory import available_memory, weight_files

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path.home() / ".cache" / "gemma3-int4"
REAL = "real270m"
REAL_REPO = CACHE / "real270m" / "bfloat16"  # where `make real270m` leaves it
DEFAULT_PROMPT = 512
PICTURE_PROMPT = 16 + 256 + 16  # text, soft tokens, text
LAYERS = {"12b": 8, "27b": 4}  # so that all engines together stay within 20 GB of memory


class Failed(Exception):
    """An engine cannot run here; the message says why."""


class Peer:
    """One engine in its process.

    Raises:
        Failed: from every method, when the process has ended or cannot be started.
    """

    def __init__(self, engine: str, path: Path, python: Path, threads: int, batch: int, context: int):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        if engine in ("native", "aten", "compiled"):
            environment["GEMMA3_INT4_BACKEND"] = "aten-cpu" if engine == "aten" else "native-cpu"
        command = [python, "-m", "benchmarks.engine_worker", engine, str(path)]
        command += ["--threads", str(threads), "--batch", str(batch), "--context", str(context)]
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (as long as the process)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log, "text": True}
        try:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        except OSError as error:
            raise Failed(f"{python} cannot be started ({error.strerror})") from error
        self.engine = engine
        self.facts = self._answer()
        self.prefill, self.decode, self.seeing = defaultdict(list), defaultdict(list), []

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.log.seek(0)
            said = self.log.read()
            print(said, file=sys.stderr)
            raise Failed(signal.strsignal(-status) if status < 0 else said.strip().splitlines()[-1])
        return json.loads(line)

    def _ask(self, **what):
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        *times, changed = self._answer()
        self.facts |= changed
        return times

    def warm_up(self, prompts: list[list[int]], new: int) -> None:
        first, each = self._ask(prompts=prompts, new=new)
        self.facts["first_call_s"] = first + each * new

    def run(self, prompts: list[list[int]], new: int) -> None:
        first, each = self._ask(prompts=prompts, new=new)
        length = len(prompts[0])
        self.prefill[length].append(len(prompts) * length / first)
        self.decode[length].append(len(prompts) / each)

    def see(self, before: list[int], after: list[int]) -> None:
        self.seeing += self._ask(before=before, after=after)

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def machine() -> dict[str, float | str]:
    """What this machine is and can do: GB/s of reading, GFLOP/s of GEMM. Best of several."""
    from benchmarks.machine import cpu_name, gemm_rate, read_bandwidth

    dtype, gflop_s = gemm_rate()
    return {"cpu": cpu_name(), "read_gb_s": read_bandwidth(), "gemm_dtype": dtype, "gemm_gflop_s": gflop_s}


def linear_weights(repo: Path) -> int:
    """Number of weights of the linear layers, without the embedding."""
    from transformers import AutoConfig

    from benchmarks.shapes import linear_shapes

    config = AutoConfig.from_pretrained(repo).get_text_config()
    return config.num_hidden_layers * sum(outputs * inputs for outputs, inputs in linear_shapes(config).values())


def model_files(name: str, args) -> tuple[str, Path, Path, Path]:
    """A model's name in the table; its repo, its GGUF file, and its repo with a plain embedding."""
    from benchmarks.random_repo import gguf_of, plain_twin, random_repo
    from benchmarks.shapes import config_of

    if name == REAL:
        repo = REAL_REPO
        if not (repo / "config.json").exists():
            sys.exit(f"{repo} is missing: run `make real270m` first")
        return "real 270M", repo, gguf_of(repo, args.cache / name), repo  # its embedding is plain
    layers = args.layers or (None if args.whole else LAYERS.get(name))
    tower = args.whole and hasattr(config_of(name), "vision_config")
    repo = random_repo(name, args.cache, layers, tower=tower)
    label = f"{name.upper()} shape" + f", only {layers} layers" * bool(layers) + ", with its tower" * tower
    needs_twin = "gptqmodel" in args.engines
    return label, repo, gguf_of(repo, repo), plain_twin(repo) if needs_twin else repo


def fit_together(paths: list[Path]) -> bool:
    """Whether so many weights, and a tenth more, fit into the memory that is free."""
    return 1.1 * sum(file.stat().st_size for path in paths for file in weight_files(str(path))) < available_memory()


def bench(name: str, args) -> list[dict]:
    """One row for each length of a prompt and each engine."""
    label, repo, gguf, plain = model_files(name, args)
    if args.batch > 1:
        label += f", batch {args.batch}"
    paths = {"llama": gguf, "llama-fa": gguf, "gptqmodel": plain}
    paths = {engine: paths.get(engine, repo) for engine in args.engines}
    conditions = {"run": time.time(), "load_average": os.getloadavg()[0], "threads": args.threads}
    by_turns = [paths]
    if not fit_together(list(paths.values())):
        label += ", one engine after the other"
        by_turns = [{engine: path} for engine, path in paths.items()]
    peers, failed = [], {}
    for some in by_turns:
        measure(some, args, peers, failed)
    conditions |= machine()
    linear, rows = linear_weights(repo), []
    for length in args.prompt:
        model = label if length == DEFAULT_PROMPT else f"{label}, prompt {length:,}"
        shared = {"model": model, "shape": label, "prompt": length, **conditions}
        found = [shared | {"engine": engine, "failed": why} for engine, why in failed.items()]
        for peer in peers:
            prefill, decode = statistics.median(peer.prefill[length]), statistics.median(peer.decode[length])
            row = shared | peer.facts | {"engine": peer.engine, "prefill": prefill, "decode": decode}
            row["gb_s"] = peer.facts["weights_mb"] / 1e3 * decode / args.batch
            row["gflop_s"] = 2 * linear * prefill / 1e9
            row["decode_runs"], row["prefill_runs"] = peer.decode[length], peer.prefill[length]
            if peer.seeing:
                row["picture_s"] = statistics.median(peer.seeing)
                row["pictures"] = 1 / row["picture_s"]
            found.append(row)
        rows += sorted(found, key=lambda row: args.engines.index(row["engine"]))
    return rows


def measure(paths: dict[str, Path], args, peers: list[Peer], failed: dict[str, str]) -> None:
    """Engines with the weights that they read, by turns; adds those that have measured, or why they have not."""
    import torch

    pythons = {"llama": args.llama_python, "llama-fa": args.llama_python, "gptqmodel": args.gptqmodel_python}
    running = []
    generator = torch.Generator().manual_seed(0)

    def tokens(sequences: int, length: int) -> list[list[int]]:
        return torch.randint(1000, 200_000, (sequences, length), generator=generator).tolist()

    def each(work) -> None:
        for peer in list(running):
            try:
                work(peer)
            except Failed as error:
                failed[peer.engine] = str(error)
                running.remove(peer)

    for engine, path in paths.items():
        try:
            python, context = pythons.get(engine, sys.executable), max(*args.prompt, PICTURE_PROMPT) + args.new + 1
            running.append(Peer(engine, path, python, args.threads, args.batch, context))
        except Failed as error:
            failed[engine] = str(error)
    prompts = tokens(args.batch, min(args.warm_up, max(args.prompt)))
    each(lambda peer: peer.warm_up(prompts, args.new))  # and compiles
    for length in args.prompt:
        for _ in range(args.rounds):
            prompts = tokens(args.batch, length)
            each(lambda peer: peer.run(prompts, args.new))  # noqa: B023 (called at once)
    if args.whole and all(peer.facts["sees"] for peer in running):
        for _ in range(args.rounds):
            before, after = tokens(2, 16)
            each(lambda peer: peer.see(before, after))  # noqa: B023 (called at once)
    for peer in running:
        peer.close()
    peers += running


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["270m"], choices=["270m", "1b", "4b", "12b", "27b", REAL])
    parser.add_argument("--layers", type=int, help="take only so many layers of every shape")
    parser.add_argument("--whole", action="store_true", help="take all layers of every size, and the vision tower")
    parser.add_argument("--engines", nargs="+", default=["native", "llama"], choices=ENGINES)
    parser.add_argument("--llama-python", default=CACHE / "engines" / "llama-cpp" / "bin" / "python")
    parser.add_argument("--gptqmodel-python", default=CACHE / "engines" / "gptqmodel" / "bin" / "python")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, nargs="+", default=[DEFAULT_PROMPT], help="tokens, of one row each")
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--warm-up", type=int, default=DEFAULT_PROMPT, help="tokens of the first call, at most")
    parser.add_argument("--batch", type=int, default=1, help="sequences at once, each of --prompt tokens")
    parser.add_argument("--cache", type=Path, default=CACHE / "benchmarks")
    parser.add_argument("--prepare", action="store_true", help="only write the models, and measure nothing")
    parser.add_argument("--out", type=Path, help="also append every row to this file, one JSON object a line")
    args = parser.parse_args()
    if args.prepare:
        for name in args.models:
            print(*model_files(name, args))
        return
    for name in args.models:
        rows = bench(name, args)
        print(machine_line(rows[0]), table(rows), sep="\n\n", end="\n\n", flush=True)
        if args.out:
            with args.out.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
