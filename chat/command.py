"""The command line: checks what can be checked at once, then imports torch, loads and serves."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import webbrowser
from typing import TYPE_CHECKING, NoReturn

from chat.errors import ModelError
from chat.repo import Repo, check_repo, default_model, find_repo

if TYPE_CHECKING:
    import gradio as gr

IN_A_SPACE = "SPACE_ID" in os.environ


def main() -> None:
    """Runs `python app.py`. Exit code 2 after an error that the user can do something about, 130 if interrupted."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    arguments = _parse()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        check_address(arguments.host, arguments.port)
        repo = _find(arguments.model)
        _serve(repo, arguments.host, arguments.port, arguments.memory)
    except (ModelError, OSError) as error:
        print(f"app.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="app.py", description="Chat with a Gemma 3 INT4 checkpoint in the browser.")
    parser.add_argument("--model", help="folder or Hub id; default: $MODEL_ID, else the checkpoint beside this file")
    parser.add_argument(
        "--host", default=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), help="address to listen on"
    )
    parser.add_argument(
        "--port",
        type=int,
        default=os.environ.get("GRADIO_SERVER_PORT"),
        help="default: $GRADIO_SERVER_PORT, else the first free one from 7860 up",
    )
    parser.add_argument(
        "--memory",
        type=_bytes,
        metavar="GB",
        default=os.environ.get("CHAT_MEMORY"),
        help="what may be kept of chats, so that a question waits only for what is new in it; 0 keeps nothing; "
        "default: $CHAT_MEMORY, else a quarter of what is free once the model is loaded, at most 8",
    )
    return parser.parse_args()


def _bytes(gigabytes: str) -> int:
    """What --memory or $CHAT_MEMORY says."""
    try:
        return int(float(gigabytes) * 1e9) if float(gigabytes) >= 0 else int("below zero")
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{gigabytes!r} is no number of gigabytes, 0 or more") from None


def check_address(host: str, port: int | None) -> None:
    """Checks that the address can be listened on.

    Raises:
        OSError: It cannot, and why.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port or 0), family=family).close()
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).split(" (while")[0]
        other = (
            "Leave --port away for the first free port from 7860 up." if port else "Is --host one of this machine's?"
        )
        raise OSError(f"{host}{f':{port}' if port else ''} cannot be listened on ({reason}). {other}") from None


def _find(model_id: str | None) -> Repo:
    """The repository, checked. In a Space the page shall say what is wrong with it: visitors see no terminal."""
    repo = find_repo(model_id or default_model())
    if not IN_A_SPACE:
        check_repo(repo)
    return repo


def _serve(repo: Repo, host: str, port: int | None, memory: int | None) -> None:
    """Serves until interrupted."""
    from chat.engine import Engine  # brings torch: seconds, which neither `--help` nor a wrong --model shall take
    from chat.server import open_page

    engine = Engine(repo, memory)
    engine.start_loading()
    page = open_page(engine, host=host, port=port)
    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, lambda *_: _close_and_stop(page))
    kind = "text and pictures" if engine.sees else "text only, no pictures"
    _announce(f"{repo.name} ({kind}): {page.local_url}   Ctrl-C stops it")
    if has_browser():
        webbrowser.open(page.local_url)
    page.block_thread()


def _announce(line: str) -> None:
    """Prints a line above the bar of what is being loaded."""
    from tqdm import tqdm

    tqdm.write(line)
    sys.stdout.flush()


def has_browser() -> bool:
    """Whether the user sits at this machine's own screen."""
    if not sys.stdout.isatty() or any(map(os.environ.get, ("CI", "SPACE_ID", "SSH_CONNECTION", "SSH_TTY"))):
        return False
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def stop(*_: object) -> NoReturn:
    """Ends the process on Ctrl-C, at once: a library that is being imported may swallow KeyboardInterrupt, and the
    thread that loads the model would be waited for."""
    os.write(2, b"\nStopped.\n")
    os._exit(130)


def _close_and_stop(page: gr.Blocks) -> NoReturn:
    signal.signal(signal.SIGINT, stop)
    page.close(verbose=False)  # which removes the uploads
    stop()
