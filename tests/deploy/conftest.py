"""A CA with a small tree, made once; what nodes in this process say."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.pki import new_tree
from tierfed.deploy.authority import Authority, open_authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A CA that no test changes."""
    return new_tree(tmp_path_factory.mktemp("pki") / "keys")


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Another CA, with nodes of the same names."""
    return new_tree(tmp_path_factory.mktemp("other") / "keys")


@pytest.fixture
def own(authority: Authority, tmp_path: Path) -> Authority:
    """A copy of the CA to change."""
    shutil.copytree(authority.folder, tmp_path / "own")
    return open_authority(tmp_path / "own")


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Every line of `tierfed`, also where a command of an earlier test has sent them elsewhere."""
    logger = logging.getLogger("tierfed")
    before = logger.propagate, logger.level
    logger.addHandler(caplog.handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.propagate, _ = before
    logger.setLevel(before[1])
