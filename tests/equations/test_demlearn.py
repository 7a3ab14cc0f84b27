"""DemLearn: down towards the parent, up by leaf counts, its limits, new teams of devices that are alike,
and a new tree above them."""

from typing import Any

import numpy as np
import pytest
import torch

import tierfed
from tierfed.algorithms.demlearn import DemLearn
from tierfed.algorithms.fedavg import FedAvg
from tierfed.algorithms.keep_local import KeepLocal
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import models
from tierfed.testing.toy import ENGINES, apart, cloud, gap, make_engine, quad, run, toy_plan, toy_settings, toy_task
from tierfed.topology import TopologySettings

kinds = pytest.mark.parametrize("kind", ENGINES)


def points(kind: str, a: list[float], teams: list[int], start: float = 0.0, rounds: int = 1, **changes: Any) -> Engine:
    task, plan = quad(a, start=[start])
    settings = TopologySettings(fogs=max(teams) + 1, teams="natural", team_rounds=rounds)
    algorithm = DemLearn(**{"lr": 0.5, "a": 0.5, "mu": 0.0, "rebuild": 0, **changes})
    return make_engine(kind, algorithm, task, plan, settings, natural=teams)


def found(engine: Engine) -> tuple[list[float], list[float], float]:
    fogs = [float(engine.kept(1, k)["params"]["w"]) for k in range(engine.topology.nodes[1])]
    devices = [float(engine.own(i)["w"]["w"]) for i in range(engine.topology.devices)]
    return devices, fogs, float(cloud(engine)["w"])


