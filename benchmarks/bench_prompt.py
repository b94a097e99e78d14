"""One long prompt, with pictures or without: seconds, memory above weights and cache, and the vision tower's rate.

    python -m benchmarks.bench_prompt --model REPO --tokens 32768 --pictures 2
    python -m benchmarks.bench_prompt --model REPO --tower

Tokens and pixels are random. Memory is private memory (Linux), looked at every 20 ms: the most while the prompt is
read, less what the loaded model took and less the bytes of the cache at the end. The tower's rate counts the products
of its linear layers and of its attention; beside it stands the rate of a float32 GEMM.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from pathlib import Path

from benchmarks.memory import memory

PICTURE_AT = 1000  # tokens before the first picture, and between two


def load(path: Path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    sees = hasattr(AutoConfig.from_pretrained(path), "vision_config")
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return auto.from_pretrained(path, trust_remote_code=True, dtype=torch.bfloat16).eval()


def prompt_of(config, tokens: int, pictures: int) -> dict:
    """A prompt of so many tokens in all, as `generate` takes it."""
    import torch

    ids = torch.randint(100, 1500, (1, tokens))
    if not pictures:
        return {"input_ids": ids}
    kinds = torch.zeros_like(ids)
    for n in range(pictures):
        start = PICTURE_AT * (n + 1) + config.mm_tokens_per_image * n
        ids[0, start : start + config.mm_tokens_per_image] = config.image_token_id
        kinds[0, start : start + config.mm_tokens_per_image] = 1
    side = config.vision_config.image_size
    pixels = torch.rand(pictures, 3, side, side) * 2 - 1
    return {"input_ids": ids, "token_type_ids": kinds, "pixel_values": pixels}


class Watch:
    """The most private memory while it is open, MB."""

    def __enter__(self) -> Watch:
        self.most, self._done = memory()["rss_anon"], threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, memory()["rss_anon"])

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()


def read_prompt(model, tokens: int, pictures: int) -> None:
    prompt = prompt_of(model.config, tokens, pictures)
    stays = memory()["rss_anon"]
    start, cpu = time.perf_counter(), time.process_time()
    with Watch() as watch:
        options = {"max_new_tokens": 1, "do_sample": False, "return_dict_in_generate": True}
        cache = model.generate(**prompt, **options).past_key_values
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    held = sum(t.untyped_storage().nbytes() for layer in cache.layers for t in (layer.keys, layer.values)) / 1e6
    print(
        f"{tokens} tokens, {pictures} pictures: {seconds:.1f} s, {cpu:.1f} of processor time, "
        f"{cpu / tokens * 1e3:.3f} ms of it a token; weights and all else {stays:.0f} MB, cache {held:.0f} MB, "
        f"above both {watch.most - stays - held:.0f} MB"
    )


def tower_rate(model, rounds: int = 2) -> None:
    import torch

    config = model.config.vision_config
    patches, width = (config.image_size // config.patch_size) ** 2, config.hidden_size
    linear = 2 * patches * (4 * width**2 + 2 * width * config.intermediate_size)
    work = config.num_hidden_layers * (linear + 4 * patches**2 * width)
    pixels = prompt_of(model.config, 2 * PICTURE_AT, 1)["pixel_values"].bfloat16()
    matrix = torch.randn(3072, 3072)
    gemm, tower = [], []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for run, times in ((lambda: matrix @ matrix, gemm), (lambda: model.get_image_features(pixels), tower)):
                start = time.perf_counter()
                run()
                times.append(time.perf_counter() - start)
    peak, rate = 2 * 3072**3 / min(gemm) / 1e9, work / min(tower) / 1e9
    print(
        f"tower: {min(tower):.1f} s a picture, {rate:.0f} GFLOP/s; float32 GEMM {peak:.0f} GFLOP/s; "
        f"{100 * rate / peak:.0f} %"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="*", default=[])
    parser.add_argument("--pictures", type=int, default=0)
    parser.add_argument("--tower", action="store_true", help="the tower's rate")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()

    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = load(options.model)
    if options.tower:
        tower_rate(model)
    for tokens in options.tokens:
        read_prompt(model, tokens, options.pictures)


if __name__ == "__main__":
    main()
