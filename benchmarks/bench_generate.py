"""Prefill and decode: ours against llama.cpp and stock transformers, on the same shapes, in one run.

    python -m benchmarks.bench_generate --models 270m 1b 4b --llama-python LLAMA_VENV/bin/python

Models are text-only repos with random codes in the published shapes (speed does not depend on the values); the GGUF
file is exported from the same repo, so that llama.cpp multiplies by the very same codes, the embedding in Q4_0 too.
`--repo` takes a real repo instead. Each engine runs in a process of its own that stays alive; in every round each of
them, one after the other, reads a prompt of 512 tokens and generates 128 more, greedily. The table gives the medians
over the rounds. llama-cpp-python lives in another environment (`--llama-python`), built for the
machine with CMAKE_ARGS="-DGGML_NATIVE=ON".

Engines: `native` (our kernels), `aten` (PyTorch's int4 operator), `compiled` (native, static cache, torch.compile),
`llama` (llama.cpp Q4_0), `llama-fa` (with flash attention), `bf16` (stock transformers), `gptqmodel` (its AWQ kernel).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENGINES = ("native", "aten", "compiled", "llama", "llama-fa", "bf16", "gptqmodel")


# ---- Workers: each imports what it needs and no more, since peers live in other environments ----


def memory() -> dict[str, float]:
    """Private memory now and the peak of all, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    private = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return {"rss_anon": private / 1e3, "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self):
        self.times = []

    def put(self, tokens) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Transformers:
    """Ours and stock transformers."""

    def __init__(self, engine: str, repo: str, threads: int):
        import torch
        import transformers
        from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self.baseline = memory()
        start = time.perf_counter()
        if engine == "bf16":
            with torch.device("meta"):
                self.model = Gemma3ForCausalLM(Gemma3TextConfig.from_pretrained(repo)).bfloat16()
            self.model.to_empty(device="cpu").eval()
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.fill_(0.01)
            rotary = self.model.model.rotary_emb
            rotary.__init__(self.model.config)
        else:
            trust = {} if engine == "gptqmodel" else {"trust_remote_code": True}
            self.model = AutoModelForCausalLM.from_pretrained(repo, dtype=torch.bfloat16, **trust)
        self.load_s = time.perf_counter() - start
        self.options = {"do_sample": False, "eos_token_id": None}
        if engine == "compiled":
            from transformers.generation import CompileConfig

            compiling = CompileConfig(fullgraph=True)
            compiling._compile_all_devices = True
            self.options |= {"cache_implementation": "static", "compile_config": compiling}

    def facts(self) -> dict:
        after = memory()
        bytes_ = getattr(self.model, "int4_bytes", None) or sum(p.nbytes for p in self.model.parameters())
        return {
            "load_s": self.load_s,
            "weights_mb": bytes_ / 1e6,
            "loaded_mb": after["rss_anon"] - self.baseline["rss_anon"],
            "peak_mb": after["peak_rss"],
            "backend": getattr(self.model, "int4_backend", "dense"),
        }

    def run(self, prompt: list[int], new: int) -> list[float]:
        import torch

        clock = Clock()
        ids = torch.tensor([prompt])
        clock.put(None)
        self.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new + 1, streamer=clock, **self.options
        )
        start, _, *tokens = clock.times  # the streamer gets the prompt first
        return [tokens[0] - start, (tokens[-1] - tokens[0]) / new]


class LlamaCpp:
    """llama.cpp by its C interface: nothing between two tokens but its own greedy sampler."""

    def __init__(self, engine: str, file: str, threads: int):
        import llama_cpp

        self.llama_cpp = llama_cpp
        self.baseline = memory()
        start = time.perf_counter()
        self.model = llama_cpp.Llama(
            file, n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False, flash_attn=engine == "llama-fa"
        )
        self.load_s = time.perf_counter() - start
        self.sampler = llama_cpp.llama_sampler_init_greedy()
        self.bytes = os.path.getsize(file)

    def facts(self) -> dict:
        after = memory()
        return {
            "load_s": self.load_s,
            "weights_mb": self.bytes / 1e6,
            "loaded_mb": after["rss_anon"] - self.baseline["rss_anon"],
            "peak_mb": after["peak_rss"],
            "backend": "llama.cpp",
        }

    def run(self, prompt: list[int], new: int) -> list[float]:
        context = self.model.ctx
        self.model.reset()
        self.llama_cpp.llama_memory_clear(self.llama_cpp.llama_get_memory(context), True)
        times = [time.perf_counter()]
        self.model.eval(prompt)
        for _ in range(new + 1):
            token = self.llama_cpp.llama_sampler_sample(self.sampler, context, -1)
            times.append(time.perf_counter())
            if len(times) < new + 2:
                self.model.eval([token])
        return [times[1] - times[0], (times[-1] - times[1]) / new]


def into_page_cache(path: Path) -> None:
    """Read the weights once, so that loading measures the loader and not the disk."""
    for file in [path] if path.is_file() else path.glob("*.safetensors"):
        with file.open("rb") as open_file:
            while open_file.read(1 << 24):
                pass


