"""Prefill and decode: ours against llama.cpp, stock transformers and gptqmodel, on the same shapes, in one run.

    python -m benchmarks.bench_generate --models 270m 1b 4b 27b --engines native llama bf16 --out FILE.jsonl
    python -m benchmarks.plot FILE.jsonl PICTURE.png

Models are text-only repos with random codes in the published shapes (speed does not depend on the values); the GGUF
file is exported from the same repo, so that llama.cpp multiplies by the very same codes, the embedding in Q4_0 too.
Of the two large sizes only the first layers are taken (`LAYERS`, or `--layers`), for every engine alike, and the table
says so. `real270m` is the real model that `make real270m` has left in the cache.

Each engine runs in a process of its own that stays alive; in every round each of them, one after the other, reads a
prompt of 512 tokens and generates 128 more, greedily; with `--batch`, several prompts at once, and tokens/s count those
of all. The table gives the medians over the rounds. An engine that fails has a row that says why. Before an engine
loads, the weights are read into the page cache, and as much memory as they take is touched and given back: where a host
lends a virtual machine its memory page by page, the first touch is slower than any loader.

Engines: `native` (our kernels), `aten` (PyTorch's int4 operator), `compiled` (native, static cache, torch.compile),
`llama` (llama.cpp Q4_0), `llama-fa` (with flash attention), `bf16` (stock transformers), `gptqmodel` (stock
transformers with gptqmodel's AWQ kernel and a plain embedding). llama-cpp-python and gptqmodel live in environments of
their own, by default those of tests/engines.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path.home() / ".cache" / "gemma3-int4"
REAL = "real270m"
REAL_REPO = CACHE / "real270m" / "bfloat16"  # where `make real270m` leaves it
ENGINES = ("native", "aten", "compiled", "llama", "llama-fa", "bf16", "gptqmodel")
LLAMA_CONTEXT = 1024  # tokens of a sequence
LAYERS = {"12b": 8, "27b": 4}  # so that all engines together stay within 20 GB of memory


# ---- Workers: each imports what it needs and no more, since peers live in other environments ----


def memory() -> dict[str, float]:
    """Private memory now and the peak of all, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    private = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
    return {"rss_anon": private / 1e3, "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}


def weight_files(path: str) -> list[Path]:
    return [Path(path)] if Path(path).is_file() else list(Path(path).glob("*.safetensors"))


def read_into_page_cache(path: str) -> None:
    """So that loading measures the loader and not the disk."""
    for file in weight_files(path):
        with file.open("rb") as open_file:
            while open_file.read(1 << 24):
                pass


def fresh_memory(size: int) -> mmap.mmap:
    """So many bytes of private memory that nothing has touched yet, on pages of 2 MB where the system gives them."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def touch_memory(path: str) -> float:
    """Touch as much memory as the weights take on disk, and give it back; GB/s."""
    memory = fresh_memory(sum(file.stat().st_size for file in weight_files(path)))
    start = time.perf_counter()
    for place in range(0, len(memory), mmap.PAGESIZE):
        memory[place] = 1
    return len(memory) / (time.perf_counter() - start) / 1e9


class Transformers:
    """Ours and stock transformers."""

    def __init__(self, engine: str, repo: str, threads: int, batch: int):
        import torch
        import transformers
        from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self.touch_gb_s = touch_memory(repo)
        self.baseline = memory()
        start = time.perf_counter()
        if engine == "bf16":
            with torch.device("meta"):
                self.model = Gemma3ForCausalLM(Gemma3TextConfig.from_pretrained(repo)).bfloat16()
            self.model.to_empty(device="cpu").eval().tie_weights()
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.fill_(0.01)
            rotary = self.model.model.rotary_emb
            rotary.__init__(self.model.config)
            self.load_s = None  # nothing was read
        else:
            options = {"device_map": "cpu"} if engine == "gptqmodel" else {"trust_remote_code": True}
            self.model = AutoModelForCausalLM.from_pretrained(repo, dtype=torch.bfloat16, **options)
            self.load_s = time.perf_counter() - start
        self.options = {"do_sample": False, "eos_token_id": None}
        if engine == "compiled":
            from transformers.generation import CompileConfig

            compiling = CompileConfig(fullgraph=True)
            compiling._compile_all_devices = True
            self.options |= {"cache_implementation": "static", "compile_config": compiling}

    def facts(self) -> dict:
        after = memory()
        tensors = (*self.model.parameters(), *self.model.buffers())
        kernels = {type(module).__name__ for module in self.model.modules() if hasattr(module, "qweight")}
        return {
            "load_s": self.load_s,
            "touch_gb_s": self.touch_gb_s,
            "weights_mb": (getattr(self.model, "int4_bytes", None) or sum(t.nbytes for t in tensors)) / 1e6,
            "loaded_mb": after["rss_anon"] - self.baseline["rss_anon"],
            "peak_mb": after["peak_rss"],
            "backend": getattr(self.model, "int4_backend", ", ".join(sorted(kernels)) or "dense"),
        }

    def run(self, prompts: list[list[int]], new: int) -> list[float]:
        import torch
        from transformers import StoppingCriteriaList

        times = []

        def note(ids, scores, **kwargs):  # generate calls it after each token; a streamer would take no batch
            times.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

        ids = torch.tensor(prompts)
        start = time.perf_counter()
        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new + 1,
            stopping_criteria=StoppingCriteriaList([note]),
            **self.options,
        )
        return [times[0] - start, (times[-1] - times[0]) / new]


class LlamaCpp:
    """llama.cpp by its C interface: nothing between two tokens but its own greedy sampler."""

    def __init__(self, engine: str, file: str, threads: int, batch: int):
        import llama_cpp

        self.llama = llama_cpp
        self.touch_gb_s = touch_memory(file)
        self.baseline = memory()
        start = time.perf_counter()
        self.model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_seq_max = LLAMA_CONTEXT * batch, batch
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type = int(engine == "llama-fa")
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.load_s = time.perf_counter() - start
        self.sampler = llama_cpp.llama_sampler_init_greedy()
        self.tokens = llama_cpp.llama_batch_init(LLAMA_CONTEXT, 0, 1)
        self.bytes = os.path.getsize(file)

    def facts(self) -> dict:
        after = memory()
        return {
            "load_s": self.load_s,
            "touch_gb_s": self.touch_gb_s,
            "weights_mb": self.bytes / 1e6,
            "loaded_mb": after["rss_anon"] - self.baseline["rss_anon"],
            "peak_mb": after["peak_rss"],
            "backend": "llama.cpp",
        }

    def decode(self, tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        """(token, position, sequence, whether the next one is wanted) of each -> the next tokens that are wanted."""
        self.tokens.n_tokens = len(tokens)
        for i, (token, position, sequence, wanted) in enumerate(tokens):
            self.tokens.token[i], self.tokens.pos[i], self.tokens.logits[i] = token, position, wanted
            self.tokens.n_seq_id[i], self.tokens.seq_id[i][0] = 1, sequence
        if status := self.llama.llama_decode(self.context, self.tokens):
            raise RuntimeError(f"llama_decode gave {status}")
        wanted = [i for i, token in enumerate(tokens) if token[3]]
        return [self.llama.llama_sampler_sample(self.sampler, self.context, i) for i in wanted]

    def run(self, prompts: list[list[int]], new: int) -> list[float]:
        if len(prompts[0]) + new > LLAMA_CONTEXT:
            raise ValueError(f"llama.cpp has room for {LLAMA_CONTEXT} tokens here, prompt and answer")
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)
        times, following = [time.perf_counter()], []
        for sequence, prompt in enumerate(prompts):
            last = len(prompt) - 1
            following += self.decode([(token, i, sequence, i == last) for i, token in enumerate(prompt)])
        times.append(time.perf_counter())
        for position in range(len(prompts[0]), len(prompts[0]) + new):
            following = self.decode([(token, position, sequence, True) for sequence, token in enumerate(following)])
        times.append(time.perf_counter())
        return [times[1] - times[0], (times[2] - times[1]) / new]


def work(engine: str, path: str, threads: int, batch: int) -> None:
    """Answer lines of JSON (prompts, number of new tokens) on stdin with lines of JSON on stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr
    read_into_page_cache(path)
    worker = (LlamaCpp if engine.startswith("llama") else Transformers)(engine, path, threads, batch)
    print(json.dumps(worker.facts()), file=answers, flush=True)
    for line in sys.stdin:
        prefill, decode = worker.run(*json.loads(line))
        after = worker.facts()
        changed = {key: after[key] for key in ("peak_mb", "weights_mb")}  # gptqmodel repacks in the first call
        print(json.dumps([prefill, decode, changed]), file=answers, flush=True)


# ---- The run ----


class Failed(Exception):
    """An engine cannot run here; the message says why."""


class Peer:
    """One engine in its process.

    Raises:
        Failed: from every method, when the process has ended or cannot be started.
    """

    def __init__(self, engine: str, path: Path, python: Path, threads: int, batch: int):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        if engine in ("native", "aten", "compiled"):
            environment["GEMMA3_INT4_BACKEND"] = "aten-cpu" if engine == "aten" else "native-cpu"
        command = [python, "-m", "benchmarks.bench_generate", "--work", engine, str(path)]
        command += ["--threads", str(threads), "--batch", str(batch)]
        self.log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (as long as the process)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log, "text": True}
        try:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        except OSError as error:
            raise Failed(f"{python} cannot be started ({error.strerror})") from error
        self.engine = engine
        self.facts = self._answer()
        self.prefill, self.decode = [], []

    def _answer(self):
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.log.seek(0)
            said = self.log.read()
            print(said, file=sys.stderr)
            raise Failed(signal.strsignal(-status) if status < 0 else said.strip().splitlines()[-1])
        return json.loads(line)

    def run(self, prompts: list[list[int]], new: int, keep: bool) -> None:
        self.process.stdin.write(json.dumps([prompts, new]) + "\n")
        self.process.stdin.flush()
        prefill, decode, changed = self._answer()
        self.facts |= changed
        if keep:
            self.prefill.append(sum(map(len, prompts)) / prefill)
            self.decode.append(len(prompts) / decode)
        else:
            self.facts["first_call_s"] = prefill + decode * new

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def machine() -> dict[str, float | str]:
    """What this machine can do: GB/s of reading, GFLOP/s of GEMM. Best of several."""
    from benchmarks.bench_kernels import gemm_rate, read_bandwidth

    dtype, gflop_s = gemm_rate()
    return {"read_gb_s": read_bandwidth(), "gemm_dtype": dtype, "gemm_gflop_s": gflop_s}


