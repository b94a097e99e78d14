"""What the page costs: time to its first token and tokens per second, beside a bare `generate` on the same prompt.

    python -m benchmarks.bench_app [--model FOLDER] [--tokens 512] [--rounds 5]

Bare and served runs alternate in one process; the client of the served runs is a process of its own, and there is no
browser. Printed are medians:

    first token   handler: from its entry to its first event with text; bare: encoding, and generate's first token
    tokens/s      after the first token, by the clock of the thread that generates

The bare runs have a streamer too, which does nothing but look at the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import time
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # at run time after the command line is read: with torch, they take seconds
    import torch

    from chat.engine import Answer, Engine
    from chat.question import Sampling

QUESTION = "What can you do? Tell me about it."
CLIENT = """
import sys
from gradio_client import Client
url, tokens, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
client = Client(url, verbose=False)
for _ in range(rounds):
    sys.stdin.readline()
    client.reset_session()
    job = client.submit({"text": %r, "files": []}, max_new_tokens=tokens, greedy=True, api_name="/chat")
    job.result()
    print(len(job.outputs()), flush=True)
"""


class Clock:
    """A streamer that notes when each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def tokens_per_second(times: list[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])


def bare(engine: Engine, history: list[dict], sampling: Sampling) -> tuple[float, float]:
    """Returns the seconds to the first token and the tokens per second of `generate` by itself."""
    from chat.prompt import encode_chat

    clock = Clock()
    started = time.perf_counter()
    inputs = encode_chat(engine.processor, history)
    engine.model.generate(
        **inputs, **sampling.generate_kwargs(), max_new_tokens=sampling.max_new_tokens, streamer=clock
    )
    return clock.times[1] - started, tokens_per_second(clock.times[1:])


def first_yield(engine: Engine, history: list[dict], sampling: Sampling) -> float:
    """Returns the seconds from the handler's entry to its first event that carries text, then stops it."""
    from types import SimpleNamespace

    from gradio.context import LocalContext

    from chat.answers import Answers

    async def run() -> float:
        LocalContext.blocks.set(SimpleNamespace(state_holder=SimpleNamespace(session_data={})))
        asked = {"messages": history, "sampling": vars(sampling)}
        started = time.perf_counter()
        events = Answers(engine).page_answer(asked, SimpleNamespace(session_hash=""))
        await anext(event async for event in events if event["type"] == "answer")
        seconds = time.perf_counter() - started
        await events.aclose()
        return seconds

    return asyncio.run(run())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id; default: the checkpoint at the root")
    parser.add_argument("--tokens", type=int, default=512, help="length of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    from chat.question import Sampling
    from chat.server import open_server

    engine = load(arguments.model)
    sampling = Sampling(arguments.tokens, 1.0, 1.0, 0, greedy=True)
    history = [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]

    answers: list[Answer] = []
    note_answers(engine, answers)
    page = open_server(engine)
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT % QUESTION, page.local_url, str(arguments.tokens), str(arguments.rounds + 1)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    rows: dict[str, list[float]] = {name: [] for name in ("bare first", "page first", "bare speed", "page speed")}
    updates: list[int] = []
    for round_ in range(arguments.rounds + 1):
        first, speed = bare(engine, history, sampling)
        handler = first_yield(engine, history, sampling)
        client.stdin.write("\n")
        client.stdin.flush()
        shown = int(client.stdout.readline())
        if round_ == 0:
            continue  # warm-up
        for name, value in zip(rows, (first, handler, speed, answers[-1].tokens_per_second), strict=True):
            rows[name].append(value)
        updates.append(shown)
    client.wait()
    page.close()
    report(engine, arguments, {name: median(values) for name, values in rows.items()}, median(updates))


def load(model_id: str | None) -> Engine:
    """Loads the model; every answer of it has the full length."""
    from chat.engine import Engine
    from chat.repo import default_model, find_repo

    engine = Engine(find_repo(model_id or default_model()), memory=0)  # else only the first round would read the prompt
    engine.start_loading()
    engine.loaded.wait()
    if engine.failure:
        sys.exit(engine.failure)
    engine.model.generation_config.eos_token_id = None
    return engine


def note_answers(engine: Engine, answers: list[Answer]) -> None:
    """Has every answer, as the engine makes it, appended to the list too."""
    collect = engine._collect

    def noted(*args: Any) -> Any:
        for answer in collect(*args):
            answers.append(answer)
            yield answer

    engine._collect = noted


def report(engine: Engine, arguments: argparse.Namespace, medians: dict[str, float], updates: float) -> None:
    import torch

    seconds = arguments.tokens / medians["page speed"]
    print(f"{engine.repo.name}: {engine.facts}")
    print(f"{torch.get_num_threads()} threads, medians of {arguments.rounds} rounds of {arguments.tokens} tokens")
    first = f"{medians['bare first'] * 1e3:.1f} ms bare, {medians['page first'] * 1e3:.1f} ms handler"
    print(f"first token   {first}: {(medians['page first'] - medians['bare first']) * 1e3:+.1f} ms (limit +50 ms)")
    speed = f"{medians['bare speed']:.1f} bare, {medians['page speed']:.1f} served"
    print(f"tokens/s      {speed}: {medians['page speed'] / medians['bare speed'] - 1:+.1%} (limit -5 %)")
    print(f"updates       {updates:.0f} in {seconds:.2f} s: {updates / seconds:.1f} a second (limit 20)")


if __name__ == "__main__":
    main()
