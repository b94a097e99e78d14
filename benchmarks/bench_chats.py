"""Chats of many turns: seconds to each turn's first token, ours with and without memory, and llama.cpp's server.

    python -m benchmarks.bench_chats --model REPO --gguf FOLDER --turns 20 [--engines remembers forgets llama]

One chat, with a picture in the first turn and another in the third; then the last answer is retried, and the second
question edited. Each engine does it in a process of its own, one after the other: ours by the chat's engine, from the
question's arrival, llama.cpp's server over HTTP on this machine, its prompt cache on, as it is by default. Answers are
digits, of a fixed number: what comes back as text is then the same tokens in every engine. (With random weights and no
such rule it would not be, and all would read their own answers again.)

`alone` is a question by itself as long as what is new in the second turn, to the model of the first row: what cannot be
avoided. REPO and FOLDER are as convert_flax.py writes them, of synthetic_checkpoint's output too. llama.cpp's server is
that of xllamacpp, in an environment like those of tests/engines, by default.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = 8192  # tokens, of llama.cpp's server
QUESTION = "Number {}: what do you see, and what would you say about it to somebody who has never seen such a thing?"
LLAMA = """
import sys, time, xllamacpp
folder, port, context, threads = sys.argv[1], *map(int, sys.argv[2:])
import glob
parameters = xllamacpp.CommonParams()
parameters.model.path = glob.glob(f"{folder}/model-*.gguf")[0]
parameters.mmproj.path = glob.glob(f"{folder}/mmproj-*.gguf")[0]
parameters.hostnames, parameters.port, parameters.n_ctx, parameters.n_parallel = ["127.0.0.1"], port, context, 1
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
parameters.use_jinja = True
parameters.verbosity = 0
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def picture(folder: Path, number: int) -> Path:
    """A PNG of noise."""
    import numpy as np
    from PIL import Image

    path = folder / f"{number}.png"
    pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((896, 896)).save(path)
    return path


def script(turns: int, folder: Path) -> list[tuple[str, int, str, list[Path]]]:
    """What is asked: a name, how many turns of the chat stay, the question and its pictures."""
    asked = []
    for turn in range(turns):
        pictures = [picture(folder, turn)] if turn in (0, 2) else []
        asked.append((f"turn {turn + 1}", turn, QUESTION.format(turn + 1), pictures))
    _, stay, text, pictures = asked[-1]
    asked.append(("retry", stay, text, pictures))
    if turns > 1:
        asked.append(("edit of turn 2", 1, "Another question in its place: what is it made of?", []))
    return asked


class Ours:
    """The chat's engine."""

    def __init__(self, repo: str, memory: int | None, new: int) -> None:
        from chat.engine import Engine
        from chat.question import Sampling
        from chat.repo import find_repo

        self.engine = Engine(find_repo(repo), memory)
        self.engine.start_loading()
        self.engine.loaded.wait()
        if self.engine.failure:
            sys.exit(self.engine.failure)
        config = self.engine.model.generation_config
        config.eos_token_id = None
        digit = getattr(self.engine.processor, "tokenizer", self.engine.processor).convert_tokens_to_ids("1")
        config.sequence_bias = [[[digit], 1e4]]
        self.sampling = Sampling(new, 1.0, 1.0, 0, greedy=True)
        self.uploaded: dict[Path, str] = {}

    def ask(self, chat: list[tuple[str, list[Path], str]], text: str, pictures: list[Path]) -> dict:
        from chat.engine import Answer
        from chat.question import Question

        messages = []
        for question, files, answer in [*chat, (text, pictures, None)]:
            content = [{"type": "picture", "id": self._uploaded(path)} for path in files]
            messages.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
            if answer is not None:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})

        async def run() -> Answer:
            async for answer in self.engine.stream(Question(messages, "", self.sampling)):
                last = answer
            return last

        answer = asyncio.run(run())
        return {
            "seconds": answer.first_token_seconds,
            "tokens": answer.prompt_tokens,
            "remembered": answer.remembered_tokens,
            "text": answer.text,
            "kept_mb": self.engine.reader.memory.bytes / 1e6,
        }

    def _uploaded(self, path: Path) -> str:
        """A picture's id, as the page has it from its upload."""
        if path not in self.uploaded:
            self.uploaded[path] = self.engine.uploads.add(path.read_bytes())[0]
        return self.uploaded[path]


