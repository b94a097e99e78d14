"""The map of the converter in `conversion/__init__.py` is complete, and no import runs back up.

Run: pytest tests/conversion/test_rooms.py
"""

import ast
import re
from pathlib import Path

import conversion

HOUSE = Path(conversion.__file__).parent
ROOMS = re.findall(r"^    (\S+\.py) ", conversion.__doc__, re.MULTILINE)  # from the roof down


def _path(module):
    """Where a module of the converter lies, relative to its folder; None if there is none of this name."""
    path = HOUSE.joinpath(*module.split(".")[1:])
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return str(found.relative_to(HOUSE).as_posix()) if found.is_file() else None


def _imports(file):
    """The files of the converter that a file imports, at its head or within a function."""
    for node in ast.walk(ast.parse((HOUSE / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively, which the grep of the map does not show"
            names = [_module(node.module, alias.name) for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "conversion":
                yield _path(name)


def _module(package, name):
    return f"{package}.{name}" if _path(f"{package}.{name}") and package.startswith("conversion") else package


def test_the_map_shows_every_file_once():
    files = {str(path.relative_to(HOUSE).as_posix()) for path in HOUSE.rglob("*.py")}
    without_code = {file for file in files if file.endswith("__init__.py") and file not in ROOMS}
    for file in without_code:
        assert len(ast.parse((HOUSE / file).read_text(encoding="utf-8")).body) == 1, f"{file} is missing on the map"
    assert sorted(ROOMS) == sorted(files - without_code)


def test_no_import_runs_back_up():
    floor = {file: number for number, file in enumerate(ROOMS)}
    arrows = [(file, below) for file in ROOMS for below in _imports(file)]
    assert len(arrows) > 100
    assert [f"{file} -> {below}" for file, below in arrows if floor[below] <= floor[file]] == []
