"""Shared by all tests: where the goldens are, and a cache of their own for the remote code that transformers copies.

The modeling files import each other relatively, as transformers loads them; here they are the package `gemma3_int4`.
"""

import atexit
import os
import shutil
import sys
import tempfile
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT.parent / "shared" / "goldens"

# Before anything imports transformers, which reads it once.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="gemma3-int4-modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"

package = types.ModuleType("gemma3_int4")
package.__path__ = [str(ROOT)]
sys.modules["gemma3_int4"] = package


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Folder of the golden cases: small checkpoints and the logits of DeepMind's own Flax code."""
    if not GOLDENS.is_dir():
        pytest.skip("the golden cases are not beside the project's folder")
    return GOLDENS