def linear_weights(repo: Path) -> int:
    """Number of weights of the linear layers, without the embedding."""
    from transformers import Gemma3TextConfig

    c = Gemma3TextConfig.from_pretrained(repo)
    attention = c.hidden_size * c.head_dim * 2 * (c.num_attention_heads + c.num_key_value_heads)
    return c.num_hidden_layers * (attention + 3 * c.hidden_size * c.intermediate_size)


def model_files(name: str, args) -> tuple[str, Path, Path, Path]:
    """A model's name in the table; its repo, its GGUF file, and its repo with a plain embedding."""
    from benchmarks.random_repo import gguf_of, plain_twin, random_repo

    if name == REAL:
        repo = REAL_REPO
        if not (repo / "config.json").exists():
            sys.exit(f"{repo} is missing: run `make real270m` first")
        return "real 270M", repo, gguf_of(repo, args.cache / name), repo  # its embedding is plain
    layers = args.layers or LAYERS.get(name)
    repo = random_repo(name, args.cache, layers)
    label = f"{name.upper()} shape" + (f", only {layers} layers" if layers else "")
    needs_twin = "gptqmodel" in args.engines
    return label, repo, gguf_of(repo, repo), plain_twin(repo) if needs_twin else repo


def bench(name: str, args) -> list[dict]:
    """One row for each engine."""
    import torch

    label, repo, gguf, plain = model_files(name, args)
    if args.batch > 1:
        label += f", batch {args.batch}"
    load_average, started = os.getloadavg()[0], time.time()
    paths = {"llama": gguf, "llama-fa": gguf, "gptqmodel": plain}
    pythons = {"llama": args.llama_python, "llama-fa": args.llama_python, "gptqmodel": args.gptqmodel_python}
    peers, failed = [], {}
    for engine in args.engines:
        try:
            python = pythons.get(engine, sys.executable)
            peers.append(Peer(engine, paths.get(engine, repo), python, args.threads, args.batch))
        except Failed as error:
            failed[engine] = str(error)
    generator = torch.Generator().manual_seed(0)
    for number in range(-1, args.rounds):  # round -1 warms up, and compiles
        for peer in [peer for peer in peers if peer.engine not in failed]:
            prompts = torch.randint(1000, 200_000, (args.batch, args.prompt), generator=generator).tolist()
            try:
                peer.run(prompts, args.new, keep=number >= 0)
            except Failed as error:
                failed[peer.engine] = str(error)
    conditions = machine() | {"run": started, "load_average": load_average, "threads": args.threads}
    linear = linear_weights(repo)
    rows = [{"model": label, "engine": engine, "failed": why, **conditions} for engine, why in failed.items()]
    for peer in [peer for peer in peers if peer.engine not in failed]:
        peer.close()
        prefill, decode = statistics.median(peer.prefill), statistics.median(peer.decode)
        row = {"model": label, "engine": peer.engine, "prefill": prefill, "decode": decode, **peer.facts, **conditions}
        row["gb_s"] = peer.facts["weights_mb"] / 1e3 * decode / args.batch
        row["gflop_s"] = 2 * linear * prefill / 1e9
        row["decode_runs"], row["prefill_runs"] = peer.decode, peer.prefill
        rows.append(row)
    return sorted(rows, key=lambda row: args.engines.index(row["engine"]))


