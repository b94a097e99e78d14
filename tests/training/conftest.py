"""Tiny repos, built once a session."""

import pytest

from tests.modeling.tiny_repo import TinyRepo, build, multimodal_config, text_config


@pytest.fixture(scope="session", params=["plain", "int4"])
def text_repo(request, tmp_path_factory) -> TinyRepo:
    """Its embedding on disk: plain with the scales beside it, or int4."""
    return build(tmp_path_factory.mktemp(request.param), text_config(), embedding=request.param)


@pytest.fixture(scope="session")
def plain_repo(tmp_path_factory) -> TinyRepo:
    return build(tmp_path_factory.mktemp("plain"), text_config())


@pytest.fixture(scope="session")
def picture_repo(tmp_path_factory) -> TinyRepo:
    return build(tmp_path_factory.mktemp("picture"), multimodal_config())
