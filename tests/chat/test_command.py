"""`python app.py` as a command: what it does before anything heavy is imported, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from chat.command import _access, _parse, check_address, has_browser
from chat.gate import Access
from chat.repo import ROOT


@pytest.mark.parametrize(
    "argv",
    [["--help"], ["--model", "kaggle:gemma3-1b-it-int4"], ["--port", "99999"], ["--memory", "-1"], ["--auth", "x"]],
)
def test_what_can_be_said_at_once_is_said_before_the_imports(argv: list[str]) -> None:
    script = f"""
import runpy, sys
sys.argv = {["app.py", *argv]}
try:
    runpy.run_path("app.py", run_name="__main__")
finally:
    print(*{{"torch", "transformers", "gradio", "numpy", "huggingface_hub"}} & set(sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == (0 if argv == ["--help"] else 2)
    said, imported = (done.stdout if argv == ["--help"] else "") + done.stderr, done.stderr.splitlines()[-1]
    assert "--model" in said or "app.py: error: " in said
    assert imported == ""
    assert len(done.stderr.splitlines()) <= 3


def test_the_memory_is_given_in_gigabytes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["app.py"])
    assert _parse().memory is None
    for given, expected in (("0", 0), ("1.5", 1_500_000_000)):
        monkeypatch.setenv("CHAT_MEMORY", given)
        assert _parse().memory == expected
    for given in ("much", "-1", "nan", "inf"):
        monkeypatch.setenv("CHAT_MEMORY", given)
        with pytest.raises(SystemExit):
            _parse()
        assert f"--memory: '{given}' is no number of gigabytes, 0 or more" in capsys.readouterr().err


def test_a_password_is_given_itself_or_in_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "password").write_text("ann:a:b\n")
    (tmp_path / "empty").write_text("")
    for given, expected in (("ann:secret", ("ann", "secret")), (str(tmp_path / "password"), ("ann", "a:b"))):
        monkeypatch.setattr(sys, "argv", ["app.py", "--auth", given])
        assert _parse().auth == expected
    for wrong in ("ann", "ann:", ":secret", str(tmp_path / "empty")):
        monkeypatch.setattr(sys, "argv", ["app.py", "--auth", wrong])
        with pytest.raises(SystemExit):
            _parse()
        assert "is not USER:PASSWORD" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["app.py"])
    assert _parse().auth is None
    monkeypatch.setenv("CHAT_AUTH", "ann:secret")
    assert _parse().auth == ("ann", "secret")


def test_who_may_ask_follows_from_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def access(*argv: str) -> Access:
        monkeypatch.setattr(sys, "argv", ["app.py", *argv])
        return _access(_parse())

    monkeypatch.delenv("GRADIO_SERVER_NAME", raising=False)
    local = access()
    assert local.hosts == {"localhost", "127.0.0.1", "::1"}
    assert (local.any_address, local.behind_proxy, local.in_a_space, local.password) == (False, False, False, None)
    wide = access("--host", "0.0.0.0", "--allow-host", "Chat.Example", "--allow-host", "b.example", "--behind-proxy")
    assert {"chat.example", "b.example", "localhost", socket.gethostname().lower()} <= wide.hosts
    assert (wide.any_address, wide.behind_proxy) == (True, True)
    monkeypatch.setenv("CHAT_ALLOW_HOST", "c.example,d.example")
    assert {"c.example", "d.example"} <= access().hosts
    monkeypatch.setattr("chat.command.IN_A_SPACE", True)
    monkeypatch.setenv("SPACE_HOST", "me-chat.hf.space")
    space = access("--host", "0.0.0.0")
    assert {"me-chat.hf.space", ".hf.space"} <= space.hosts
    assert (space.behind_proxy, space.in_a_space) == (True, True)


@pytest.mark.parametrize("auth", [[], ["--auth", "ann:secret"]])
def test_who_opens_it_to_the_network_is_warned(stub_folder: Path, auth: list[str]) -> None:
    command = [sys.executable, "app.py", "--model", str(stub_folder), "--host", "0.0.0.0", *auth]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        lines = [running.stdout.readline() for _ in range(2)]
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    port = re.search(r"http://localhost:(\d+)/", lines[0])[1]
    who = "everybody with the password" if auth else "everybody who reaches this machine"
    address = rf"http://[\d.]+:{port}/"
    advice = "" if auth else r" --auth USER:PASSWORD asks for a password\."
    warning = rf"Warning: {who} can ask the model at {address}, and what is sent is not encrypted\.{advice}\n"
    assert re.fullmatch(warning, lines[1])


def test_a_port_in_use_is_said_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"127\.0\.0\.1:{port} cannot be listened on .* Leave --port away"):
            check_address("127.0.0.1", port)
    check_address("127.0.0.1", port)
    with pytest.raises(OSError, match=r"300\.1\.1\.1 cannot be listened on"):
        check_address("300.1.1.1", None)


@pytest.mark.parametrize("module", ["chat.repo", "torch.nn", "transformers.utils", "gradio.utils"])
def test_an_interrupt_while_importing_ends_in_one_line(module: str, stub_folder: Path) -> None:
    command = [sys.executable, "-X", "importtime", "app.py", "--model", str(stub_folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        for line in running.stderr:
            if line.split()[-1] == module:
                break
        time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        output, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    said = [line for line in errors.splitlines() if line and not line.startswith("import time:")]
    assert said == ["Stopped."]
    assert output == ""


def test_the_page_is_announced_in_one_line_and_an_interrupt_ends_it(stub_folder: Path) -> None:
    # started as on Macs, where a lock for processes that is left is told of
    code = "import multiprocessing; multiprocessing.set_start_method('spawn'); from chat.command import main; main()"
    command = [sys.executable, "-c", code, "--model", str(stub_folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        line = running.stdout.readline()
        running.send_signal(signal.SIGINT)
        output, errors = running.communicate(timeout=60)
    assert re.fullmatch(r"stub \(text and pictures\): http://127\.0\.0\.1:\d+/   Ctrl-C stops it\n", line)
    assert (running.returncode, output, errors.strip()) == (130, "", "Stopped.")


def test_a_browser_is_opened_only_where_someone_sits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "SPACE_ID", "SSH_CONNECTION", "SSH_TTY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    assert has_browser() is False  # the output goes to pytest
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert has_browser() is True
    for name in ("CI", "SPACE_ID", "SSH_CONNECTION"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            assert has_browser() is False
    monkeypatch.delenv("DISPLAY")
    assert has_browser() is (os.name == "nt" or sys.platform == "darwin")
