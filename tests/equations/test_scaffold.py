"""SCAFFOLD, flat and with control variates at the fogs: c is the mean of all c_i, whoever was polled, heard or late."""

from typing import Any

import numpy as np
import pytest
import torch

from tierfed.algorithms.fedavg import FedAvg
from tierfed.algorithms.scaffold import Scaffold
from tierfed.engine.base import Engine
from tierfed.faults import Faults
from tierfed.testing.toy import (
    DEVICES,
    ENGINES,
    cloud,
    finite,
    gap,
    make_engine,
    quad,
    run,
    toy_plan,
    toy_settings,
    toy_task,
)
from tierfed.topology import TopologySettings
from tierfed.tree import Tree, add, scale, zeros

kinds = pytest.mark.parametrize("kind", ENGINES)
UNIFORM = TopologySettings(fogs=0, weighting="devices")


def total(engine: Engine, table: str, like: Tree, ids: Any, entry: str | None = None) -> Tree:
    """The sum of some records, zero where there is none."""
    out: Tree = zeros(like)
    for i in ids:
        found = engine.store.get(table, int(i))
        if found is not None:
            out = add(out, found[entry] if entry else found)
    return out


@kinds
def test_T71_round_0_is_fedavg_with_uniform_weights(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    scaffold = run(make_engine(kind, Scaffold(epochs=2), task, plan), 1)
    fedavg = run(make_engine(kind, FedAvg(epochs=2), task, plan, UNIFORM), 1)
    assert gap(cloud(scaffold), cloud(fedavg)) < 1e-14


@kinds
@pytest.mark.parametrize("edge", [False, True])
def test_T71_one_local_step_and_full_participation_is_fedavg_in_every_round(kind: str, edge: bool) -> None:
    task, plan = toy_task(), toy_plan(batch=None)
    settings = toy_settings()["3 tiers"]
    scaffold = run(make_engine(kind, Scaffold(edge=edge), task, plan, settings), 4)
    fedavg = run(make_engine(kind, FedAvg(), task, plan, UNIFORM), 4)
    assert gap(cloud(scaffold), cloud(fedavg)) < 1e-12


@kinds
@pytest.mark.parametrize(("edge", "team_rounds"), [(False, 1), (True, 1), (True, 2)])
def test_T72_converges_to_the_optimum_for_any_number_of_local_steps(kind: str, edge: bool, team_rounds: int) -> None:
    task, plan = quad([-2.0, 0.0, 1.0, 5.0], h=[0.5, 1.0, 2.0, 4.0])
    settings = TopologySettings(fogs=2, teams="natural", team_rounds=team_rounds)
    algorithm = Scaffold(lr=0.05, epochs=5, edge=edge)
    engine = run(make_engine(kind, algorithm, task, plan, settings, natural=[0, 1, 0, 1]), 40)
    assert cloud(engine)["w"].item() == pytest.approx(2.8, abs=1e-8)  # sum h_i a_i / sum h_i, which FedAvg misses


@kinds
def test_two_rounds_by_hand(kind: str) -> None:
    """QUAD, K = 2 steps of 1/2, a = (0, 4), x = 4. Round 0: y = (1, 4), c_i = (x - y) / 1 = (3, 0), x = 5/2, c = 3/2.

    Round 1, gradient y - a_i - c_i + c: device 0 steps on y - 3/2: 5/2 -> 2 -> 7/4; device 1 on y - 5/2: stays at 5/2.
    c_0 = 3 - 3/2 + (5/2 - 7/4) = 9/4, c_1 = 0 - 3/2 + 0 = -3/2; x = 17/8, c = 3/8.
    """
    task, plan = quad([0.0, 4.0], start=[4.0])
    engine = run(make_engine(kind, Scaffold(lr=0.5, epochs=2), task, plan), 1)
    assert (cloud(engine)["w"].item(), engine.kept(0, 0)["c"]["w"].item()) == (2.5, 1.5)
    run(engine, 1)
    assert (cloud(engine)["w"].item(), engine.kept(0, 0)["c"]["w"].item()) == (2.125, 0.375)
    assert [engine.own(i)["c"]["w"].item() for i in range(2)] == [2.25, -1.5]


def test_server_lr_moves_the_model_and_not_the_variate() -> None:
    task, plan = quad([0.0, 4.0], start=[4.0])
    engine = run(make_engine("serial", Scaffold(lr=0.5, epochs=2, server_lr=2.0), task, plan), 1)
    assert (cloud(engine)["w"].item(), engine.kept(0, 0)["c"]["w"].item()) == (4.0 - 2.0 * 1.5, 1.5)


@kinds
@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("tree", ["3 tiers", "4 tiers"])
def test_T73_the_variate_is_the_mean_of_the_devices_(kind: str, edge: bool, tree: str) -> None:
    """Full participation; ragged devices, so that the number of local steps differs too."""
    task, plan = toy_task(), toy_plan()
    engine = run(make_engine(kind, Scaffold(edge=edge), task, plan, toy_settings()[tree]), 3)
    c = engine.kept(0, 0)["c"]
    assert gap(c, scale(total(engine, "own", c, range(DEVICES), "c"), 1 / DEVICES)) < 1e-13


@kinds
@pytest.mark.parametrize("loss", [0.0, 0.4])
def test_T73_flat_with_partial_participation_and_lost_replies(kind: str, loss: float) -> None:
    """N c = sum of all c_i, less what devices that were not heard still owe."""
    task, plan = toy_task(), toy_plan()
    faults = Faults(loss=loss, dropout=0.2)
    engine = make_engine(kind, Scaffold(), task, plan, toy_settings(participation=0.5)["flat"], faults)
    seen = 0
    for _ in range(6):
        run(engine, 1)
        c = engine.kept(0, 0)["c"]
        theirs, owed = total(engine, "own", c, range(DEVICES), "c"), total(engine, "owed1", {"dc": c}, range(DEVICES))
        assert gap(add(scale(c, DEVICES), owed["dc"]), theirs) < 1e-12
        seen += len(engine.store.ids("owed1"))
    assert bool(seen) == bool(loss)


@kinds
@pytest.mark.parametrize("team_rounds", [1, 2])
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_T73_with_fogs_partial_participation_and_lost_replies(kind: str, team_rounds: int, loss: float) -> None:
    """n_k c_k = sum of the devices' c_i less what these owe; N c = sum_k n_k c_k less what the fogs owe."""
    task, plan = toy_task(), toy_plan()
    settings = toy_settings(participation=0.5, team_rounds=team_rounds)["3 tiers"]
    engine = make_engine(kind, Scaffold(edge=True), task, plan, settings, Faults(loss=loss, dropout=0.1))
    seen = 0
    for _ in range(6):
        run(engine, 1)
        c = engine.kept(0, 0)["c"]
        fogs = zeros(c)
        for k in range(engine.topology.nodes[1]):
            ids = engine.topology.children(1, k)
            mine = scale(engine.kept(1, k)["c"], len(ids))
            owed = total(engine, "owed2", {"dc": c}, ids)["dc"]
            assert gap(add(mine, owed), total(engine, "own", c, ids, "c")) < 1e-12
            fogs = add(fogs, mine)
        owed = total(engine, "owed1", {"dc": c}, range(engine.topology.nodes[1]))["dc"]
        assert gap(add(scale(c, DEVICES), owed), fogs) < 1e-12
        seen += len(engine.store.ids("owed1"))
        assert finite(cloud(engine))
    assert bool(seen) == bool(loss)


@kinds
def test_one_team_round_at_the_fogs_is_flat_scaffold(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    flat = run(make_engine(kind, Scaffold(), task, plan), 3)
    for tree in ("3 tiers", "4 tiers"):
        edge = run(make_engine(kind, Scaffold(edge=True), task, plan, toy_settings()[tree]), 3)
        assert gap(cloud(edge), cloud(flat)) < 1e-12, tree
        assert gap(edge.kept(0, 0)["c"], flat.kept(0, 0)["c"]) < 1e-12, tree


def test_batch_norm_statistics_have_no_variate() -> None:
    task, plan = toy_task(), toy_plan(batch=None)
    algorithm = Scaffold()
    engine = run(make_engine("vectorized", algorithm, task, plan), 1)
    assert list(engine.kept(0, 0)["c"]) == task.trainable
    old = task.init()
    hidden = [plan.x[torch.from_numpy(rows)] @ old["0.weight"].T + old["0.bias"] for rows in plan.train]
    mean = np.mean([z.mean(0).numpy() for z in hidden], 0)  # devices count alike
    assert gap(cloud(engine)["1.running_mean"], torch.from_numpy(0.1 * mean)) < 1e-13
