"""The command line for tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.shell import Shell, end_all


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    yield Shell(tmp_path, monkeypatch, capsys)
    end_all()
