"""CFL on QUAD: when a cluster parts and how, what each part becomes, and FedAvg where none does."""

from typing import Any

import numpy as np
import pytest
import torch

from tierfed.algorithms.cfl import CFL
from tierfed.algorithms.cfl_splitter import Splitter, bipartition
from tierfed.algorithms.fedavg import FedAvg
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import models
from tierfed.faults import Faults
from tierfed.testing.toy import ENGINES, cloud, gap, make_engine, quad, run, toy_plan, toy_task
from tierfed.topology import TopologySettings
from tierfed.tree import row

kinds = pytest.mark.parametrize("kind", ENGINES)


def points(kind: str, a: list[Any], faults: Faults | None = None, **changes: Any) -> Engine:
    task, plan = quad(a)
    return make_engine(kind, CFL(**{"lr": 0.5, "start": 1, **changes}), task, plan, faults=faults)


def clusters(engine: Engine, n: int) -> list[int]:
    return [int(r["cluster"]) for r in engine.rows(0, np.arange(n))]


@kinds
def test_T96_two_groups_part_and_each_finds_its_optimum(kind: str) -> None:
    """a = -1, 1 at x = 0: the mean update is 0, their cosine -1. Round 0 is before `start`."""
    engine = run(points(kind, [1.0, -1.0, -1.0, 1.0]), 1)
    assert clusters(engine, 4) == [0, 0, 0, 0]
    run(engine, 1)
    assert clusters(engine, 4) == [0, 1, 1, 0]
    run(engine, 40)
    assert clusters(engine, 4) == [0, 1, 1, 0]
    pre = [float(m.personal_pre["w"]) for m in models(engine, np.arange(4), post=False)]
    assert pre == pytest.approx([1.0, -1.0, -1.0, 1.0], abs=1e-11)


@kinds
def test_T96_without_a_split_it_is_fedavg_of_equal_devices(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    ours = run(make_engine(kind, CFL(eps2=1e30, start=1, eps1=10.0), task, plan), 3)
    fedavg = run(make_engine(kind, FedAvg(), task, plan, TopologySettings(fogs=0, weighting="devices")), 3)
    assert gap(row(ours.kept(0, 0)["models"], 0), cloud(fedavg)) < 1e-13


@kinds
def test_parts_part_again(kind: str) -> None:
    """Four corners, three directions apart: at the mean of all, then at the means of the halves."""
    corners = [[5.0, 1.0], [5.0, -1.0], [-5.0, 1.0], [-5.0, -1.0]]
    engine = run(points(kind, [c for c in corners for _ in range(2)]), 80)
    found = clusters(engine, 8)
    assert len(set(found)) == 4
    assert [found[2 * i] == found[2 * i + 1] for i in range(4)] == [True] * 4
    got = [m.personal_pre["w"] for m in models(engine, np.arange(8), post=False)]
    for i in range(8):
        assert gap(got[i], torch.tensor(corners[i // 2], dtype=torch.float64)) < 1e-9


@kinds
@pytest.mark.parametrize("changes", [{"min_size": 3}, {"max_clusters": 1}, {"eps2": 0.6}, {"eps1": 0.0}])
def test_what_forbids_a_split(kind: str, changes: Any) -> None:
    """Four devices whose updates are 1/2 long."""
    assert clusters(run(points(kind, [1.0, -1.0, -1.0, 1.0], **changes), 3), 4) == [0] * 4


@kinds
def test_only_a_cluster_that_was_heard_as_a_whole_parts(kind: str) -> None:
    assert clusters(run(points(kind, [1.0, -1.0, -1.0, 1.0], Faults(loss=0.6)), 2), 4) == [0] * 4


def rule(**changes: Any) -> Splitter:
    task, _ = quad([0.0])
    (tier,) = CFL(**changes).tiers(task, (1, 2))
    assert isinstance(tier, Splitter)
    return tier


def test_the_units_of_eps1() -> None:
    """Updates (3, 0) and (-1, 0): the mean is 1 long, the longest 3."""
    delta = torch.tensor([[3.0, 0.0], [-1.0, 0.0]])
    assert rule(eps1=0.34).rests(delta)
    assert not rule(eps1=0.33).rests(delta)
    assert rule(eps1=1.1, units="absolute", eps2=2.9).rests(delta)
    assert not rule(eps1=1.0, units="absolute").rests(delta)
    assert not rule(eps1=1.1, units="absolute", eps2=3.0).rests(delta)


def test_two_ways_to_part() -> None:
    """Directions at 0, 25, 51, 76 and 120 degrees. Optimal: the widest gap, 76 to 120. Complete linkage: 0 and 25
    merge first, then 51 and 76, a pair that is 69 away from 120 and 76 from the first pair."""
    angles = np.deg2rad([0.0, 25.0, 51.0, 76.0, 120.0])
    directions = np.stack([np.cos(angles), np.sin(angles)], 1) * np.array([[1.0], [5.0], [2.0], [0.1], [3.0]])
    assert bipartition(directions, "optimal").tolist() == [False, False, False, False, True]
    assert bipartition(directions, "complete").tolist() == [False, False, True, True, True]
    assert bipartition(directions[:2], "complete").tolist() == [False, True]
    assert sorted(bipartition(np.ones((4, 2)), "optimal").tolist())[::3] == [False, True]