def work(engine: str, path: str, threads: int) -> None:
    """Answer lines of JSON (prompt, number of new tokens) on stdin with lines of JSON on stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr
    into_page_cache(Path(path))
    worker = (LlamaCpp if engine.startswith("llama") else Transformers)(engine, path, threads)
    print(json.dumps(worker.facts()), file=answers, flush=True)
    for line in sys.stdin:
        prompt, new = json.loads(line)
        print(json.dumps([*worker.run(prompt, new), memory()["peak_rss"]]), file=answers, flush=True)


# ---- The run ----


class Peer:
    """One engine in its process."""

    def __init__(self, engine: str, path: Path, python: str, threads: int):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        if engine in ("native", "aten", "compiled"):
            environment["GEMMA3_INT4_BACKEND"] = "aten-cpu" if engine == "aten" else "native-cpu"
        command = [python, "-m", "benchmarks.bench_generate", "--work", engine, str(path), "--threads", str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.engine = engine
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        self.facts = self._answer()
        self.prefill, self.decode = [], []

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.engine}: the worker ended with status {self.process.wait()}")
        return json.loads(line)

    def run(self, prompt: list[int], new: int, keep: bool) -> None:
        self.process.stdin.write(json.dumps([prompt, new]) + "\n")
        self.process.stdin.flush()
        prefill, decode, self.facts["peak_mb"] = self._answer()
        if keep:
            self.prefill.append(len(prompt) / prefill)
            self.decode.append(1 / decode)
        else:
            self.facts["first_call_s"] = prefill + decode * new

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def machine() -> dict[str, float]:
    """What this machine can do: GB/s of reading, GFLOP/s of bfloat16 GEMM. Best of several."""
    import torch

    from benchmarks.bench_kernels import best_seconds, read_bandwidth

    a = torch.randn(512, 4096).bfloat16()
    b = torch.randn(4096, 4096).bfloat16()
    return {"read_gb_s": read_bandwidth(), "gemm_gflop_s": 2 * 512 * 4096**2 / best_seconds(lambda: a @ b) / 1e9}


def linear_weights(repo: Path) -> int:
    """Number of weights of the linear layers, without the embedding."""
    from transformers import Gemma3TextConfig

    c = Gemma3TextConfig.from_pretrained(repo)
    attention = c.hidden_size * c.head_dim * 2 * (c.num_attention_heads + c.num_key_value_heads)
    return c.num_hidden_layers * (attention + 3 * c.hidden_size * c.intermediate_size)


def bench(name: str, repo: Path, gguf: Path, args) -> list[dict]:
    import torch

    paths = {"llama": gguf, "llama-fa": gguf}
    peers = []
    for engine in args.engines:
        python = args.llama_python if engine in paths else sys.executable
        peers.append(Peer(engine, paths.get(engine, repo), python, args.threads))
    generator = torch.Generator().manual_seed(0)
    for number in range(-1, args.rounds):  # round -1 warms up, and compiles
        for peer in peers:
            prompt = torch.randint(1000, 200_000, (args.prompt,), generator=generator).tolist()
            peer.run(prompt, args.new, keep=number >= 0)
    limits = machine()
    linear = linear_weights(repo)
    rows = []
    for peer in peers:
        peer.close()
        prefill, decode = statistics.median(peer.prefill), statistics.median(peer.decode)
        row = {"model": name, "engine": peer.engine, "prefill": prefill, "decode": decode, **peer.facts, **limits}
        row["gb_s"] = peer.facts["weights_mb"] / 1e3 * decode
        row["gflop_s"] = 2 * linear * prefill / 1e9
        row["decode_runs"], row["prefill_runs"] = peer.decode, peer.prefill
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown, with the ratios to the better of llama.cpp's rows."""
    titles = ["model", "engine", "prefill tok/s", "decode tok/s", "GFLOP/s", "GB/s", "load s", "loaded MB", "peak MB"]
    titles += ["first call s", "prefill / llama", "decode / llama"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        llama = [r for r in rows if r["model"] == row["model"] and r["engine"].startswith("llama")]
        best = {key: max((r[key] for r in llama), default=float("nan")) for key in ("prefill", "decode")}
        cells = [row["model"], row["engine"], f"{row['prefill']:.0f}", f"{row['decode']:.1f}", f"{row['gflop_s']:.0f}"]
        cells += [f"{row['gb_s']:.1f}", f"{row['load_s']:.1f}", f"{row['loaded_mb']:.0f}", f"{row['peak_mb']:.0f}"]
        cells += [f"{row['first_call_s']:.1f}", *(f"{row[key] / best[key]:.2f}" for key in ("prefill", "decode"))]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=[], choices=["270m", "1b", "4b", "12b", "27b"])
    parser.add_argument("--layers", type=int, help="only so many layers, for shapes that do not fit")
    parser.add_argument("--repo", type=Path, help="a real text-only repo, with --gguf FILE exported from it")
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--engines", nargs="+", default=["native", "llama"], choices=ENGINES)
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "gemma3-int4" / "benchmarks")
    parser.add_argument("--json", type=Path, help="also write all the numbers to this file")
    parser.add_argument("--work", nargs=2, metavar=("ENGINE", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(*args.work, args.threads)
        return
    from benchmarks.random_repo import random_repo

    rows = []
    for name in args.models:
        repo, gguf = random_repo(name, args.cache, args.layers)
        rows += bench(name, repo, gguf, args)
    if args.repo:
        rows += bench(args.repo.name, args.repo, args.gguf, args)
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads")
    print("read {read_gb_s:.1f} GB/s, bfloat16 GEMM {gemm_gflop_s:.0f} GFLOP/s\n".format(**rows[-1]))
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
