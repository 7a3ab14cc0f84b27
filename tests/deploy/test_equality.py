"""What a config simulates deploys with equal results: models, private states, metrics, events, bytes."""

from pathlib import Path
from typing import Any

import pytest

import tierfed
from deploy.harness import config, deploy, distance, simulated
from tierfed.errors import InputError

FLOAT64 = 1e-10
MIXED = {"fogs": [2, 3], "team_rounds": [2, 2], "participation": [1.0, 1.0, 0.7], "teams": "random"}
LOSSY = {"loss": 0.2, "dropout": 0.1}

CASES: dict[str, dict[str, dict[str, Any]]] = {
    "fedavg": {"algorithm": {"name": "fedavg"}},
    "permfl": {"algorithm": {"name": "permfl"}},
    "scaffold": {"algorithm": {"name": "scaffold"}},
    "pfedla at fogs": {"algorithm": {"name": "pfedla", "server_at": "fog", "dim": 4, "width": 4}},
    "pfedla at the cloud": {"algorithm": {"name": "pfedla", "dim": 4, "width": 4}},
    "jobfed": {"algorithm": {"name": "jobfed"}},
    "jobfed in clusters": {
        "algorithm": {"name": "jobfed", "cluster_scope": "inside_fog"},
        "topology": {"clusters": 2, "team_rounds": [1, 2], "participation": [1.0, 1.0, 0.8]},
    },
    "jobfed, four tiers": {"algorithm": {"name": "jobfed"}, "topology": MIXED},
    "demlearn": {"algorithm": {"name": "demlearn"}, "topology": {**MIXED, "participation": 1.0}},
    "scaffold, lossy": {"algorithm": {"name": "scaffold"}, "topology": MIXED, "faults": LOSSY},
    "fedavg, flat": {"algorithm": {"name": "fedavg"}, "topology": {"fogs": 0, "teams": "auto", "team_rounds": 1}},
    "fedavg, compressed": {
        "algorithm": {"name": "fedavg"},
        "links": {
            "fog-device": {"compress": {"kind": "topk", "ratio": 0.2, "bits": 8}},
            "cloud-fog": {"compress": {"kind": "randomk", "ratio": 0.5}, "reduce": {"rule": "median"}},
        },
        "attack": {"kind": "noise", "attackers": 1},
    },
    "scaffold, compressed, lossy": {
        "algorithm": {"name": "scaffold"},
        "topology": MIXED,
        "faults": LOSSY,
        "links": {"all": {"compress": {"kind": "topk", "ratio": 0.3}}},
    },
    "fmtl, lossy": {"algorithm": {"name": "fmtl"}, "topology": MIXED, "faults": LOSSY},
    "fedavg, clipped": {
        "algorithm": {"name": "fedavg"},
        "topology": {"weighting": "devices"},
        "links": {
            "fog-device": {"privacy": {"clip": 0.01, "noise_multiplier": 0.0, "adaptive": {"quantile": 0.5}}},
        },
    },
}


@pytest.mark.parametrize("name", CASES)
def test_as_in_simulation(name: str, tmp_path: Path) -> None:
    tables = {**CASES[name]}
    wanted = config(tmp_path, tables.pop("algorithm"), **tables)
    simulation, models = simulated(wanted)
    deployed = deploy(wanted)
    assert distance(deployed.kept, models) < FLOAT64
    theirs = {r[:-1]: r.value for r in simulation.rows}
    assert {r[:-1]: r.value for r in deployed.result.rows} == pytest.approx(theirs, abs=1e-9)
    assert deployed.result.events == simulation.events
    moves = [e for e in simulation.events if e["event"] in ("regroup", "rebuild")]
    assert bool(moves) == ("jobfed" in name or name == "demlearn")
    lossy = "faults" in CASES[name]  # what never reaches those who are away is counted, and not sent
    for depth, link in enumerate(simulation.world.topology.links):
        for way in ("up",) if lossy else ("down", "up"):
            counted = sum(r.value for r in simulation.rows if (r.node, r.metric) == (link, f"{way}_bytes"))
            assert deployed.sent.get((depth, way), 0) == counted, (link, way)


def test_noise_is_another_one_than_in_simulation_and_costs_the_same(tmp_path: Path) -> None:
    """Deployed noise is drawn by the system; nobody can repeat it."""
    private = {"clip": 0.1, "noise_multiplier": 1.0}
    links = {"fog-device": {"privacy": private}, "cloud-fog": {"privacy": {**private, "noise_at": "child"}}}
    wanted = config(tmp_path, {"name": "hierfavg"}, topology={"weighting": "devices", "team_rounds": 1}, links=links)
    simulation, models = simulated(wanted)
    deployed = deploy(wanted)
    assert distance(deployed.kept, models) > 1e-3
    spent = [[r for r in rows if r.metric.startswith("epsilon")] for rows in (simulation.rows, deployed.result.rows)]
    assert spent[0] == spent[1]
    assert {r.metric for r in spent[0]} == {"epsilon_device", "epsilon_fog"}


def test_private_states_stay_at_the_devices(tmp_path: Path) -> None:
    """The run folder has the global model; it makes no personal ones up, and nothing is simulated on."""
    deployed = deploy(config(tmp_path, {"name": "permfl"}), folder=True)
    folder = deployed.result.folder
    assert folder is not None
    with tierfed.open_run(folder) as found:
        assert found.global_model() is not None
        with pytest.raises(InputError, match="in their own folders"):
            found.personal_model(found.world.federation.devices[0])
    with pytest.raises(InputError, match=r"cannot go on here: .* in their own folders"):
        tierfed.resume(folder, rounds=9)
