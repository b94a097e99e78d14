"""Fixtures: a repo in AWQ format, and what it is exported to."""

from pathlib import Path

import pytest

from conversion.export.export import export
from tests.conversion.helpers.awq_source import Source, make_source


@pytest.fixture(scope="session", params=["plain", "int4"])
def source(request, tmp_path_factory) -> Source:
    """A repo with either embedding."""
    return make_source(tmp_path_factory.mktemp(f"awq-{request.param}"), embedding=request.param)


@pytest.fixture(scope="session")
def plain(tmp_path_factory) -> Source:
    """A repo with a plain embedding."""
    return make_source(tmp_path_factory.mktemp("awq"), embedding="plain")


@pytest.fixture(scope="session")
def packed(source, tmp_path_factory) -> Path:
    """The repo in compressed-tensors format."""
    output = tmp_path_factory.mktemp("compressed") / "repo"
    export(source.path, output, "compressed-tensors", report=lambda line: None)
    return output


@pytest.fixture(scope="session")
def mlx(source, tmp_path_factory) -> Path:
    """The repo in MLX's format."""
    output = tmp_path_factory.mktemp("mlx") / "repo"
    export(source.path, output, "mlx", report=lambda line: None)
    return output


@pytest.fixture(scope="session")
def llama(source, tmp_path_factory) -> Path:
    """The repo as GGUF files."""
    output = tmp_path_factory.mktemp("gguf") / "files"
    export(source.path, output, "gguf", report=lambda line: None)
    return output