@kinds
def test_T87_one_level_that_is_followed_wholly_is_fedavg_of_equal_devices(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    ours = run(make_engine(kind, DemLearn(a=1.0, mu=0.0), task, plan, TopologySettings(fogs=0, participation=0.5)), 3)
    uniform = TopologySettings(fogs=0, weighting="devices", participation=0.5)
    assert gap(cloud(ours), cloud(run(make_engine(kind, FedAvg(), task, plan, uniform), 3))) == 0.0


@kinds
@pytest.mark.parametrize("tree", ["flat", "3 tiers", "4 tiers"])
def test_T88_who_follows_nobody_is_local_only(kind: str, tree: str) -> None:
    task, plan, settings = toy_task(), toy_plan(), toy_settings()[tree]
    ours = run(make_engine(kind, DemLearn(a=0.0, mu=0.0), task, plan, settings), 3)
    local = run(make_engine(kind, KeepLocal(private="all"), task, plan, settings), 3)
    assert [gap(ours.own(i)["w"], local.own(i)["own"]) for i in range(12)] == [0.0] * 12


@kinds
def test_two_rounds_by_hand(kind: str) -> None:
    """a = 8, 0 in one team and 16 in the other; steps of 1/2, mixing 1/2, from 0.

    Round 0: devices 4, 0, 8; fogs 2, 8; cloud by leaf counts (2 * 2 + 8) / 3 = 4.
    Round 1, down: fogs 3, 6; devices 3.5, 1.5, 7; trained 5.75, 0.75, 11.5; fogs 3.25, 11.5; cloud 6.
    """
    engine = run(points(kind, [8.0, 0.0, 16.0], [0, 0, 1]), 1)
    assert found(engine) == ([4.0, 0.0, 8.0], [2.0, 8.0], 4.0)
    run(engine, 1)
    assert found(engine) == ([5.75, 0.75, 11.5], [3.25, 11.5], 6.0)


@kinds
def test_the_pull_is_to_the_parent_as_it_was_sent(kind: str) -> None:
    """mu = 1, in the second of the rounds above: device 0 from 3.5 by -1/2 ((3.5 - 8) + (3.5 - 3)) to 5.5."""
    engine = run(points(kind, [8.0, 0.0, 16.0], [0, 0, 1]), 1)
    pulled = points(kind, [8.0, 0.0, 16.0], [0, 0, 1], mu=1.0)
    for i in range(3):
        pulled.put_own(i, engine.own(i))
    for k in range(2):
        pulled.keep(1, k, engine.kept(1, k))
    pulled.keep(0, 0, engine.kept(0, 0))
    run(pulled, 1)
    assert found(pulled)[0] == [5.5, 1.5, 11.0]


@kinds
def test_a_second_team_round_starts_from_the_new_mean(kind: str) -> None:
    """One team of a = 8 and 0: devices 4, 0, fog 2; then mixed 3, 1, trained 5.5, 0.5, fog 3."""
    assert found(run(points(kind, [8.0, 0.0], [0, 0], rounds=2), 1)) == ([5.5, 0.5], [3.0], 3.0)


@kinds
def test_amplified_nodes(kind: str) -> None:
    """Twice as large in round 0 only: fog 2 -> 4, cloud 8; then down: fog 6, devices 5, 3, trained 6.5, 1.5, fog 4."""
    engine = run(points(kind, [8.0, 0.0], [0, 0], amplify=2.0, amplify_rounds=1), 1)
    assert found(engine) == ([4.0, 0.0], [4.0], 8.0)
    assert found(run(engine, 1)) == ([6.5, 1.5], [4.0], 4.0)


@kinds
@pytest.mark.parametrize("similarity", ["updates", "weights"])
def test_teams_of_devices_that_are_alike(kind: str, similarity: str) -> None:
    """Optima near 10 and near -10, mixed up at first; new teams after the second round."""
    a = [10.0, -10.0, 11.0, -11.0, 12.0, -9.0]
    engine = run(points(kind, a, [0, 0, 0, 1, 1, 1], rebuild=2, similarity=similarity), 1)
    assert engine.topology.parents[-1].tolist() == [0, 0, 0, 1, 1, 1]
    run(engine, 1)
    assert engine.topology.parents[-1].tolist() == [0, 1, 0, 1, 0, 1]


@kinds
def test_what_is_evaluated(kind: str) -> None:
    """After two rounds: cloud 6, fogs 3.25 and 11.5; a device would hear from its fog (3.25 + 6) / 2 = 4.625."""
    engine = run(points(kind, [8.0, 0.0, 16.0], [0, 0, 1]), 2)
    (m,) = models(engine, np.array([0]))
    assert m.global_model is not None
    assert m.team is not None
    assert m.personal_post is not None
    got = [float(p["w"]) for p in (m.global_model, m.team, m.personal_pre, m.personal_post)]
    pre = (5.75 + 4.625) / 2
    assert got == [6.0, 3.25, pre, pre - 0.5 * (pre - 8.0)]


# Two kinds of devices, left and right, in two groups each, above and below; their mean is zero.
GROUPS = [(10.0, 3.0), (-10.0, 3.0), (10.0, -3.0), (-10.0, -3.0)]


def regions(kind: str, groups: list[int], teams: list[int], **changes: Any) -> Engine:
    """Four fogs, of which the first two are below region 0."""
    a = [(x + 0.1 * i, y) for i, (x, y) in enumerate(GROUPS[g] for g in groups)]
    task, plan = quad(a)
    settings = TopologySettings(fogs=(2, 4), teams="natural")
    algorithm = DemLearn(**{"lr": 0.5, "a": 0.5, "mu": 0.0, "rebuild": 1, **changes})
    return make_engine(kind, algorithm, task, plan, settings, natural=teams)


def alike(names: Any, groups: list[int]) -> bool:
    """Whether nodes or devices have the same name exactly where they are of the same group."""
    a, b = np.asarray(names), np.asarray(groups)
    return bool(((a[:, None] == a) == (b[:, None] == b)).all())


@kinds
@pytest.mark.parametrize("similarity", ["updates", "weights"])
def test_fogs_of_one_kind_come_below_one_region(kind: str, similarity: str) -> None:
    """Fog g holds group g. The fogs report half of their groups' optima: 0 and 2 lie right, 1 and 3 left."""
    engine = regions(kind, [0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 1, 1, 2, 2, 3, 3], similarity=similarity)
    assert engine.topology.parents[1].tolist() == [0, 0, 1, 1]
    log = engine.step()
    assert engine.topology.parents[1].tolist() == [0, 1, 0, 1]
    assert engine.topology.parents[2].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (log.moved, log.reparented) == ([], [(2, 1, 0, 1), (2, 2, 1, 0)])
    assert engine.step().reparented == []


@kinds
@pytest.mark.parametrize("similarity", ["updates", "weights"])
def test_the_whole_tree_is_found_from_mixed_teams(kind: str, similarity: str) -> None:
    """Each team has a left and a right device. The first rebuild finds the groups of devices; the fogs have reported
    mixtures, which differ in height only. The second one goes by what the new teams have reported."""
    groups = [0, 1, 2, 3, 0, 1, 2, 3]
    engine = regions(kind, groups, [0, 0, 1, 1, 2, 2, 3, 3], similarity=similarity)
    log = engine.step()
    fogs = engine.topology.parents[2]
    assert alike(fogs, groups)
    assert alike(engine.topology.parents[1], [0, 1, 0, 1])
    assert log.moved
    run(engine, 1)
    assert (engine.topology.parents[2] == fogs).all()
    assert alike(engine.topology.parents[1][fogs], [g % 2 for g in groups])
    log = engine.step()
    assert (log.moved, log.reparented) == ([], [])


@kinds
def test_a_region_is_the_mean_of_its_new_fogs(kind: str) -> None:
    """Weighted by leaves: fog 0 has three devices, fog 2 one."""
    engine = run(regions(kind, [0, 0, 0, 1, 1, 2, 3, 3], [0, 0, 0, 1, 1, 2, 3, 3]), 2)
    fogs = [engine.kept(2, k)["params"]["w"] for k in range(4)]
    assert gap(engine.kept(1, 0)["params"]["w"], (3 * fogs[0] + fogs[2]) / 4) < 1e-14
    assert gap(engine.kept(1, 1)["params"]["w"], (fogs[1] + fogs[3]) / 2) < 1e-14


@kinds
def test_the_rebuilt_tree_is_in_the_checkpoint(kind: str) -> None:
    mixed = [0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3]
    engine, fresh = run(regions(kind, *mixed), 2), regions(kind, *mixed)
    fresh.store = engine.store
    fresh.restore(engine.meta())
    assert fresh.round == 2
    for now, before in zip(fresh.topology.parents, engine.topology.parents, strict=True):
        assert now.tolist() == before.tolist()


@kinds
def test_clusters_stay_on_the_machine_of_their_fog(kind: str) -> None:
    tree = TopologySettings(fogs=2, clusters=2)
    engine = make_engine(kind, DemLearn(rebuild=1), toy_task(), toy_plan(), tree)
    logs = [engine.step() for _ in range(3)]
    assert engine.topology.parents[1].tolist() == [0, 0, 1, 1]
    assert any(log.moved for log in logs)


def test_the_smallest_team_is_one_of_devices() -> None:
    """Three of four to the right, two of each kind wanted: the nearest one moves if they are devices."""
    at = torch.tensor([[10.0, 0.0], [10.0, 1.0], [9.0, -2.0], [-29.0, 1.0]], dtype=torch.float64)
    algorithm, before = DemLearn(min_team_size=2), np.array([0, 0, 0, 1])
    assert algorithm.regroup({"node": at}, before, 2, 0).tolist() == [0, 0, 0, 1]
    assert sorted(np.bincount(algorithm.regroup({"device": at}, before, 2, 0)).tolist()) == [2, 2]


def test_engines_agree_with_an_empty_region() -> None:
    found = []
    for kind in ENGINES:
        engine = regions(kind, [0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 1, 1, 2, 2, 3, 3], rebuild=2)
        engine.set_topology(
            engine.topology.rebuilt((engine.topology.parents[0], [1, 1, 1, 1], [0, 0, 1, 1, 2, 2, 0, 1]))
        )
        logs = [engine.step() for _ in range(2)]
        found.append((engine, [log.link_bytes() for log in logs], logs[1].reparented))
    (serial, *told), (vectorized, *said) = found
    assert told == said
    assert told[1]
    assert apart(serial, vectorized) < 1e-14


def test_a_run_tells_of_new_parents() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(96, 2)) + np.repeat(np.arange(8) % 4, 12)[:, None]
    columns = {"a": x[:, 0], "b": x[:, 1], "label": np.arange(96) % 2, "device": np.repeat(np.arange(8), 12)}
    config = {
        "run": {"rounds": 2, "threads": 1},
        "algorithm": {"name": "demlearn", "rebuild": 1},
        "topology": {"fogs": [2, 4]},
        "eval": {"post": False},
    }
    result = tierfed.run(config, data=columns, folder=False)
    moves = [e for e in result.events if e["event"] == "rebuild"]
    parents = {f"fog {k}": f"region {p}" for k, p in enumerate([0, 0, 1, 1])}
    for e in moves:
        assert parents[e["node"]] == e["from"]
        parents[e["node"]] = e["to"]
    assert moves
    assert list(parents.values()) == [f"region {p}" for p in result.engine.topology.parents[1]]
