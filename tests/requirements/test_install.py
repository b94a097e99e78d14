"""Set-up from a bare machine: the Python and the torch that it chooses, the environments that it mends or refuses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from requirements import install

ROOT = install.ROOT
RUNNING = f"{sys.version_info[0]}.{sys.version_info[1]}"

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the programs on PATH here are shell scripts")


def program(folder: Path, name: str, script: str) -> Path:
    """A shell script on a PATH of its own."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def find_python(path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """requirements/find_python.sh where PATH is one folder and there is no .venv."""
    command = ["/bin/sh", str(ROOT / "requirements" / "find_python.sh")]
    environment = {"PATH": str(path), **variables}
    return subprocess.run(command, cwd=path, env=environment, capture_output=True, text=True, check=False)


def test_the_newest_python_that_starts_is_taken(tmp_path: Path) -> None:
    program(tmp_path, "python3.14", "echo 'pyenv: python3.14: command not found' >&2; exit 127")
    running = program(tmp_path, "python3.12", f'exec {sys.executable} "$@"')
    program(tmp_path, "python3", f'exec {sys.executable} "$@"')
    found = find_python(tmp_path)
    assert (found.returncode, found.stdout) == (0, f"{running}\n")


def test_a_python_of_uv_is_taken_where_path_has_none(tmp_path: Path) -> None:
    program(tmp_path, "uv", f'[ "$1 $2" = "python find" ] && echo {sys.executable}')
    assert find_python(tmp_path).stdout == f"{sys.executable}\n"


def test_no_python_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    program(tmp_path, "python3", "if [ $1 = --version ]; then echo Python 3.9.2; else exit 1; fi")
    found = find_python(tmp_path)
    assert found.returncode == 1
    assert found.stdout == ""
    assert len(found.stderr.splitlines()) == 1
    assert "Python 3.9.2" in found.stderr
    assert "PYTHON=" in found.stderr


def test_a_named_python_is_the_only_candidate(tmp_path: Path) -> None:
    program(tmp_path, "python3.13", f'exec {sys.executable} "$@"')
    program(tmp_path, "old", "if [ $1 = --version ]; then echo Python 3.9.2; else exit 1; fi")
    found = find_python(tmp_path, PYTHON="old")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "PYTHON=old: Python 3.9.2; this project runs with Python 3.11 to 3.14\n"


@pytest.mark.parametrize(
    ("smi", "system", "asked", "index", "words"),
    [
        ("echo 'GPU 0: NVIDIA L4'", "Linux", "", None, "CUDA build (an NVIDIA driver is present)"),
        ("echo 'GPU 0: NVIDIA L4'", "Linux", "cpu", install.CPU_INDEX, "CPU build (as TORCH_INDEX asks)"),
        ("echo 'GPU 0: NVIDIA L4'", "Windows", "", install.WINDOWS_CUDA_INDEX, "CUDA build (an NVIDIA driver"),
        ("echo 'Driver not loaded'; exit 9", "Linux", "", install.CPU_INDEX, "CPU build (no NVIDIA driver found)"),
        (None, "Linux", "", install.CPU_INDEX, "CPU build (no NVIDIA driver found); for the other: TORCH_INDEX=cuda"),
        (None, "Linux", "cuda", None, "CUDA build (as TORCH_INDEX asks); for the other: TORCH_INDEX=cpu"),
        (None, "Windows", "", None, "CPU build (no NVIDIA driver found)"),
        (None, "Darwin", "", None, "macOS"),
        (None, "Linux", "https://example.org/whl", "https://example.org/whl", "from https://example.org/whl"),
    ],
)
def test_torch_fits_the_machine_and_the_other_build_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    smi: str | None,
    system: str,
    asked: str,
    index: str | None,
    words: str,
) -> None:
    if smi:
        program(tmp_path, "nvidia-smi", smi)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "DRIVER", tmp_path / "version")
    found, said = install.torch_source(system, asked)
    assert found == index
    assert said.startswith(words)


@pytest.mark.parametrize("uv", [True, False])
def test_a_dry_run_shows_the_commands(tmp_path: Path, uv: bool) -> None:
    program(tmp_path, "uv", "exit 1")
    environment = {**os.environ, "PATH": str(tmp_path), "TORCH_INDEX": "cpu", "UV": "uv" if uv else "", "PYTHON": ""}
    command = [sys.executable, str(ROOT / "requirements" / "install.py"), "app", "--dry-run"]
    command += ["--environment", str(tmp_path / "env")]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    _, made, choice, torch, rest = said.splitlines()
    python = str(tmp_path / "env" / "bin" / "python")
    pip = f"{tmp_path / 'uv'} pip install --python {python}" if uv else f"{python} -m pip"
    assert made.endswith(f"-m venv {tmp_path / 'env'}")
    assert choice.startswith("torch==")
    assert torch.startswith(pip)
    assert f"{'--index' if uv else '--extra-index-url'} {install.CPU_INDEX} --no-deps" in torch
    assert rest.startswith(pip)
    assert rest.endswith("--requirement requirements/app.txt")
    assert not (tmp_path / "env").exists()


def test_an_environment_without_pip_is_mended(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    environment = install.Environment(tmp_path / "env", uv=None)
    environment.ensure()
    assert environment.ask("import pip; print('here')") == "here"
    assert "has no pip; it is added" in capfd.readouterr().out


def test_an_environment_whose_python_is_gone_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "env"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(tmp_path / "gone")
    environment = install.Environment(folder, uv=None)
    environment.ensure()
    assert environment.ask("import pip; print('here')") == "here"


def test_an_environment_of_an_unsupported_python_is_refused(tmp_path: Path) -> None:
    program(tmp_path / "env" / "bin", "python", "echo 3.10")
    with pytest.raises(install.Stop, match=r"has Python 3\.10, not 3\.11 to 3\.14; remove the folder"):
        install.Environment(tmp_path / "env", uv=None).ensure()


def test_an_environment_of_another_python_than_the_named_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "3.12" if RUNNING != "3.12" else "3.13"
    program(tmp_path / "env" / "bin", "python", f"echo {other}")
    monkeypatch.setenv("PYTHON", sys.executable)
    with pytest.raises(install.Stop, match=f"has Python {other}, not {RUNNING}"):
        install.Environment(tmp_path / "env", uv=None).ensure()
    monkeypatch.delenv("PYTHON")
    install.Environment(tmp_path / "env", uv=None).ensure()


def test_a_python_without_the_venv_module_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "find_spec", lambda name: None)
    with pytest.raises(install.Stop, match=f"apt-get install python{RUNNING}-venv"):
        install.Environment(tmp_path / "env", uv=None).ensure()
    assert not (tmp_path / "env").exists()


def test_another_build_of_torch_replaces_the_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """pip is a script here that only prints; a set is installed again too, for the other build's own requirements."""
    program(tmp_path / "env" / "bin", "python", 'case "$*" in *install*) echo "$@";; *) echo 2.13.0+cpu;; esac')
    pins = tmp_path / "app.txt"
    pins.write_text("torch==2.13.0\n")
    monkeypatch.setattr(install, "ROOT", tmp_path)
    environment = install.Environment(tmp_path / "env", uv=None)
    for asked, commands in (("cpu", 1), ("cpu", 0), ("cuda", 2), ("cuda", 0), ("cpu", 2)):
        monkeypatch.setenv("TORCH_INDEX", asked)
        monkeypatch.setattr(install.platform, "system", lambda: "Linux")
        install.install_set(environment, pins)
        said = [line for line in capfd.readouterr().out.splitlines() if "install" in line]
        assert len(said) == commands
        assert commands < 2 or "--force-reinstall torch==2.13.0" in said[0]


