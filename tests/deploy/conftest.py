"""What nodes in this process say."""

import logging
from collections.abc import Iterator

import pytest


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
