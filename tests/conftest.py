"""Shared by all tests: the golden cases, and a cache of their own for the remote code that transformers copies.

The modeling files import each other relatively, as transformers loads them; here they are the package `gemma3_int4`.
"""

import atexit
import os
import shutil
import signal
import sys
import tempfile
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Before anything imports transformers, which reads it once.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="gemma3-int4-modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell's background job ignores Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

package = types.ModuleType("gemma3_int4")
package.__path__ = [str(ROOT)]
sys.modules["gemma3_int4"] = package


@pytest.fixture(scope="session")
def goldens(tmp_path_factory) -> Path:
    """Folder of the golden cases: small checkpoints and the logits of DeepMind's own Flax code."""
    from tests.goldens import build  # here, since tests of the model need nothing that it imports

    folder = tmp_path_factory.mktemp("goldens")
    for name in build.CASES:
        build.build(name, folder)
    return folder
