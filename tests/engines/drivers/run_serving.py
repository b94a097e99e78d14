"""Driver: `transformers serve` on a repo, asked by OpenAI's client.

    python run_serving.py REPO JOB RESULT [options of transformers serve]

JOB is JSON: chats by name, as OpenAI's API takes them. RESULT is JSON: the answer to each; `streamed`, the pieces of
the first one's answer; `together`, the answers to all of them asked at once; `refused`, of each request that fails
upstream the class of the client's error; `log`, what the server wrote.
"""

import json
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai

START = 300  # seconds
LENGTH = 40  # tokens


def main() -> None:
    repo, job, result, *options = sys.argv[1:]
    chats = json.loads(Path(job).read_text())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", repo, "--trust-remote-code", "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port), *options]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=START, max_retries=0)
            wait(client, server, log)
            found = ask(client, repo, chats)
        finally:
            server.terminate()
            server.wait()
        log.seek(0)
        Path(result).write_text(json.dumps(found | {"log": log.read()}))


def wait(client: openai.OpenAI, server: subprocess.Popen, log) -> None:
    """Until the server answers."""
    end = time.monotonic() + START
    while time.monotonic() < end and server.poll() is None:
        try:
            client.get("/../health", cast_to=object)
        except openai.APIConnectionError:
            time.sleep(0.5)
        else:
            return
    log.seek(0)
    sys.exit(f"the server does not answer: {log.read()[-3000:]}")


def ask(client: openai.OpenAI, repo: str, chats: dict[str, list[dict]]) -> dict:
    def complete(messages: list[dict], **more):
        return client.chat.completions.create(model=repo, messages=messages, max_tokens=LENGTH, temperature=0, **more)

    def answer(messages: list[dict], **more) -> str:
        return complete(messages, **more).choices[0].message.content

    first = next(iter(chats.values()))
    found = {"answers": {name: answer(messages) for name, messages in chats.items()}}
    pieces = [chunk.choices[0].delta.content for chunk in complete(first, stream=True) if chunk.choices]
    found["streamed"] = [piece for piece in pieces if piece]
    with ThreadPoolExecutor(len(chats)) as pool:
        found["together"] = dict(zip(chats, pool.map(answer, chats.values()), strict=True))
    found["refused"] = {
        "stop": error_of(lambda: answer(first, stop=["."])),
        "two user turns in a row": error_of(lambda: answer(first + first)),
    }
    return found


def error_of(request) -> str:
    """The class of what a request fails with, empty if it is answered."""
    try:
        request()
    except openai.OpenAIError as error:
        return type(error).__name__
    return ""


if __name__ == "__main__":
    main()
