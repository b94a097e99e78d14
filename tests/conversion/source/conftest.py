"""Fixtures: repos that were converted from the golden checkpoints."""

import json
from pathlib import Path

import pytest

from tests.conversion.helpers.hub_repos import CASES
from tests.conversion.helpers.tiny import command_line


@pytest.fixture(scope="session")
def converted(goldens, tmp_path_factory):
    """Case -> a repo in bfloat16 that was converted from the golden checkpoint."""
    repos = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp(case)
        config = json.loads((goldens / case / "case.json").read_text())["transformers_config"]
        (folder / "config.json").write_text(json.dumps(config))
        words = ["--checkpoint", goldens / case / "checkpoint", "--config", folder / "config.json"]
        assert command_line([str(word) for word in [*words, "--output", folder / "repo"]]) == 0
        repos[case] = folder / "repo"
    return repos


@pytest.fixture
def ours(converted) -> Path:
    return converted["mm-27b-style"]
