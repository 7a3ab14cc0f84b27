"""kill -9 of real processes at any moment: the same command again, and the run ends with the right model."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from deploy.harness import DEVICES, TEAMS, config, distance, simulated
from deploy.processes import Run, running

TIERS = {
    "cloud": "cloud",
    **{f"fog-{k}": "fog" for k in range(TEAMS)},
    **{str(i): "device" for i in range(DEVICES)},
}
ROUNDS = 6


@pytest.fixture
def jobfed(tmp_path: Path) -> Iterator[Run]:
    """JobFed on 1 cloud, 3 fogs and 12 devices; device 0 has a process of its own, the others share three."""
    made = partial(config, tmp_path, {"name": "jobfed", "epochs": 2})
    with running(tmp_path, made, TIERS, run={"rounds": ROUNDS}) as run:
        yield run


def begin(run: Run) -> None:
    """All processes."""
    run.start("cloud")
    for k in range(TEAMS):
        run.start(f"fog-{k}")
    run.start("0")
    for k in range(TEAMS):
        run.start(*(str(i) for i in range(DEVICES) if i % TEAMS == k and i))


def test_equal_to_the_simulation_after_kills_of_everybody(jobfed: Run, tmp_path: Path) -> None:
    begin(jobfed)
    jobfed.of("cloud").until("round 1/")
    jobfed.again("0")
    jobfed.of("cloud").until("round 2/")
    jobfed.again("fog-1")
    jobfed.of("cloud").until("round 3/")
    jobfed.again("cloud")
    jobfed.of("cloud").until("round 4/")
    jobfed.again("5")
    jobfed.finish()
    _, models = simulated(jobfed.config)
    assert distance(jobfed.kept(), models) < 1e-10