class Llama:
    """llama.cpp's server, in a process of its own."""

    def __init__(self, folder: str, python: str, threads: int, new: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [python, "-c", LLAMA, folder, str(port), str(CONTEXT), str(threads)]
        self.process = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            sys.exit(f"{python}: llama.cpp's server did not start")
        self.new = new
        self.digit = self._post("/tokenize", {"content": "1"})["tokens"][-1]

    def _post(self, path: str, body: dict) -> Any:
        with self._open(path, body) as response:
            return json.load(response)

    def _open(self, path: str, body: dict) -> Any:
        headers = {"Content-Type": "application/json"}
        return urllib.request.urlopen(urllib.request.Request(self.address + path, json.dumps(body).encode(), headers))

    def ask(self, chat: list[tuple[str, list[Path], str]], text: str, pictures: list[Path]) -> dict:
        messages = []
        for question, files, answer in [*chat, (text, pictures, None)]:
            urls = [f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}" for path in files]
            content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
            messages.append({"role": "user", "content": [*content, {"type": "text", "text": question}]})
            if answer is not None:
                messages.append({"role": "assistant", "content": answer})
        body = {
            "messages": messages,
            "stream": True,
            "max_tokens": self.new,
            "temperature": 0,
            "ignore_eos": True,
            "logit_bias": [[self.digit, 1e4]],
            "stream_options": {"include_usage": True},
        }
        first, answer, timings = None, "", {}
        started = time.perf_counter()
        with self._open("/v1/chat/completions", body) as response:
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                timings = event.get("timings") or timings
                for choice in event.get("choices", []):
                    if piece := choice["delta"].get("content"):
                        first = first or time.perf_counter() - started
                        answer += piece
        tokens = timings.get("cache_n", 0) + timings.get("prompt_n", 0)
        return {"seconds": first, "tokens": tokens, "remembered": timings.get("cache_n", 0), "text": answer}


def work(engine: str, arguments: argparse.Namespace) -> None:
    """Plays the chat with one engine, and prints a line of JSON for each question."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # where the chat looks for uploads
        if engine == "llama":
            player = Llama(arguments.gguf, llama_python(arguments.llama_python), arguments.threads, arguments.new)
            pid = player.process.pid
        else:
            import torch

            torch.set_num_threads(arguments.threads)
            player = Ours(arguments.model, 0 if engine == "forgets" else None, arguments.new)
            pid = os.getpid()
        chat: list[tuple[str, list[Path], str]] = []
        player.ask([], "Hello", [])  # to warm up
        for name, stay, text, pictures in script(arguments.turns, Path(folder)):
            del chat[stay:]
            found = player.ask(chat, text, pictures)
            chat.append((text, pictures, found.pop("text")))
            print(json.dumps({"engine": engine, "asked": name, **found, "rss_mb": private_memory(pid)}), flush=True)
            if name == "turn 2" and engine == "remembers":
                alone = player.ask([], alone_text(player, found), [])
                del alone["text"]
                print(json.dumps({"engine": "alone", "asked": name, **alone}), flush=True)


def alone_text(player: Ours, second: dict) -> str:
    """A question of as many tokens as the second turn read."""
    from chat.prompt import encode_chat

    wanted, digits = second["tokens"] - second["remembered"], "2"
    while True:
        history = [{"role": "user", "content": [{"type": "text", "text": digits}]}]
        tokens = encode_chat(player.engine.processor, history)["input_ids"].shape[1]
        if tokens >= wanted:
            return digits
        digits += "2" * (wanted - tokens)


def private_memory(pid: int) -> float:
    """RssAnon of a process, MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e3


def llama_python(given: str | None) -> str:
    if given:
        return given
    from tests.engines.helpers.environments import environment

    return str(environment("llama-server"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a converted repo that sees")
    parser.add_argument("--gguf", help="its GGUF files, model and mmproj")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--new", type=int, default=16, help="tokens of an answer")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--engines", nargs="+", choices=("remembers", "forgets", "llama"), default=["remembers"])
    parser.add_argument("--llama-python", help="a Python that has xllamacpp")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments)
        return
    for engine in arguments.engines:
        command = [sys.executable, "-m", "benchmarks.bench_chats", *sys.argv[1:], "--worker", engine]
        environment = os.environ | {"OMP_NUM_THREADS": str(arguments.threads)}
        with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as worker:
            for line in worker.stdout:
                print(line, end="", flush=True)


if __name__ == "__main__":
    main()
