"""The sets of pins: those of pyproject.toml as it stands, complete for what the code imports, and nothing besides."""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import int4_versions
from requirements.pins import BROUGHT_BY_TORCH, ROOT, SETS, distribution, header, read_pins, requirements, space_pins

FILES = {name: ROOT / "requirements" / f"{name}.txt" for name in SETS}
DISTRIBUTIONS = {"PIL": "pillow", "orbax": "orbax-checkpoint"}  # where the module has another name
CODE = {
    "model": ("modeling_gemma3_int4.py", "int4_*.py"),
    "app": ("app.py", "chat/**/*.py", "space/**/*.py"),
    "convert": ("convert_flax.py", "conversion/**/*.py"),
    "dev": ("[!.]*.py", "[!.]*/**/*.py"),
}
NOT_IN_THE_SET = {
    "model": {"triton"},  # comes with CUDA torch; guarded
    "app": {"spaces"},  # comes with ZeroGPU hardware; guarded
    "convert": {"torch"},  # `quality` alone; pyproject.toml says so
    "dev": {"spaces", "gemlite", "llama-cpp"},  # the latter: peers that a benchmark is run beside
}
USED_WITHOUT_IMPORT = {
    "accelerate": "transformers places a model on a device with it",
    "pillow": "transformers reads pictures with it",
    "pytest-timeout": "pytest's timeout in pyproject.toml",
    "clang-format": "make kernels",
    "ruff": "make lint",
    "uv": "make pins, make resolve",
}


def imported(group: str) -> set[str]:
    """The distributions that a set's own code imports, at any depth of it."""
    own = {path.stem for path in ROOT.glob("*.py")} | {path.name for path in ROOT.iterdir() if path.is_dir()}
    files = {path for pattern in CODE[group] for path in ROOT.glob(pattern)}
    for folder in ("build", "tests/engines", "tests/training/trainers"):  # with environments and pins of their own
        files -= set((ROOT / folder).rglob("*"))
    own |= {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"gemma3_int4"}
    modules = {module.split(".")[0] for file in files for module in _modules(file)}
    return {DISTRIBUTIONS.get(module, distribution(module)) for module in modules - own - sys.stdlib_module_names}


@cache
def _modules(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}


@pytest.mark.parametrize("group", SETS)
def test_the_pins_were_written_from_the_present_source(group: str) -> None:
    assert FILES[group].read_text("utf-8").splitlines()[0] == header(group), "pyproject.toml has changed: make pins"
    pins = read_pins(FILES[group])
    for line in requirements(group):
        wanted = Requirement(line)
        version = pins[distribution(wanted.name)].split(";")[0].split("==")[1].strip()
        assert wanted.specifier.contains(version), line


def test_the_ranges_are_those_that_the_code_refuses_to_leave() -> None:
    asked = {distribution(line): Requirement(line).specifier for line in requirements("model")}
    for package in int4_versions.RANGES:
        for bound in Requirement(int4_versions.specifier(package)).specifier:
            assert bound in list(asked[package])


@pytest.mark.parametrize("group", SETS[1:])
def test_sets_agree_so_that_one_can_be_installed_over_another(group: str) -> None:
    everything = read_pins(FILES["dev"])
    for name, pin in read_pins(FILES[group]).items():
        assert pin.split(";")[0].strip() == everything[name].split(";")[0].strip()


@pytest.mark.parametrize("group", SETS)
def test_what_torch_pins_itself_is_left_to_torch(group: str) -> None:
    pinned = {name: pin for name, pin in read_pins(FILES[group]).items() if BROUGHT_BY_TORCH.match(name)}
    if group == "dev":
        assert "sys_platform == 'linux'" in pinned.pop("triton")
    assert not pinned


@pytest.mark.parametrize("group", SETS)
def test_every_import_is_pinned(group: str) -> None:
    assert imported(group) - set(read_pins(FILES[group])) <= NOT_IN_THE_SET[group]


@pytest.mark.parametrize("group", SETS)
def test_nothing_is_asked_for_that_nobody_uses(group: str) -> None:
    """By the set's own code or, for a set that includes others, by theirs."""
    parts = {"app": ("app", "model"), "dev": SETS}.get(group, (group,))
    used = set().union(*map(imported, parts)) | set(USED_WITHOUT_IMPORT)
    assert {distribution(line) for line in requirements(group)} <= used


@pytest.mark.parametrize("group", SETS)
def test_every_pin_names_who_asked_for_it(group: str) -> None:
    lines = [line for line in FILES[group].read_text("utf-8").splitlines() if not line.startswith("#")]
    known = {*read_pins(FILES[group]), group}
    for line in lines:
        askers = line.split("# via ")[1].split(", ")
        assert set(askers) <= known, line


def test_the_spaces_pins_are_the_apps_own() -> None:
    assert (ROOT / "requirements.txt").read_text("utf-8").splitlines() == space_pins()
