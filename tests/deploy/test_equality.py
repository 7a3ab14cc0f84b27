"""What a config simulates deploys with equal results: models, private states, metrics, bytes."""

from pathlib import Path
from typing import Any

import pytest

from deploy.harness import config, deploy, distance, simulated

CASES: dict[str, dict[str, Any]] = {
    "fedavg": {"name": "fedavg"},
    "permfl": {"name": "permfl"},
    "scaffold": {"name": "scaffold"},
    "pfedla": {"name": "pfedla", "server_at": "fog", "dim": 4, "width": 4},
    "pfedla-cloud": {"name": "pfedla", "server_at": "cloud", "dim": 4, "width": 4},
    "jobfed": {"name": "jobfed", "recluster_every": 0},
}


@pytest.mark.parametrize("name", CASES)
def test_as_in_simulation(name: str, tmp_path: Path) -> None:
    wanted = config(tmp_path, CASES[name])
    sim, models = simulated(wanted)
    result, kept, _ = deploy(wanted)
    assert distance(kept, models) < 1e-10
    theirs = {r[:-1]: r.value for r in sim.rows}
    ours = {r[:-1]: r.value for r in result.rows}
    assert ours == pytest.approx(theirs, abs=1e-9)
