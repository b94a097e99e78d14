"""`make test-engines`: other engines beside our model. Heavy: each engine brings its own environment of gigabytes.

    python -m pytest tests/engines -k llama_cpp          one engine
    python -m pytest tests/engines --checkpoint DIR      another checkpoint of the shipped one's form

What was found is printed at the end, divergences one by one.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from demo.places import ROOT
from real270m.fetch import Unavailable
from tests.engines.helpers import agreement, cases

FOUND = pytest.StashKey[list[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--checkpoint", type=Path, default=ROOT, help="checkpoint of the shipped one's form")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Takes lines for the summary at the end."""
    lines = request.config.stash.setdefault(FOUND, [])
    name = request.node.name.removeprefix("test_")

    def take(*found: str) -> None:
        lines.extend([f"{name}: {found[0]}", *found[1:]])
        print(f"{name}:", *found, sep="\n")

    return take


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    terminalreporter.section("engines")
    for line in config.stash.get(FOUND, []):
        terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    try:
        return (yield)
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_270m(tmp_path_factory) -> cases.Case:
    try:
        return cases.real_270m(tmp_path_factory.mktemp("real_270m"))
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shipped(request, tmp_path_factory) -> cases.Case:
    repo = request.config.getoption("--checkpoint")
    if not list(repo.glob("model-*.safetensors")):
        pytest.skip(f"no checkpoint in {repo}")
    return cases.shipped(repo, tmp_path_factory.mktemp("shipped"))


@pytest.fixture(params=["real_270m", "shipped"])
def case(request) -> cases.Case:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def reference_of() -> Callable[[cases.Case], agreement.Reference]:
    """The reference of a case, computed once."""
    known = {}

    def reference(case: cases.Case) -> agreement.Reference:
        if case.repo not in known:
            known[case.repo] = agreement.reference(case)
        return known[case.repo]

    return reference
