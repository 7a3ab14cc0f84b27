"""DemLearn: down towards the parent, up by leaf counts, its limits, and new teams of devices that are alike."""

from typing import Any

import numpy as np
import pytest

from support import ENGINES, cloud, gap, make_engine, quad, run, toy_plan, toy_settings, toy_task
from tierfed.algorithms.demlearn import DemLearn
from tierfed.algorithms.fedavg import FedAvg
from tierfed.algorithms.keep_local import KeepLocal
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import models
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
