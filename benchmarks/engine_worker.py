"""One engine in a process of its own, for bench_generate: it loads a model, then runs prompts that come on stdin.

    python -m benchmarks.engine_worker ENGINE PATH --threads N --batch N --context N

Each class imports what it needs when it starts and no more, since peers live in other environments.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from benchmarks.memory import memory, read_into_page_cache, touch_memory

LLAMA_BATCH = 2048  # tokens that llama.cpp takes in a call, its own default


class Transformers:
    """Ours and stock transformers."""

    def __init__(self, engine: str, repo: str, threads: int, batch: int, context: int):
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

    def __init__(self, engine: str, file: str, threads: int, batch: int, context: int):
        import llama_cpp

        self.llama = llama_cpp
        self.touch_gb_s = touch_memory(file)
        self.baseline = memory()
        start = time.perf_counter()
        self.model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        options = llama_cpp.llama_context_default_params()
        options.n_ctx, options.n_seq_max, options.n_batch = context * batch, batch, LLAMA_BATCH
        options.n_threads = options.n_threads_batch = threads
        options.flash_attn_type = int(engine == "llama-fa")
        self.context = llama_cpp.llama_init_from_model(self.model, options)
        self.load_s = time.perf_counter() - start
        self.sampler = llama_cpp.llama_sampler_init_greedy()
        self.tokens = llama_cpp.llama_batch_init(LLAMA_BATCH, 0, 1)
        self.length = context
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
        if len(prompts[0]) + new > self.length:
            raise ValueError(f"llama.cpp holds {self.length} tokens here, prompt and answer")
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)
        times, following = [time.perf_counter()], []
        for sequence, prompt in enumerate(prompts):
            last = len(prompt) - 1
            tokens = [(token, i, sequence, i == last) for i, token in enumerate(prompt)]
            for start in range(0, len(tokens), LLAMA_BATCH):
                following += self.decode(tokens[start : start + LLAMA_BATCH])
        times.append(time.perf_counter())
        for position in range(len(prompts[0]), len(prompts[0]) + new):
            following = self.decode([(token, position, sequence, True) for sequence, token in enumerate(following)])
        times.append(time.perf_counter())
        return [times[1] - times[0], (times[2] - times[1]) / new]


def work(engine: str, path: str, threads: int, batch: int, context: int) -> None:
    """Answers lines of JSON (prompts, number of new tokens) on stdin with lines of JSON on stdout."""
    answers, sys.stdout = sys.stdout, sys.stderr
    read_into_page_cache(path)
    worker = (LlamaCpp if engine.startswith("llama") else Transformers)(engine, path, threads, batch, context)
    print(json.dumps(worker.facts()), file=answers, flush=True)
    for line in sys.stdin:
        prefill, decode = worker.run(*json.loads(line))
        after = worker.facts()
        changed = {key: after[key] for key in ("peak_mb", "weights_mb")}  # gptqmodel repacks in the first call
        print(json.dumps([prefill, decode, changed]), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("engine")
    parser.add_argument("path")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens of a sequence, at most")
    args = parser.parse_args()
    work(args.engine, args.path, args.threads, args.batch, args.context)


if __name__ == "__main__":
    main()
