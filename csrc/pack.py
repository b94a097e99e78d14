"""Packs the C files of this folder into int4_cpu_source.py, the one Python file in which they travel with a model.

    python csrc/pack.py

transformers' loader copies a repo's Python files alone, so C has to come as text in one of them.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
CARRIER = FOLDER.parent / "int4_cpu_source.py"
INCLUDE = re.compile(r'^#\s*include "(.+)"$')
HEADER = '''\
# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The C code of the CPU kernels, in one piece: made from csrc/ by `make kernels`. Changes belong there."""

SOURCE = r"""
'''


def packed(name: str = "int4.c") -> str:
    """A file of this folder with every `#include "..."` replaced by that file, named and numbered for the compiler."""
    lines = [f'#line 1 "csrc/{name}"']
    for number, line in enumerate((FOLDER / name).read_text(encoding="ascii").splitlines(), 1):
        if include := INCLUDE.match(line):
            lines += [packed(include[1]).rstrip("\n"), f'#line {number + 1} "csrc/{name}"']
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def carrier() -> str:
    """The text of int4_cpu_source.py.

    Raises:
        ValueError: The C code cannot stand in a Python string, or is not ASCII.
    """
    source = packed()
    if '"""' in source:
        raise ValueError(f'{FOLDER}: the C code has """ in it, which would end the Python string that holds it')
    return f'{HEADER}{source}"""\n'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    CARRIER.write_text(carrier(), encoding="ascii", newline="\n")


if __name__ == "__main__":
    main()
