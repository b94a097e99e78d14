"""The C code: as packed, as formatted, free of warnings, with the structs that Python has."""

import ctypes
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gemma3_int4 import int4_cpu_build, int4_cpu_library
from gemma3_int4.int4_cpu_hardware import INSTRUCTION_SETS

from csrc import pack
from tests.modeling.hardware import cpu_with

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")
on_linux_x86 = pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="for Linux on x86")
CLANG_FORMAT = Path(sys.executable).with_name("clang-format")


def test_the_carrier_is_what_packing_makes():
    assert pack.CARRIER.read_text() == pack.carrier(), "run `make kernels`"


def test_every_file_is_packed_once():
    names = re.findall(r'#line 1 "csrc/(.+)"', pack.carrier())
    assert sorted(names) == sorted(path.name for path in pack.FOLDER.glob("*.[ch]"))


@pytest.mark.skipif(not CLANG_FORMAT.exists(), reason="clang-format is not installed")
def test_clang_format_changes_nothing():
    files = sorted(map(str, pack.FOLDER.glob("*.[ch]")))
    subprocess.run([CLANG_FORMAT, "--dry-run", "--Werror", *files], check=True)


@needs_compiler
@on_linux_x86
def test_the_compiler_names_the_file_and_line_of_an_error():
    lines = (pack.FOLDER / "few_rows.h").read_text().splitlines()
    (line,) = (number for number, text in enumerate(lines, 1) if "malloc(" in text)
    command = ["cc", "-DAVX2", "-mavx2", "-mfma", "-mf16c", "-fsyntax-only", "-x", "c", "-"]
    source = pack.packed().replace(" malloc(", " malloc((")
    run = subprocess.run(command, input=source, capture_output=True, text=True)
    assert f"csrc/few_rows.h:{line}:" in run.stderr


@needs_compiler
@on_linux_x86
@pytest.mark.parametrize("instruction_set", [name for name in INSTRUCTION_SETS if not name.startswith("NEON")])
def test_the_source_compiles_without_warnings(instruction_set, tmp_path):
    """For each set of x86's instructions, also for one that this CPU does not have. (Arm's: tests/emulated.)"""
    with cpu_with("gemma3_int4", instruction_set=instruction_set):
        flags = [*int4_cpu_build.compiler_flags(), "-Wall", "-Wextra", "-Werror"]
    command = ["cc", *flags, "-x", "c", "-", "-o", str(tmp_path / "kernel.so")]
    run = subprocess.run(command, input=int4_cpu_build.SOURCE, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@needs_compiler
def test_every_field_of_every_struct_is_where_python_has_it(tmp_path):
    structs = int4_cpu_library.STRUCTS
    fields = [(struct.__name__, name) for struct in structs for name, _ in struct._fields_]
    prints = [f'printf("%zu\\n", offsetof({struct}, {name}));' for struct, name in fields]
    prints += [f'printf("%zu\\n", sizeof({struct.__name__}));' for struct in structs]
    includes = f'#include <stddef.h>\n#include <stdio.h>\n#include "{pack.FOLDER / "interface.h"}"\n'
    (tmp_path / "offsets.c").write_text(f"{includes}int main(void) {{ {' '.join(prints)} }}")
    subprocess.run(["cc", "-std=gnu11", tmp_path / "offsets.c", "-o", tmp_path / "offsets"], check=True)
    found = subprocess.run([tmp_path / "offsets"], capture_output=True, text=True, check=True).stdout.split()
    expected = [getattr(getattr(int4_cpu_library, struct), name).offset for struct, name in fields]
    assert list(map(int, found)) == [*expected, *map(ctypes.sizeof, structs)]


def test_every_struct_of_the_border_is_declared_in_python():
    """And none lacks the size that is compared at loading."""
    interface, main = ((pack.FOLDER / name).read_text() for name in ("interface.h", "int4.c"))
    names = {struct.__name__ for struct in int4_cpu_library.STRUCTS}
    assert set(re.findall(r"^} (\w+);", interface, re.MULTILINE)) == names
    assert set(re.findall(r"^EXPORT_SIZE\((\w+)\);", main, re.MULTILINE)) == names
    functions = set(re.findall(r"^(?:int|void) (int4_\w+)\(", interface, re.MULTILINE))
    assert functions == {*int4_cpu_library.FUNCTIONS, "int4_huge_pages"}
