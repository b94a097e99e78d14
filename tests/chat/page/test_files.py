"""The page's files, without a browser: what is vendored is as published, and nothing is fetched from elsewhere."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "chat" / "page"
VENDOR = PAGE / "vendor"
PACKAGES = json.loads((VENDOR / "vendored.json").read_text())
SCRIPTS = sorted((PAGE / "script").glob("*.js"))


def test_every_vendored_file_is_the_published_one() -> None:
    recorded = {name: file["sha256"] for package in PACKAGES for name, file in package["files"].items()}
    present = {str(path.relative_to(VENDOR).as_posix()): path for path in VENDOR.rglob("*.js")}
    assert recorded == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in present.items()}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package["package"])
def test_every_package_has_its_license_and_an_exact_version(package: dict) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", package["version"])
    assert package["license"] in {"MIT", "BSD-3-Clause", "MPL-2.0 OR Apache-2.0"}
    assert len((VENDOR / package["license_file"]).read_text()) > 500


def test_no_markup_carries_a_script_or_a_style() -> None:
    for path in (PAGE / "index.html", PAGE / "icon.svg", PAGE / "icons.svg"):
        text = path.read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", text), path.name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_writes_markup_or_runs_text(path: Path) -> None:
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|setAttribute\(\"style"
    assert not re.search(sinks, path.read_text())


@pytest.mark.parametrize(
    "path", [PAGE / "index.html", *SCRIPTS, *(PAGE / "style").glob("*.css")], ids=lambda path: path.name
)
def test_nothing_is_fetched_from_elsewhere(path: Path) -> None:
    addresses = set(re.findall(r"https?://[\w.-]+", path.read_text()))
    assert addresses <= {"http://www.w3.org"}  # a name, of SVG


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_module_and_icon_that_is_named_is_there(path: Path) -> None:
    text = path.read_text()
    for module in re.findall(r"""(?:from|import) "([^"]+)";""", text):
        assert (path.parent / module).is_file(), module
    symbols = set(re.findall(r'symbol id="(\w+)"', (PAGE / "icons.svg").read_text()))
    assert set(re.findall(r'\b(?:icon|iconButton|button)\("(\w+)"', text)) <= symbols