def machine_line(row: dict) -> str:
    """Where and under which conditions a row was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return (
        f"{cpu}, {row['threads']} threads: reads {row['read_gb_s']:.1f} GB/s, {row['gemm_dtype']} GEMM "
        f"{row['gemm_gflop_s']:.0f} GFLOP/s; load average before {row['load_average']:.1f}"
    )


def over_llama(row: dict, rows: list[dict], what: str) -> float | None:
    """How many times the speed of the better of llama.cpp's rows in the same run; None where there is none."""
    speeds = [r[what] for r in rows if r["run"] == row["run"] and r["engine"].startswith("llama") and what in r]
    return row[what] / max(speeds) if speeds and what in row else None


COLUMNS = {  # title -> (key, digits)
    "prefill tok/s": ("prefill", 0),
    "decode tok/s": ("decode", 1),
    "GFLOP/s": ("gflop_s", 0),
    "GB/s": ("gb_s", 1),
    "load s": ("load_s", 1),
    "loaded MB": ("loaded_mb", 0),
    "peak MB": ("peak_mb", 0),
    "first call s": ("first_call_s", 1),
    "prefill / llama": ("prefill_ratio", 2),
    "decode / llama": ("decode_ratio", 2),
}


def table(rows: list[dict]) -> str:
    """Markdown; an engine that failed has its reason in place of the first number."""
    lines = ["| " + " | ".join(["model", "engine", *COLUMNS]) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for row in rows:
        ratios = {f"{what}_ratio": over_llama(row, rows, what) for what in ("prefill", "decode")}
        found = [((row | ratios).get(key), digits) for key, digits in COLUMNS.values()]
        cells = ["-" if value is None else f"{value:.{digits}f}" for value, digits in found]
        if "failed" in row:
            cells[0] = f"failed: {row['failed']}"
        lines.append("| " + " | ".join([row["model"], row["engine"], *cells]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["270m"], choices=["270m", "1b", "4b", "12b", "27b", REAL])
    parser.add_argument("--layers", type=int, help="take only so many layers of every shape")
    parser.add_argument("--engines", nargs="+", default=["native", "llama"], choices=ENGINES)
    parser.add_argument("--llama-python", default=CACHE / "engines" / "llama-cpp" / "bin" / "python")
    parser.add_argument("--gptqmodel-python", default=CACHE / "engines" / "gptqmodel" / "bin" / "python")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1, help="sequences at once, each of --prompt tokens")
    parser.add_argument("--cache", type=Path, default=CACHE / "benchmarks")
    parser.add_argument("--prepare", action="store_true", help="only write the models, and measure nothing")
    parser.add_argument("--out", type=Path, help="also append every row to this file, one JSON object a line")
    parser.add_argument("--work", nargs=2, metavar=("ENGINE", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(*args.work, args.threads, args.batch)
        return
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
