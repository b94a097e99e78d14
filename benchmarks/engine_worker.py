"""One engine in a process of its own, for bench_generate: it loads a model, then runs prompts that come on stdin.

    python -m benchmarks.engine_worker ENGINE PATH --threads N --batch N --context N

Each class imports what it needs when it starts and no more, since peers live in other environments.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time

from benchmarks.memory import memory, read_into_page_cache, touch_memory

LLAMA_BATCH = 2048  # tokens that llama.cpp takes in a call, its own default
TOWER_FILE = "mmproj-F16.gguf"  # beside the model's
SIDE = 896  # of a picture in pixels, as Gemma 3 takes it


class Transformers:
    """Ours and stock transformers."""

    def __init__(self, engine: str, repo: str, threads: int, batch: int, context: int):
        import torch
        import transformers
        from transformers import (
            AutoConfig,
            AutoModelForCausalLM,
            AutoModelForImageTextToText,
            Gemma3ForCausalLM,
            Gemma3ForConditionalGeneration,
        )

        torch.set_num_threads(threads)
        transformers.utils.logging.disable_progress_bar()
        self.touch_gb_s = touch_memory(repo)
        config = AutoConfig.from_pretrained(repo)
        self.sees = hasattr(config, "vision_config")
        self.baseline = memory()
        start = time.perf_counter()
        if engine == "bf16":
            stock = Gemma3ForConditionalGeneration if self.sees else Gemma3ForCausalLM
            with torch.device("meta"):
                self.model = stock(config).bfloat16()
            self.model.to_empty(device="cpu").eval().tie_weights()
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.fill_(0.01)
            rotary = self.model.get_decoder().rotary_emb
            rotary.__init__(config.get_text_config())
            self.load_s = None  # nothing was read
        else:
            options = {"device_map": "cpu"} if engine == "gptqmodel" else {"trust_remote_code": True}
            auto = AutoModelForImageTextToText if self.sees else AutoModelForCausalLM
            self.model = auto.from_pretrained(repo, dtype=torch.bfloat16, **options)
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
            "sees": self.sees,
        }

    def see(self, before: list[int], after: list[int]) -> float:
        import torch

        config = self.model.config
        ids = torch.tensor([[*before, *[config.image_token_id] * config.mm_tokens_per_image, *after]])
        side = config.vision_config.image_size
        start = time.perf_counter()
        self.model.generate(
            ids,
            pixel_values=torch.rand(1, 3, side, side) * 2 - 1,
            token_type_ids=(ids == config.image_token_id).long(),
            attention_mask=torch.ones_like(ids),
            max_new_tokens=1,
            do_sample=False,
        )
        return time.perf_counter() - start

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
        tower = os.path.join(os.path.dirname(file), TOWER_FILE)
        self.eyes = self._eyes(tower, threads) if os.path.exists(tower) else None

    def facts(self) -> dict:
        after = memory()
        return {
            "load_s": self.load_s,
            "touch_gb_s": self.touch_gb_s,
            "weights_mb": self.bytes / 1e6,
            "loaded_mb": after["rss_anon"] - self.baseline["rss_anon"],
            "peak_mb": after["peak_rss"],
            "backend": "llama.cpp",
            "sees": self.eyes is not None,
        }

    def _eyes(self, tower: str, threads: int):
        import llama_cpp.mtmd_cpp as mtmd

        self.mtmd = mtmd
        options = mtmd.mtmd_context_params_default()
        options.use_gpu, options.n_threads = False, threads
        eyes = mtmd.mtmd_init_from_file(tower.encode(), self.model, options)
        if not eyes:
            raise RuntimeError(f"llama.cpp does not read {tower}")
        return eyes

    def see(self, before: list[int], after: list[int]) -> float:
        mtmd, marker, text = self.mtmd, self.mtmd.mtmd_default_marker(), self.mtmd.mtmd_input_text()
        pixels = os.urandom(SIDE * SIDE * 3)
        start = time.perf_counter()
        self.llama.llama_memory_clear(self.llama.llama_get_memory(self.context), True)
        self.decode([(token, i, 0, False) for i, token in enumerate(before)])
        bitmap = mtmd.mtmd_bitmap_init(SIDE, SIDE, (ctypes.c_uint8 * len(pixels)).from_buffer_copy(pixels))
        text.text, text.text_len, text.add_special, text.parse_special = marker, len(marker), False, True
        chunks, end = mtmd.mtmd_input_chunks_init(), self.llama.llama_pos(len(before))
        bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        if status := mtmd.mtmd_tokenize(self.eyes, chunks, ctypes.byref(text), bitmaps, 1):
            raise RuntimeError(f"mtmd_tokenize gave {status}")
        for n in range(mtmd.mtmd_input_chunks_size(chunks)):
            chunk = mtmd.mtmd_input_chunks_get(chunks, n)
            if mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE:
                place = (chunk, end.value, 0, LLAMA_BATCH, False, ctypes.byref(end))
                if status := mtmd.mtmd_helper_eval_chunk_single(self.eyes, self.context, *place):
                    raise RuntimeError(f"mtmd_helper_eval_chunk_single gave {status}")
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)
        last = end.value + len(after) - 1
        self.decode([(token, i, 0, i == last) for i, token in enumerate(after, end.value)])
        return time.perf_counter() - start

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
    """Answers lines of JSON on stdin, what `run` or `see` takes, with lines on stdout: what it gives, and new facts."""
    answers, sys.stdout = sys.stdout, sys.stderr
    read_into_page_cache(path)
    worker = (LlamaCpp if engine.startswith("llama") else Transformers)(engine, path, threads, batch, context)
    print(json.dumps(worker.facts()), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        times = worker.run(**asked) if "prompts" in asked else [worker.see(**asked)]
        after = worker.facts()
        changed = {key: after[key] for key in ("peak_mb", "weights_mb")}  # gptqmodel repacks in the first call
        print(json.dumps([*times, changed]), file=answers, flush=True)


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
