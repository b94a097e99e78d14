"""Where the demo reads and writes; light, for the commands' parsers."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the shipped checkpoint
CACHE = Path(os.environ.get("GEMMA3_INT4_DEMO_CACHE", "~/.cache/gemma3-int4-demo")).expanduser()
RUN = CACHE / "run"  # the training's state and log
