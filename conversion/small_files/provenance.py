"""What weights are and how they came, by kind of source: the words of the model card and of NOTICE."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Provenance:
    """The words for one kind of source.

    Attributes:
        label: the quantization, in the title.
        origin: what the weights are.
        exact: how codes and scales came, where nothing is inexact.
        notice: what NOTICE calls the source.
        place: likewise, with a link to where it is; empty if that is not known.
    """

    label: str
    origin: str
    exact: str
    notice: str
    place: str = ""


FLAX = Provenance(
    label="INT4",
    origin="""\
Google's Gemma 3 was also trained with its weights quantised to 4 bits (QAT). Google published those weights as Flax
checkpoints on Kaggle, in float32: every matrix of the language model lies on an int4 grid, one scale for every 32
weights. This repo holds these numbers in 4 bits; AWQ is only the name of the file format. (The official QAT INT4 GGUF
files are another thing.)""",
    exact="""\
Codes and scales were read back from the grid, and each product of the two was compared with the source's float: all are
equal. Nothing was quantised here.""",
    notice="Google's Gemma 3 QAT INT4 checkpoint",
    place="Google's Gemma 3 QAT INT4 checkpoint on [Kaggle](https://www.kaggle.com/models/google/gemma-3)",
)

GGUF = Provenance(
    label="Q4_0",
    origin="""\
These are the weights of a Gemma 3 in a GGUF file of type Q4_0: 4-bit codes, and a float16 scale for every 32 weights.
Google publishes files of this type that were trained so (QAT Q4_0); those of others may have been quantized after
training. This is another quantization than Google's QAT INT4, which is on Kaggle. This repo holds the codes and scales
of the file; AWQ is only the name of the format.""",
    exact="""\
Codes and scales were taken from the file, as they are. Nothing was quantized here.""",
    notice="a Gemma 3 in a GGUF file (Q4_0)",
)

REPO = Provenance(
    label="INT4",
    origin="""\
These are the weights of a Gemma 3 in a Hugging Face repo with 4-bit codes, symmetric, one scale for every 32 weights or
a multiple of that. Which training or quantization they come from, the repo that they were taken from tells. This repo
holds the same codes and scales.""",
    exact="""\
Codes and scales were taken from that repo, as they are. Nothing was quantized here.""",
    notice="a Gemma 3 in a repo of int4 weights",
)

LICENSES = "LICENSE*"  # the files of a repo that say under which terms it stands
CACHED = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots[/\\]")  # where the Hub's library keeps a repo
BASE = re.compile(r"^base_model:[ \t]*(?:\n[ \t]*-)?[ \t]*[\"']?([\w-][\w.-]*/[\w-][\w.-]*)[\"']?[ \t]*$", re.MULTILINE)

PROVENANCES = {"flax": FLAX, "gguf": GGUF, "awq": REPO, "compressed-tensors": REPO}


def base_model(source: Path) -> str | None:
    """The repo of the Hub that a folder or file was fetched from, else the base model that its card names, if any."""
    if match := CACHED.search(f"{source}/"):
        return f"{match[1]}/{match[2]}"
    card = source / "README.md" if source.is_dir() else source.with_name("README.md")
    if not card.is_file():
        return None
    front = re.match(r"---\n.*?\n---\n", card.read_text("utf-8", "replace"), re.DOTALL)
    named = BASE.search(front[0]) if front else None
    return named[1] if named else None


def license_files(source: Path) -> list[Path]:
    """Those of a repo of the Hub, or of a folder of the same kind; none of a folder that only holds a GGUF file."""
    folder = source if source.is_dir() else source.parent
    if not (CACHED.search(f"{source}/") or (folder / "config.json").is_file()):
        return []
    return sorted(path for path in folder.glob(LICENSES) if path.is_file())
