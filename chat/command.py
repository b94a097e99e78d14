"""The command line: checks what can be checked at once, then imports torch, loads and serves."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from chat.errors import ModelError
from chat.repo import Repo, check_repo, default_model, find_repo

if TYPE_CHECKING:
    from chat.engine import Engine
    from chat.gate import Access

IN_A_SPACE = "SPACE_ID" in os.environ
EVERY_ADDRESS = ("0.0.0.0", "::")


def main() -> None:
    """Runs `python app.py`. Exit code 2 after an error that the user can do something about, 130 if interrupted."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, stop)
    arguments = _parse()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        check_address(arguments.host, arguments.port)
        _let_bars_end_with_the_process()
        repo = _find(arguments.model)
        _serve(repo, arguments)
    except (ModelError, OSError) as error:
        print(f"app.py: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="app.py",
        usage="%(prog)s [options]",  # the list of all takes as many lines as an error should
        description="Chat with a Gemma 3 INT4 checkpoint in the browser.",
    )
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
    parser.add_argument(
        "--auth",
        type=_password,
        metavar="USER:PASSWORD",
        default=os.environ.get("CHAT_AUTH"),
        help="ask for them; or a file whose first line they are, which no list of processes shows; default: $CHAT_AUTH",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        metavar="NAME",
        default=list(filter(None, os.environ.get("CHAT_ALLOW_HOST", "").split(","))),
        help="a name under which browsers ask the server, beside localhost and its addresses; again for more; "
        "default: $CHAT_ALLOW_HOST, with commas between",
    )
    parser.add_argument(
        "--behind-proxy",
        action="store_true",
        default=IN_A_SPACE,
        help="believe the X-Forwarded headers: only where none but a proxy that sets them reaches the port",
    )
    return parser.parse_args()


def _password(given: str) -> tuple[str, str]:
    """What --auth or $CHAT_AUTH says."""
    file = Path(given)
    line = (file.read_text("utf-8").splitlines() or [""])[0] if file.is_file() else given
    user, colon, password = line.partition(":")
    if not (user and colon and password):
        where = f"the first line of {file.name}" if file.is_file() else "what was given"
        raise argparse.ArgumentTypeError(f"{where} is not USER:PASSWORD, and there is no such file otherwise")
    return user, password


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


def _let_bars_end_with_the_process() -> None:
    """tqdm's own lock is for processes too; where Python does not fork, it says of one that is left that it leaks."""
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())


def _find(model_id: str | None) -> Repo:
    """The repository, checked. In a Space the page shall say what is wrong with it: visitors see no terminal."""
    repo = find_repo(model_id or default_model())
    if not IN_A_SPACE:
        check_repo(repo)
    return repo


def _serve(repo: Repo, arguments: argparse.Namespace) -> None:
    """Serves until interrupted."""
    from chat.engine import Engine  # brings torch: seconds, which neither `--help` nor a wrong --model shall take
    from chat.server import open_server

    engine = Engine(repo, arguments.memory)
    engine.start_loading()
    server = open_server(engine, host=arguments.host, port=arguments.port, access=_access(arguments))
    if signal.getsignal(signal.SIGINT) is stop:
        signal.signal(signal.SIGINT, lambda *_: _close_and_stop(engine))
    kind = "text and pictures" if engine.sees else "text only, no pictures"
    _announce(f"{repo.name} ({kind}): {server.local_url}   Ctrl-C stops it")
    if arguments.host in EVERY_ADDRESS and not IN_A_SPACE:
        _announce(_warning(server.server_port, arguments.auth is not None))
    if has_browser():
        webbrowser.open(server.local_url)
    server.block_thread()


def _access(arguments: argparse.Namespace) -> Access:
    from chat.gate import Access

    ours = {"localhost", "127.0.0.1", "::1", *(name.lower() for name in arguments.allow_host)}
    is_local = arguments.host in ours
    if not is_local:
        ours |= {arguments.host, socket.gethostname().lower(), f"{socket.gethostname().lower()}.local"}
    if IN_A_SPACE:
        ours |= {os.environ.get("SPACE_HOST", "").lower(), ".hf.space"}
    return Access(frozenset(ours), not is_local, arguments.behind_proxy, IN_A_SPACE, arguments.auth)


def _warning(port: int, asks_for_password: bool) -> str:
    """What who opens the chat to a network should know."""
    who = "with the password" if asks_for_password else "who reaches this machine"
    advice = "" if asks_for_password else " --auth USER:PASSWORD asks for a password."
    address = f"http://{lan_address()}:{port}/"
    return f"Warning: everybody {who} can ask the model at {address}, and what is sent is not encrypted.{advice}"


def lan_address() -> str:
    """This machine's address in its network; where there is none, the loopback's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address that nobody has: nothing is sent
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]


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


def _close_and_stop(engine: Engine) -> NoReturn:
    signal.signal(signal.SIGINT, stop)
    engine.uploads.close()
    stop()
