"""A conversion of some seconds in a process of its own: what the tests of two processes in one folder share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from transformers import Gemma3TextConfig

from tests.conversion.helpers import tiny

ROOT = Path(__file__).resolve().parents[3]


def make_source(folder: Path) -> Path:
    """Writes a checkpoint of 22 shards of 5 MB and its configuration; returns the folder of both."""
    config = Gemma3TextConfig(
        vocab_size=tiny.ROWS,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=128,
        query_pre_attn_scalar=128,
        sliding_window=16,
    )
    return tiny.make_source(folder, config)


def start(source: Path, output: Path, *options: str) -> subprocess.Popen:
    """Starts the command line; what it says comes through a pipe."""
    words = ["--checkpoint", source / "checkpoint", "--config", source / "config.json", "--output", output]
    words += ["--workers", "1", "--shard-size", "5MB", *options]
    command = [sys.executable, str(ROOT / "convert_flax.py"), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=output.parent)
