"""A CA with a small tree, made once."""

import shutil
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
