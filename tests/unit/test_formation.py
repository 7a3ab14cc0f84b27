"""Teams that IFCA or CFL forms before round 1: who is where, what it costs, and how such a run goes on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest

import tierfed
from tierfed.algorithms.ifca import IFCA
from tierfed.algorithms.permfl import PerMFL
from tierfed.config import from_table
from tierfed.formation import clusters_of, form, forming, settle
from tierfed.frames import dataset
from tierfed.preview import preview
from tierfed.report.load import RunFolder
from tierfed.setup import World, prepare
from tierfed.store import DiskStore, MemoryStore
from tierfed.testing.toy import apart, make_engine, quad, records
from tierfed.topology import TopologySettings, build_topology
from tierfed.wire import encode

DEVICES, ROWS, HIDDEN = 12, 30, 6
PARAMETERS = 4 * HIDDEN + HIDDEN + HIDDEN * 2 + 2  # of the network, eight bytes each
KINDS = ("ifca", "cfl")
kinds = pytest.mark.parametrize("kind", KINDS)


def columns() -> dict[str, Any]:
    """Devices with an even number name a sign, the others its opposite."""
    rng = np.random.default_rng(3)
    x, device = rng.normal(size=(DEVICES * ROWS, 4)), np.repeat(np.arange(DEVICES), ROWS)
    label = (x[:, 0] > 0) ^ (device % 2 == 1)
    numbers = {f"x{i}": x[:, i] for i in range(4)}
    return {**numbers, "label": label.astype(np.int64), "device": device}


def tables(kind: str, algorithm: str = "permfl", engine: str = "vectorized", **topology: Any) -> dict[str, Any]:
    return {
        "run": {"rounds": 2, "threads": 1, "dtype": "float64"},
        "data": {"batch": 8},
        "model": {"name": "mlp", "options": {"hidden": [HIDDEN], "batch_norm": algorithm == "jobfed"}},
        "algorithm": {"name": algorithm, "lr": 0.1, "steps": 4},
        "topology": {"fogs": 2, "teams": kind, **topology},
        "eval": {"post": False, "every": 10},
        "engine": {"name": engine},
    }


def world(kind: str, **topology: Any) -> World:
    config = from_table(tables(kind, **topology))
    return prepare(config, dataset(columns(), config.data.columns))


def in_folder(path: Path, kind: str, rounds: int = 4) -> dict[str, Any]:
    wanted = tables(kind, "jobfed")
    return {**wanted, "run": {**wanted["run"], "rounds": rounds, "out": str(path)}, "eval": {"post": False, "every": 1}}


def first_teams(result: tierfed.Result) -> npt.NDArray[np.int64]:
    return result.world.topology.parents[-1]


def told(result: tierfed.Result) -> dict[str, Any]:
    (event,) = [e for e in result.events if e["event"] == "formation"]
    return event


@kinds
@pytest.mark.parametrize("algorithm", ["permfl", "jobfed"])
def test_opposite_labels_are_told_apart(kind: str, algorithm: str) -> None:
    """By both, on both engines alike; then the algorithm runs on these teams, and JobFed may move devices."""
    results = [
        tierfed.run(tables(kind, algorithm, engine), data=columns(), folder=False)
        for engine in ("serial", "vectorized")
    ]
    teams = [first_teams(r).tolist() for r in results]
    assert teams[0] == teams[1]
    assert teams[0][:2] in ([0, 1], [1, 0])
    assert teams[0] == teams[0][:2] * 6
    assert told(results[0]) == told(results[1])
    assert told(results[0])["teams"] == {"fog 0": 6, "fog 1": 6}
    assert told(results[0])["unreached"] == 0
    moved = [e for e in results[0].events if e["event"] == "regroup"]
    assert moved == [] or algorithm == "jobfed"
    assert apart(results[0].engine, results[1].engine) < 1e-10
    assert results[0].engine.round == 2


def test_only_the_teams_stay() -> None:
    """A run on formed teams is the run on the same teams by their column: same cloud, fogs and devices, bit by bit."""
    formed = tierfed.run(tables("cfl"), data=columns(), folder=False)
    given = tables("natural")
    given["data"]["columns"] = {"team": "group"}
    natural = tierfed.run(given, data=columns() | {"group": columns()["device"] % 2}, folder=False)
    assert first_teams(formed).tolist() == first_teams(natural).tolist()
    for table in ("begun", "parents"):  # of a natural tree the config says all
        for depth in (0, 1):
            formed.engine.store.put(table, depth, None)
    assert apart(formed.engine, natural.engine) == 0.0
    assert len(records(formed.engine)) > DEVICES


def test_clusters_that_cfl_does_not_need_are_empty_teams() -> None:
    results = [
        tierfed.run(tables("cfl", "jobfed", engine, fogs=[2, 4]), data=columns(), folder=False)
        for engine in ("serial", "vectorized")
    ]
    assert told(results[0])["teams"] == {"fog 0": 6, "fog 1": 6, "fog 2": 0, "fog 3": 0}
    assert results[0].engine.topology.parents[1].tolist() == [0, 0, 1, 1]
    assert results[0].rows
    assert apart(results[0].engine, results[1].engine) < 1e-10
    assert [r.value for r in results[0].rows if "bytes" in r.metric] == [
        r.value for r in results[1].rows if "bytes" in r.metric
    ]


@pytest.mark.parametrize("engine", ["serial", "vectorized"])
@pytest.mark.parametrize("empty", ["skip", "stale"])
def test_a_team_without_devices_weighs_nothing(engine: str, empty: Any) -> None:
    """Two devices with optimum 0 in team 0, nobody in team 1, all coupled by 1, from 4: devices 4 - 4 / 2 = 2, team
    4 + (2 - 4) / 4 = 3.5, cloud 4 + (3.5 - 4) / 2 = 3.75; an empty team that counted as 4 would make it 3.875."""
    task, plan = quad([0.0, 0.0], start=[4.0])
    algorithm = PerMFL(lr=0.5, steps=1, lam=1.0, gamma=1.0, eta=0.25, beta=0.5)
    found = make_engine(engine, algorithm, task, plan, TopologySettings(fogs=2, teams="sequential", empty=empty))
    found.set_topology(found.topology.regrouped(np.array([0, 0])))
    found.step()
    assert float(found.kept(1, 0)["params"]["w"]) == 3.5
    assert float(found.kept(0, 0)["params"]["w"]) == 3.75


@kinds
def test_a_formation_is_a_function_of_its_world(kind: str) -> None:
    here = world(kind, formation_rounds=2)
    before = here.topology.parents[-1].copy()
    first, again = form(here), form(here)
    assert first.teams.tolist() == again.teams.tolist()
    assert first.cost == again.cost
    assert (here.topology.parents[-1] == before).all()


def test_it_draws_for_itself() -> None:
    """Other polls and batches than those of the run, and others for another seed; the same share of devices."""
    here = world("ifca", participation=0.5)
    there = forming(here).topology
    assert forming(here).plan.seed == there.seed != here.plan.seed  # batches
    other = forming(replace(here, config=replace(here.config, run=replace(here.config.run, seed=1)))).topology
    polls = [t.poll(0, 0, 0, 0).tolist() for t in (there, other, replace(there, seed=here.topology.seed))]
    assert [len(p) for p in polls] == [6, 6, 6]
    assert len({tuple(p) for p in polls}) == 3


def test_local_training_and_faults_are_those_of_the_run() -> None:
    wanted = tables("ifca", fogs=3)
    wanted["algorithm"] = {"name": "permfl", "lr": 0.25, "steps": 7, "epochs": 2}
    wanted["faults"] = {"loss": [0.5, 0.25], "dropout": 0.1}
    config = from_table(wanted)
    there = forming(prepare(config, dataset(columns(), config.data.columns)))
    algorithm, faults = there.algorithm, there.config.faults
    assert isinstance(algorithm, IFCA)
    assert (algorithm.lr, algorithm.steps, algorithm.epochs, algorithm.clusters) == (0.25, 7, 2, 3)
    assert (faults.loss, faults.dropout) == (0.25, 0.1)
    assert there.topology.shape == (1, DEVICES)


def test_a_number_of_devices_counts_for_every_fog() -> None:
    tree = build_topology(TopologySettings(fogs=3, participation=2), np.arange(1, 10))
    flat = tree.flattened(5)
    assert len(flat.poll(0, 0, 0, 0)) == 6
    assert (flat.shape, flat.seed, flat.samples.tolist()) == ((1, 9), 5, list(range(1, 10)))


@pytest.mark.parametrize(
    ("clusters", "teams", "want"),
    [
        ([0, 0, -1, 2, -1, -1], 4, [0, 0, 2, 2, 0, 2]),  # sizes 2, 1; then 2, 2; then 3, 2
        ([-1, 1, -1], 2, [1, 1, 1]),  # team 0 would be one of strangers
        ([-1, -1, -1], 2, [0, 1, 0]),  # nobody was heard
        ([1, 0, 1], 3, [1, 0, 1]),
    ],
)
def test_who_was_never_heard_joins_the_smallest_team(clusters: list[int], teams: int, want: list[int]) -> None:
    assert settle(np.array(clusters), teams).tolist() == want


def test_who_was_never_polled() -> None:
    """One round with half of the devices."""
    here = world("ifca", participation=0.5, formation_rounds=1)
    found, polled = form(here), forming(here).topology.poll(0, 0, 0, 0)
    assert found.unreached == 6
    engine = forming(here).engine(MemoryStore())
    engine.step()
    clusters = clusters_of(engine)
    assert np.flatnonzero(clusters >= 0).tolist() == polled.tolist()
    assert found.teams[polled].tolist() == clusters[polled].tolist()


@kinds
def test_what_it_costs_is_counted(kind: str) -> None:
    """Per device and round IFCA sends 2 models down, and up one, the choice [2] and 8 bits of masks; CFL 1 and 1."""
    result = tierfed.run(tables(kind, formation_rounds=3), data=columns(), folder=False)
    down, up = (2 * 8 * PARAMETERS, 8 * PARAMETERS + 16 + 1) if kind == "ifca" else (8 * PARAMETERS, 8 * PARAMETERS)

    def booked(metric: str, node: str = "cloud-device", tier: str = "link") -> list[tuple[int, float]]:
        return [(r.round, r.value) for r in result.rows if (r.tier, r.node, r.metric) == (tier, node, metric)]

    assert booked("down_bytes") == [(0, 3 * DEVICES * down)]
    assert booked("up_bytes") == [(0, 3 * DEVICES * up)]
    assert told(result)["bytes"] == 3 * DEVICES * (down + up)
    every = sum(r.value for r in result.rows if r.tier == "link" and "bytes" in r.metric)
    assert result.engine.store.meta["bytes"] == every
    seconds, joules = told(result)["seconds"], told(result)["joules"]
    clock = booked("clock_seconds", "cloud", "cloud")
    assert clock[0] == (0, seconds)
    assert seconds > 0
    rounds = booked("round_seconds", "cloud", "cloud")
    assert clock[-1] == (2, pytest.approx(sum(v for _, v in rounds)))
    assert booked("joules", "cloud", "cloud")[0] == (0, pytest.approx(joules))
    (computing,) = (v for r, v in booked("compute_joules", "", "device") if r == 0)
    assert joules == pytest.approx(booked("joules")[0][1] + computing)


@kinds
def test_a_resumed_run_does_not_form_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tierfed.run(in_folder(tmp_path / "whole", kind), data=columns())
    tierfed.run(in_folder(tmp_path / "half", kind, rounds=2), data=columns())
    before = pq.read_table(tmp_path / "half" / "devices.parquet")
    (tmp_path / "half" / "devices.parquet").unlink()
    monkeypatch.setattr("tierfed.session.form", lambda *_: pytest.fail("formed again"))
    resumed = tierfed.resume(tmp_path / "half", rounds=4, data=columns())
    assert contents(tmp_path / "half") == contents(tmp_path / "whole")
    assert resumed.rows == whole.rows
    assert first_teams(resumed).tolist() == first_teams(whole).tolist()
    after = pq.read_table(tmp_path / "half" / "devices.parquet")
    assert after.equals(before)
    assert after["team"].to_pylist() == [f"fog {k}" for k in first_teams(whole)]


def contents(folder: Path) -> dict[str, Any]:
    """What a run has committed: its log without the notes of a process, and its whole state."""
    store = DiskStore(folder / "state")
    try:
        found = {f"{t}/{i}": store.get(t, i) for t in ("kept0", "kept1", "own", "rows1") for i in store.ids(t)}
        state = {name: encode(record) for name, record in found.items() if record is not None}
        meta = {k: v for k, v in store.meta.items() if k != "logs"}
        return {"state": state, "meta": meta, "log": list(store.logs())}
    finally:
        store.close()


@kinds
def test_a_run_that_stopped_while_forming_begins_anew(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tierfed.run(in_folder(tmp_path / "whole", kind, 2), data=columns())

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tierfed.formation.summed", stop)  # after the last round of the formation
        stopped = tierfed.run(in_folder(tmp_path / "stopped", kind, 2), data=columns())
    assert stopped.interrupted
    assert not (tmp_path / "stopped" / "devices.parquet").exists()
    resumed = tierfed.resume(tmp_path / "stopped", data=columns())
    assert resumed.rows == whole.rows
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert (tmp_path / "stopped" / "devices.parquet").exists()


def test_the_run_folder_tells_of_it(tmp_path: Path) -> None:
    result = tierfed.run(in_folder(tmp_path / "r", "cfl", 2), data=columns())
    lines = [json.loads(line) for line in (tmp_path / "r" / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in lines[:2]] == ["start", "formation"]
    assert lines[1] == told(result)
    found = RunFolder.read(tmp_path / "r")
    assert found.teams == ("fog 0", "fog 1")
    assert found.total_bytes == result.engine.store.meta["bytes"]


def test_what_would_run() -> None:
    facts = preview(world("ifca", participation=0.5))
    each = 3 * 8 * PARAMETERS + 16 + 1
    assert facts["team_formation"] == {"by": "ifca", "rounds": 10, "bytes": 10 * 6 * each}
    assert "team_formation" not in preview(world("random"))


def test_clusters_inside_formed_fogs() -> None:
    """Two clusters a fog; of the empty ones of a fog without devices nobody hears."""
    wanted = tables("cfl", "jobfed", fogs=3, clusters=2)
    wanted["algorithm"]["cluster_scope"] = "inside_fog"
    result = tierfed.run(wanted, data=columns(), folder=False)
    assert told(result)["teams"] == {"fog 0": 6, "fog 1": 6, "fog 2": 0}
    tree = result.world.topology
    assert (tree.parents[1][tree.parents[2]] == np.arange(DEVICES) % 2).all()
    assert np.bincount(tree.parents[2], minlength=6).tolist() == [3, 3, 3, 3, 0, 0]
    assert result.engine.round == 2


@kinds
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fogs": 0}, "the tree is flat; set topology.fogs to the number of teams"),
        ({"fogs": "auto"}, "the tree is flat; set topology.fogs to the number of teams"),
        ({"fogs": 13}, "a team would have no devices"),
        ({"fogs": 2, "participation": 13}, "13 participants per fog, but no fog has more than 12 devices"),
        ({"fogs": 2, "formation_rounds": 0}, "topology.formation_rounds = 0"),
    ],
)
def test_what_does_not_fit(kind: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(tierfed.InputError, match=message):
        world(kind, **changes)


def test_natural_teams_give_the_number_of_formed_ones() -> None:
    natural = np.array([0, 1, 2, 0])
    tree = build_topology(TopologySettings(teams="ifca"), np.ones(4, np.int64), natural=natural)
    assert tree.nodes == (1, 3)
    assert (tree.parents[-1] != natural).any()


@pytest.mark.parametrize("participation", [0.5, 3, (1.0, 0.9)])
def test_cfl_hears_everybody(participation: Any) -> None:
    with pytest.raises(tierfed.InputError, match=r"of 12 devices take part.*or take topology\.teams = 'ifca'"):
        world("cfl", participation=participation)
    assert world("cfl", participation=(0.5, 1.0)).topology.nodes == (1, 2)
    assert world("cfl", participation=6).topology.nodes == (1, 2)
