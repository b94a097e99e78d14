"""What a hostile request costs the chat's server: how long others wait, and how much memory it takes.

    python -m benchmarks.bench_requests [--model FOLDER]

The server is a process of its own on 127.0.0.1. While each request is answered, small ones (`/info`) are sent one after
the other. Printed are the answer's status, the longest of their waits, and how much the server's memory (VmHWM) grew.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT), help="folder or Hub id; default: the checkpoint at the root")
    arguments = parser.parse_args()
    command = [sys.executable, "app.py", "--model", arguments.model]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = re.search(r"http://\S+", server.stdout.readline())[0]
            measure_all(url, server.pid)
        finally:
            server.terminate()


def measure_all(url: str, pid: int) -> None:
    import httpx

    while not httpx.get(f"{url}info").json()["ready"]:
        time.sleep(0.1)
    info = httpx.get(f"{url}info").json()

    def join(text: str) -> int:
        message = {"role": "user", "content": [{"type": "text", "text": text}]}
        sampling = {**info["defaults"], "max_new_tokens": 1}
        data = {"data": [{"messages": [message], "sampling": sampling}], "fn_index": info["answer_fn"]}
        body = json.dumps({**data, "session_hash": "bench"})
        headers = {"content-type": "application/json"}
        status = httpx.post(f"{url}gradio_api/queue/join", content=body, headers=headers, timeout=300).status_code
        if status == 200:
            with httpx.stream("GET", f"{url}gradio_api/queue/data?session_hash=bench", timeout=300) as stream:
                print(re.findall(r'"message":"([^"]*)"', stream.read().decode())[-1:], end=" ")
        return status

    def post(path: str, body: bytes) -> int:
        headers = {"content-type": "application/json"}
        return httpx.post(f"{url}{path}", content=body, headers=headers, timeout=300).status_code

    numbers = b'{"data": [' + b"1," * (30 * 2**20) + b"1]}"
    nested = b'{"data": [' + b"[]," * 80_000 + b"1]}"
    report("60 MB of JSON numbers", lambda: [post("gradio_api/queue/join", numbers)], url, pid)
    report("240 kB of JSON, 80,000 lists", lambda: [post("gradio_api/queue/join", nested)], url, pid)
    report("a text just over the limit", lambda: [join("x" * (info["limits"]["text_characters"] + 1))], url, pid)
    report("a text just under it", lambda: [join("x" * info["limits"]["text_characters"])], url, pid)
    files = eight_pictures()
    report("eight PNGs of 7000x7000 at once", lambda: at_once(post, files), url, pid)
    report("the same again", lambda: at_once(post, files), url, pid)


def eight_pictures() -> list[bytes]:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGBA", (7000, 7000), (255, 0, 0, 128)).save(file, "PNG", compress_level=1)
    return [file.getvalue() + bytes([number]) for number in range(8)]  # what follows a PNG's end is no part of it


def at_once(post: Callable[[str, bytes], int], files: list[bytes]) -> list[int]:
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda file=file: statuses.append(post("pictures", file))) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def report(name: str, ask: Callable[[], list[int]], url: str, pid: int) -> None:
    import httpx

    waits: list[float] = []
    over = threading.Event()

    def watch() -> None:
        with httpx.Client() as http:
            while not over.is_set():
                started = time.perf_counter()
                http.get(f"{url}info")
                waits.append(time.perf_counter() - started)

    before = most_memory(pid)
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    statuses = ask()
    seconds = time.perf_counter() - started
    over.set()
    watcher.join()
    shown = ", ".join(map(str, sorted(set(statuses))))
    print(
        f"{name}: {shown} after {seconds:.2f} s; others waited {max(waits) * 1e3:.0f} ms at most; "
        f"{most_memory(pid) - before:+.0f} MB",
        flush=True,
    )


def most_memory(pid: int) -> float:
    """The most that a process has had in memory so far, MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1e3


if __name__ == "__main__":
    main()
