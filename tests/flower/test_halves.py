"""Both halves over a grid of direct calls: the models of a simulation, whoever is silent, restarts or does not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="Flower has an environment of its own: make test-flower")

from flwr.app import Message

import tierfed
from flower.direct import Direct, Supernode
from tierfed.engine.evaluate import models
from tierfed.errors import InputError
from tierfed.flower import client_app, server_app
from tierfed.flower.cloud import trained
from tierfed.flower.common import Given
from tierfed.flower.memory import InContext, InFolder
from tierfed.flower.records import said_by
from tierfed.result import Result
from tierfed.setup import World, prepare
from tierfed.store import MemoryStore
from tierfed.testing.toy import gap, records
from tierfed.testing.trees import Exactly
from tierfed.tree import Tree

DEVICES, ROUNDS = 5, 4
NAMES = [f"d{i}" for i in range(DEVICES)]
FLOAT64 = 1e-10


def table(rows: int = 90) -> dict[str, Any]:
    """Five ragged devices with numbers a and b; what the label says turns from device to device."""
    rng = np.random.default_rng(3)
    x, device = rng.normal(size=(rows, 2)), np.concatenate([np.arange(DEVICES).repeat(8), rng.integers(0, DEVICES, 50)])
    up = x[:, 0] * np.cos(device) + x[:, 1] * np.sin(device) > 0
    return {"a": x[:, 0], "b": x[:, 1], "label": np.where(up, "up", "down"), "device": [NAMES[i] for i in device]}


def config(name: str = "scaffold", **changes: Any) -> dict[str, Any]:
    """A small flat run in double precision; seven in ten devices take part."""
    return {
        "run": {"rounds": ROUNDS, "threads": 1, "dtype": "float64", **changes.pop("run", {})},
        "data": {"batch": 6},
        "algorithm": {"name": name, "lr": 0.1},
        "topology": {"fogs": 0, "participation": 0.7},
        "eval": {"every": 2},
        **changes,
    }


def star(source: Any, folder: Path | None = None, lost: Callable[[int, Message], str] = lambda *_: "") -> Direct:
    """A supernode for every device, ids from 10."""
    app = client_app(source, data=table, folder=folder)
    return Direct({10 + i: Supernode(app, {"device": n}) for i, n in enumerate(NAMES)}, lost)


def federated(grid: Direct, source: Any, out: Path, seconds: float = 0.0) -> Result:
    given = Given(config=source, data=table, module=None).settled({"run.out": str(out)})
    return trained(grid, given, 1, seconds, seconds)


def simulated(source: Any) -> Result:
    return tierfed.run({**source, "engine": {"name": "serial"}}, data=table(), folder=False)


def owns(grid: Direct, token: str) -> list[Tree]:
    """The private states in the memories of the supernodes."""
    visits = [InContext(grid.nodes[10 + i].context(10 + i)).load(token) for i in range(DEVICES)]
    return [{} if v is None else v.own for v in visits]


def same_states(result: Result, own: list[Tree], engine: Any) -> None:
    """What the cloud keeps, and all private states, are those of a simulation."""
    for table_, i in records(engine):
        if table_ == "own":
            assert gap(own[i], engine.own(i)) <= FLOAT64
        elif table_ != "owed1":  # which devices keep
            assert gap(result.engine.store.get(table_, i), engine.store.get(table_, i)) <= FLOAT64


LOSSY = {"loss": 0.2, "dropout": 0.1}


@pytest.mark.parametrize(
    ("name", "faults"), [("fedavg", {}), ("scaffold", {}), ("scaffold", LOSSY), ("ditto", {}), ("pfedla", {})]
)
def test_the_models_are_those_of_a_simulation(name: str, faults: dict[str, float], tmp_path: Path) -> None:
    source = config(name, faults=faults)
    grid, wanted = star(source), simulated(source)
    result = federated(grid, source, tmp_path / "run")
    own = owns(grid, result.engine.meta()["token"])
    same_states(result, own, wanted.engine)
    # the models that devices predict with, from what is at the cloud and what is at the supernodes
    both = result.world.engine(MemoryStore())
    for table_, i in records(wanted.engine):
        both.store.put(table_, i, own[i] if table_ == "own" else result.engine.store.get(table_, i))
    both.round, everybody = ROUNDS, np.arange(DEVICES)
    for mine, other in zip(models(both, everybody), models(wanted.engine, everybody), strict=True):
        assert gap(mine.personal_pre, other.personal_pre) <= FLOAT64
        assert gap(mine.personal_post, other.personal_post) <= FLOAT64
        assert gap(mine.global_model, other.global_model) <= FLOAT64
    # scores of all models, bytes on the links, seconds of the virtual clock
    assert [r[:-1] for r in result.rows] == [r[:-1] for r in wanted.rows]
    assert np.allclose([r.value for r in result.rows], [r.value for r in wanted.rows], atol=FLOAT64, equal_nan=True)
    assert {k for _, k in grid.counts} == {"query", "train", "evaluate"}


def test_replies_that_are_lost_and_devices_that_are_away_are_those_of_a_simulation(tmp_path: Path) -> None:
    """SCAFFOLD's increments must not be lost: what was not heard is in the next reply."""
    source = config(topology={"fogs": 0}, eval={"every": ROUNDS})
    lost = {(0, 1), (0, 2), (3, 0), (4, 3)}  # device, round
    away = {(1, 1), (2, 2)}

    def fate(node: int, message: Message) -> str:
        at = (
            (node - 10, int(said_by(message.content).get("round", -1)))
            if message.metadata.message_type == "train"
            else ()
        )
        return "lost" if at in lost else "away" if at in away else ""

    grid = star(source, lost=fate)
    result = federated(grid, source, tmp_path / "run")
    engine = world_of(source).engine(MemoryStore())
    engine.faults = Exactly(lost_at=tuple((1, i, r) for i, r in lost), away_at=tuple((1, i, r) for i, r in away))
    for _ in range(ROUNDS):
        engine.step()
    assert gap(result.engine.kept(0, 0), engine.kept(0, 0)) <= FLOAT64
    own = owns(grid, result.engine.meta()["token"])
    assert max(gap(own[i], engine.own(i)) for i in range(DEVICES)) <= FLOAT64


