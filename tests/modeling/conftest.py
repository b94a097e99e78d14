"""Tiny repos, built once a session, and the classes that load them."""

import pytest

from tests.modeling.tiny_repo import TinyRepo, build, multimodal_config, text_config


@pytest.fixture(scope="session")
def text_repo(tmp_path_factory) -> TinyRepo:
    return build(tmp_path_factory.mktemp("text"), text_config())


@pytest.fixture(scope="session")
def picture_repo(tmp_path_factory) -> TinyRepo:
    return build(tmp_path_factory.mktemp("picture"), multimodal_config())