def test_a_fitting_torch_installed_by_hand_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program(tmp_path / "env" / "bin", "python", 'case "$*" in *install*) echo "$@";; *) echo 2.13.0+cpu;; esac')
    monkeypatch.setenv("TORCH_INDEX", "cpu")
    monkeypatch.setattr(install.platform, "system", lambda: "Linux")
    install.install_torch(install.Environment(tmp_path / "env", uv=None), "torch==2.13.0")
    assert "install" not in capfd.readouterr().out


def test_uv_goes_on_where_the_index_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    uv = program(tmp_path, "uv", 'case "$*" in *--index*) exit 2;; *) echo "$@";; esac')
    program(tmp_path / "env" / "bin", "python", "echo 2.13.0")
    monkeypatch.setenv("TORCH_INDEX", "cpu")
    monkeypatch.setattr(install.platform, "system", lambda: "Linux")
    install.install_torch(install.Environment(tmp_path / "env", uv=str(uv)), "torch==2.13.0")
    said = capfd.readouterr().out
    assert "--no-deps --force-reinstall torch==2.13.0" in said
    assert "this torch, 2.13.0, brings CUDA's libraries" in said


@pytest.mark.parametrize(
    ("words", "files"),
    [
        ("plan --checkpoint x", "-r requirements/convert.txt"),
        ("quality . --text x", "-r requirements/convert.txt -r requirements/model.txt"),
    ],
)
def test_the_converter_without_its_set_says_what_to_install(words: str, files: str) -> None:
    bare = [
        sys.executable,
        "-I",
        "-S",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import convert_flax as c; ",
    ]
    bare[-1] += f"sys.exit(c.main({words.split()!r}))"
    run = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert re.fullmatch(rf"convert_flax: error: \w+ is not installed; type: pip install {files}\n", run.stderr)