def world_of(source: Any) -> World:
    settled = Given(config=source, data=table, module=None).settled({})
    return prepare(settled.config, settled.data)


def test_a_server_that_ends_before_its_commit_goes_on(tmp_path: Path) -> None:
    """All devices have made round 3, the cloud has not committed it: asked again, they begin where they did before."""
    source = config("ditto", eval={"every": 1})
    killed = True

    def fate(node: int, message: Message) -> str:
        if killed and message.metadata.message_type == "evaluate" and said_by(message.content)["round"] == 3:
            raise KeyError("the server is killed")
        return ""

    grid, out = star(source, tmp_path / "state", fate), tmp_path / "run"
    with pytest.raises(KeyError):
        federated(grid, source, out)
    killed = False
    grid.nodes = {100 + k: node for k, node in grid.nodes.items()}  # supernodes that restart have other ids
    result = federated(grid, source, out)
    assert result.trained == 2
    wanted = simulated(source)
    token = result.engine.meta()["token"]
    visits = [InFolder(tmp_path / "state", n).load(token) for n in NAMES]
    same_states(result, [{} if v is None else v.own for v in visits], wanted.engine)
    finished = federated(grid, source, out)
    assert finished.trained == 0
    with pytest.raises(InputError, match=r"of another config; choose another one with run\.out"):
        federated(grid, config("fedavg", eval={"every": 1}), out)


@pytest.mark.parametrize("kept", [True, False])
def test_a_supernode_that_restarts(kept: bool, tmp_path: Path) -> None:
    """With a folder it takes its place again; without it has lost its state, and does not begin anew: it is refused."""
    source = config("ditto", topology={"fogs": 0}, eval={"every": ROUNDS})
    asked = 0

    def restart(node: int, message: Message) -> str:
        nonlocal asked
        asked += message.metadata.message_type == "train"
        if asked == DEVICES + 1 and 12 in grid.nodes:  # the second round has begun
            grid.nodes[99] = Supernode(grid.nodes.pop(12).app, {"device": "d2"})
        return ""

    grid = star(source, tmp_path / "state" if kept else None, restart)
    result = federated(grid, source, tmp_path / "run")
    trains = [node for node, what in grid.counts if what == "train"]
    assert trains.count(12) + trains.count(99) == ROUNDS
    engine = world_of(source).engine(MemoryStore())
    engine.faults = Exactly(away_at=tuple((1, 2, r) for r in range(1, 2 if kept else ROUNDS)))
    for _ in range(ROUNDS):
        engine.step()
    assert gap(result.engine.kept(0, 0), engine.kept(0, 0)) <= FLOAT64
    assert {r.node for r in result.rows if r.model == "personal_pre" and r.round == ROUNDS and r.tier == "device"} == (
        set(NAMES) if kept else set(NAMES) - {"d2"}
    )


