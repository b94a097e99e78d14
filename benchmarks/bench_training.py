"""LoRA training on a CPU: this repo's int4 layers, bitsandbytes' 4-bit ones and bfloat16, on the same shapes.

    pip install peft bitsandbytes
    python -m benchmarks.bench_training --size 1b --layers 6 --tokens 64 --steps 2

Rank 16 on every linear layer of a text-only model with random weights (speed does not depend on the values), AdamW, one
sequence a step. Each contender is a process of its own, one after the other, in every round; the table gives processor
time of the fastest round's median step, all threads together, and the highest memory.

* `int4`: our model as it loads, its embedding in int4 too.
* `bitsandbytes`: transformers' own class with 4-bit NF4 layers that compute in bfloat16; its embedding is bfloat16.
* `bfloat16`: transformers' own class, nothing quantized.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.choices import NAMES
from benchmarks.memory import memory, read_into_page_cache, touch_memory

CACHE = Path.home() / ".cache" / "gemma3-int4" / "benchmarks"
CONTENDERS = ("int4", "bitsandbytes", "bfloat16")


def plain_repo(int4: Path) -> Path:
    """A repo of the same shapes in bfloat16, beside the int4 one; made on the first call."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder = int4.with_name(f"{int4.name}-bfloat16")
    if not (folder / "config.json").exists():
        config = Gemma3TextConfig.from_pretrained(int4)
        del config.quantization_config
        torch.set_default_dtype(torch.bfloat16)
        Gemma3ForCausalLM(config).save_pretrained(folder)
        torch.set_default_dtype(torch.float32)
    return folder


def load(contender: str, repo: str):
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    options = {"dtype": torch.bfloat16}
    if contender == "int4":
        options["trust_remote_code"] = True
    if contender == "bitsandbytes":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        options["device_map"] = "cpu"
    return AutoModelForCausalLM.from_pretrained(repo, **options)


def measure(contender: str, repo: str, tokens: int, steps: int, threads: int) -> dict:
    """Loads and trains in this process; seconds of processor time, MB of private memory beyond the imports."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    read_into_page_cache(repo)
    touch_memory(repo)
    before = memory()["rss_anon"]
    model = load(contender, repo)
    loaded = memory()["rss_anon"] - before
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(1000, 100_000, (1, tokens))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here (proc(5))
    times, losses = [], []
    for _ in range(1 + steps):
        start = time.process_time()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.process_time() - start)
        losses.append(loss.item())
    peak = memory()["peak_rss"]
    return {"loaded": loaded, "peak": peak, "step": statistics.median(times[1:]), "losses": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=str.lower, choices=NAMES, default="1b")
    parser.add_argument("--layers", type=int, help="the first layers of that size alone")
    parser.add_argument("--tokens", type=int, default=512, help="in a step")
    parser.add_argument("--steps", type=int, default=5, help="after one that warms up")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=CONTENDERS)
    parser.add_argument("--repo", help=argparse.SUPPRESS)  # in a contender's process
    options = parser.parse_args()
    if options.repo:
        print(json.dumps(measure(options.only[0], options.repo, options.tokens, options.steps, options.threads)))
        return

    from benchmarks.random_repo import random_repo

    int4 = random_repo(options.size, CACHE, options.layers)
    found = {contender: [] for contender in options.only}
    for _ in range(options.rounds):
        for contender in options.only:
            repo = int4 if contender == "int4" else plain_repo(int4)
            command = [sys.executable, "-m", "benchmarks.bench_training", "--repo", str(repo), "--only", contender]
            for name in ("tokens", "steps", "threads"):
                command += [f"--{name}", str(getattr(options, name))]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{contender} failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            else:
                found[contender].append(json.loads(done.stdout.splitlines()[-1]))
    print(
        f"{options.size}, {options.layers or 'all'} layers, {options.tokens} tokens a step, {options.threads} threads\n"
    )
    print("| | processor time of a step, s | loaded, MB | at most, imports too, MB |\n|---|---|---|---|")
    for contender, rounds in found.items():
        if rounds:
            step, loaded, peak = (
                pick(r[key] for r in rounds) for pick, key in ((min, "step"), (max, "loaded"), (max, "peak"))
            )
            print(f"| {contender} | {step:.2f} | {loaded:.0f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
