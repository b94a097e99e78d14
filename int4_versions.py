# Copyright 2026 the Gemma 3 INT4 authors. Apache-2.0.
"""The versions of transformers and torch that this code runs with. Importing this file under others is an ImportError.

`modeling_gemma3_int4.py` imports it before all else of ours, which would fail less clearly. (ImportError, because
`pipeline` catches OSError, ValueError, TypeError and RuntimeError and goes on to the stock class.)
"""

import re

import torch
import transformers

# From this version on, below that one. transformers before 5.23 forgets a picture's mask in a later turn.
RANGES = {"transformers": ("5.23", "6"), "torch": ("2.13", None)}


def specifier(package: str) -> str:
    """A range as pip writes it: "transformers>=5.23,<6"."""
    lowest, beyond = RANGES[package]
    return f"{package}>={lowest}" + (f",<{beyond}" if beyond else "")


def check_versions(found: dict[str, str]) -> None:
    """Compares versions, by package, with `RANGES`.

    Raises:
        ImportError: one is outside, in one line that names the ranges, what was found and what to type.
    """
    outside = [package for package, version in found.items() if not _is_inside(version, *RANGES[package])]
    if outside:
        raise ImportError(
            f"Gemma 3 INT4 runs with {' and '.join(map(specifier, RANGES))}; found "
            f"{' and '.join(f'{package} {found[package]}' for package in outside)}. To change it: pip install "
            + " ".join(f"'{specifier(package)}'" for package in outside)
        )


# What the cache is called among arguments and outputs: `cache` from transformers 5.24 on.
CACHE = "cache" if tuple(map(int, re.findall(r"\d+", transformers.__version__)[:2])) >= (5, 24) else "past_key_values"


def cache_among(arguments: dict) -> object | None:
    """The cache among a layer's keyword arguments: `cache` from transformers 5.24 on, `past_key_values` before."""
    return arguments.get("cache", arguments.get("past_key_values"))


def _is_inside(version: str, lowest: str, beyond: str | None) -> bool:
    return _numbers(lowest) <= _numbers(version) and (beyond is None or _numbers(version) < _numbers(beyond))


def _numbers(version: str) -> tuple[int, int]:
    """Major and minor version: "5.24.0.dev0" and "2.13.0+cpu" are as good as what they lead to or come from."""
    major, minor = (re.findall(r"\d+", version) + ["0", "0"])[:2]
    return int(major), int(minor)


check_versions({"transformers": transformers.__version__, "torch": torch.__version__})