def test_nobody_answers(tmp_path: Path) -> None:
    grid = star(config(), lost=lambda _, m: "away" if m.metadata.message_type == "train" else "")
    with pytest.raises(InputError, match=r"round 1: nobody has answered within 0 seconds: 'd\d' \(no answer\), "):
        federated(grid, config(), tmp_path / "run")
    grid = star(config(), lost=lambda _, m: "away" if m.metadata.message_type == "evaluate" else "")
    unmeasured = federated(grid, config(), tmp_path / "unmeasured")
    assert unmeasured.trained == ROUNDS
    assert unmeasured.scores == {}
    empty = Direct({})
    with pytest.raises(InputError, match=r"no supernode of the 5 devices \('d0', .* is there after 0 seconds"):
        federated(empty, config(), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_who_fits_no_device_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = config(topology={"fogs": 0})
    grid, app = star(source), client_app(source, data=table)
    other = config(topology={"fogs": 0}, algorithm={"name": "scaffold", "lr": 0.2})
    more = {**table(), "label": table()["label"][::-1]}
    wrong = {
        10: Supernode(app, {"device": "d7"}),
        11: Supernode(app, {}),
        12: Supernode(app, {"partition-id": 9}),
        13: Supernode(client_app(other, data=table), {"device": "d3"}),
        14: Supernode(client_app(source, data=more), {"partition-id": 4}),
    }
    grid.nodes[20] = grid.nodes[10]
    grid.nodes |= wrong
    result = federated(grid, source, tmp_path / "run")
    assert {node for node, what in grid.counts if what == "train"} == {20}
    assert result.trained == ROUNDS
    said = "\n".join(r.getMessage() for r in caplog.records)
    for text in (
        "device='d7', the data have no such device; did you mean 'd",
        "the node config does not say which device this supernode is",
        "partition-id=9, the data have devices 0 to 4",
        "device 'd3': it has another config",
        "device 'd4': it holds other data",
        "begins without 'd1', 'd2', 'd3', 'd4'",
    ):
        assert text in said


def test_two_supernodes_of_one_device_are_an_error(tmp_path: Path) -> None:
    grid = star(config())
    grid.nodes[99] = grid.nodes[12]
    with pytest.raises(InputError, match=r"two supernodes, 12 and 99, are device 'd2'"):
        federated(grid, config(), tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"topology": {"fogs": 2}}, "cloud - fog - device.* set topology.fogs = 0"),
        ({"algorithm": {"name": "ppt"}}, "talk to its server alone"),
        ({"augment": {"kind": "share"}}, "augment.kind = 'share'"),
        ({"personalize": {"mechanism": "ftl"}}, "personalize.mechanism = 'ftl'"),
        ({"select": {"by": "personal_pre"}}, "select.by = 'personal_pre'"),
        ({"offload": {"mode": "edge"}}, "offload.mode = 'edge'"),
        ({"start": {"run": "before"}}, "start.run = 'before'"),
    ],
)
def test_what_flower_has_no_place_for(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    source = config(**changes)
    with pytest.raises(InputError, match=said):
        federated(star(source), source, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_left_of_a_run(tmp_path: Path) -> None:
    """The global model is in the run folder; personal ones need private states, which are elsewhere."""
    source, out = config("ditto"), tmp_path / "run"
    result = federated(star(source), source, out)
    with tierfed.open_run(out, data=table()) as opened:
        assert gap(dict(opened.global_model().state_dict()), dict(result.global_model().state_dict())) == 0.0
        with pytest.raises(InputError, match="at Flower's supernodes"):
            opened.personal_model("d0")
    with pytest.raises(InputError, match=r"at Flower's supernodes"):
        result.personal_model("d0")
    with pytest.raises(InputError, match=r"cannot go on here.*at Flower's supernodes"):
        tierfed.resume(out, data=table())
    before = config("ditto", run={"out": str(tmp_path / "before"), "checkpoint_every": 1}, engine={"name": "serial"})
    tierfed.run(before, data=table())
    with pytest.raises(InputError, match="of a run without Flower"):
        federated(star(source), source, tmp_path / "before")


def test_the_apps_take_flower_s_run_config(tmp_path: Path) -> None:
    """Keys of tierfed's tables count, others are the user's own; the server app runs as Flower calls it."""
    run_config = {
        "algorithm.lr": 0.3,
        "algorithm.name": "fedavg",
        "run.rounds": 1,
        "run.out": str(tmp_path / "r"),
        "x": 1,
    }
    grid = star(config())
    for node in grid.nodes.values():
        node.run_config = run_config
    server = server_app(config(), data=table, wait_seconds=0, reply_seconds=0)
    server(grid, Supernode(grid.nodes[10].app, {}, run_config).context(1))
    with tierfed.open_run(tmp_path / "r", data=table()) as found:
        assert found.world.config.algorithm == {"lr": 0.3, "name": "fedavg"}
        assert found.engine.round == 1
