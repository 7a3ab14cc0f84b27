"""JobFed's teams: directions, reclustering (T-15), its schedule, scope, and every option of it."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tierfed.algorithms.jobfed import JobFed
from tierfed.engine.base import Engine
from tierfed.errors import InputError
from tierfed.plan import Plan
from tierfed.task import Task
from tierfed.testing.toy import (
    ENGINES,
    cloud,
    gap,
    half_square,
    make_engine,
    run,
    toy_plan,
    toy_settings,
    toy_task,
    toy_teams,
)
from tierfed.topology import TopologySettings
from tierfed.tree import Tree, take, vector

kinds = pytest.mark.parametrize("kind", ENGINES)
Ids = npt.NDArray[np.int64]


def same_partition(a: Ids, b: Ids) -> bool:
    """Whether two namings put the same devices together."""
    return bool(((a[:, None] == a) == (b[:, None] == b)).all())


def rows(directions: Any, seen: list[float] | None = None) -> Tree:
    """What the fogs remember of devices with these directions [n, d]."""
    new = torch.tensor(np.asarray(directions), dtype=torch.float64)
    old = torch.arange(new.shape[1]).expand_as(new).double()
    return {"old": old, "new": old + new, "seen": torch.tensor(seen or [0.0] * len(new), dtype=torch.float64)}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), method=st.sampled_from(["average_linkage", "spherical_kmeans"]))
def test_T15_two_opposite_groups_are_found_from_any_start(seed: int, method: Any) -> None:
    rng = np.random.default_rng(seed)
    group = rng.permutation([0] * 5 + [1] * 3)
    v = rng.normal(size=6)
    directions = np.where(group[:, None] == 0, v, -v) * rng.uniform(0.1, 10, (8, 1)) + 1e-3 * rng.normal(size=(8, 6))
    start = rng.integers(0, 2, 8)
    algorithm = JobFed(clustering=method)
    found = algorithm.regroup(rows(directions), start, 2, 0)
    assert same_partition(found, group)
    again = algorithm.regroup(rows(directions + 1e-3 * rng.normal(size=(8, 6))), found, 2, 1)
    assert (again == found).all()
    # of the two namings, the one that moves fewer devices
    assert (found != start).sum() <= (1 - found != start).sum()


class Shift(nn.Module):
    """A batch norm on a sample [2]: its bias is what differs between devices, and what lies under it is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(x) * self.scale
        return out


def shifted(groups: list[int], seed: int = 0) -> tuple[Task, Plan]:
    """Devices whose targets are their inputs moved by +v or -v, so that the bias of the batch norm goes there."""
    rng = np.random.default_rng(seed)
    x = np.tile([[-1.0, 1.0], [1.0, -1.0]], (len(groups), 1))
    move = np.where(np.array(groups)[:, None] == 0, [1.0, -0.5], [-1.0, 0.5]) + 0.01 * rng.normal(size=(len(groups), 2))
    pairs = np.arange(2 * len(groups)).reshape(-1, 2)
    plan = Plan(
        x=torch.from_numpy(x),
        y=torch.from_numpy(x + np.repeat(move, 2, 0)),
        train=list(pairs),
        held=list(pairs),
        batch=None,
        dtype=torch.float64,
    )
    return Task(Shift().double(), half_square), plan


@kinds
@pytest.mark.parametrize("seed", range(4))
def test_T15_teams_become_the_groups_and_stay(kind: str, seed: int) -> None:
    """Random first teams (the seed's); one round is enough, and nobody moves in the next."""
    groups = [0, 1, 0, 0, 1, 1, 0, 1]
    engine = make_engine(kind, JobFed(), *shifted(groups), TopologySettings(fogs=2, teams="random"), seed=seed)
    start = engine.topology.parents[1].copy()
    log = engine.step()
    found = engine.topology.parents[1]
    assert same_partition(found, np.array(groups))
    assert sorted(log.moved) == [(i, start[i], found[i]) for i in range(8) if start[i] != found[i]]
    assert engine.step().moved == []
    assert (engine.topology.parents[1] == found).all()


@kinds
def test_T15_the_team_model_is_the_mean_of_the_new_team(kind: str) -> None:
    """After the move a fog averages its new members' batch norms: biases of the two teams have opposite signs."""
    groups = [0, 1, 0, 1]
    engine = make_engine(
        kind, JobFed(), *shifted(groups), TopologySettings(fogs=2, teams="natural"), natural=[0, 0, 1, 1]
    )
    run(engine, 2)
    for k in range(2):
        ids = engine.topology.children(1, k)
        mean = sum(engine.own(int(i))["own"]["norm.bias"] for i in ids) / len(ids)
        assert gap(engine.kept(1, k)["params"]["norm.bias"], mean) < 1e-14
    signs = [engine.kept(1, k)["params"]["norm.bias"][0].sign().item() for k in range(2)]
    assert sorted(signs) == [-1.0, 1.0]


@kinds
def test_clusters_inside_a_fog_never_leave_it(kind: str) -> None:
    """Two fogs of four devices, two clusters each: every fog finds the groups among its own devices."""
    groups = [0, 1, 0, 1, 1, 0, 1, 0]
    fogs = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    tree = TopologySettings(fogs=2, teams="natural", clusters=2)
    engine = make_engine(kind, JobFed(cluster_scope="inside_fog"), *shifted(groups), tree, seed=1, natural=fogs)
    start = engine.topology.parents[2].copy()
    run(engine, 1)
    found = engine.topology.parents[2]
    assert (engine.topology.parents[1][found] == fogs).all()
    assert same_partition(found, fogs * 2 + np.array(groups))
    assert (found != start).any()


def test_clusters_inside_a_fog_need_that_level() -> None:
    with pytest.raises(InputError, match=r"topology\.clusters"):
        JobFed(cluster_scope="inside_fog").tiers(toy_task(), (1, 3, 12))


@pytest.mark.parametrize(
    ("every", "start", "due"),
    [
        (1, 1, [1, 2, 3, 4, 5, 6, 7, 8]),
        (0, 1, []),
        (3, 1, [1, 4, 7]),
        (3, 2, [2, 5, 8]),
        (2, 5, [5, 7]),
        (3, 5, [5, 8]),
    ],
)
def test_schedule(every: int, start: int, due: list[int]) -> None:
    """Rounds counted from one."""
    algorithm = JobFed(recluster_every=every, recluster_start=start)
    assert [r + 1 for r in range(8) if algorithm.regroup_scope(r) == "fogs"] == due
    assert all(algorithm.regroup_scope(r) in ("", "fogs") for r in range(8))


@kinds
def test_the_engine_keeps_to_the_schedule(kind: str) -> None:
    groups, natural = [0, 1, 0, 1], [0, 0, 1, 1]
    tree = TopologySettings(fogs=2, teams="natural")
    engine = make_engine(kind, JobFed(recluster_start=3), *shifted(groups), tree, natural=natural)
    assert [bool(engine.step().moved) for _ in range(4)] == [False, False, True, False]
    still = make_engine(kind, JobFed(recluster_every=0), *shifted(groups), tree, natural=natural)
    run(still, 3)
    assert still.topology.parents[1].tolist() == natural
    assert still.store.ids("rows1") == []


def row(engine: Engine, device: int) -> Tree:
    (found,) = engine.rows(engine.depth - 1, np.array([device]))
    return found


@kinds
@pytest.mark.parametrize("team_rounds", [1, 2])
@pytest.mark.parametrize("direction", ["bn", "full", "np"])
def test_directions(kind: str, direction: Any, team_rounds: int) -> None:
    """bn, full: the change since the device's last round; np: since what its fog sent at the start of this round."""
    task, plan = toy_task(), toy_plan()
    tree = TopologySettings(fogs=4, teams="natural", team_rounds=team_rounds)
    algorithm = JobFed(direction=direction)
    engine = make_engine(kind, algorithm, task, plan, tree, natural=toy_teams())
    keys = {"bn": ["1.weight", "1.bias"], "full": task.keys, "np": ["0.weight", "0.bias", "3.weight", "3.bias"]}[
        direction
    ]
    before = {i: task.init() for i in range(12)}
    for round_ in range(2):
        received = cloud(engine)
        run(engine, 1)
        for i in range(12):
            now = engine.own(i)["own"]
            old = received if direction == "np" else before[i]
            assert gap(row(engine, i)["new"], vector(take(now, keys))) < 1e-14
            assert gap(row(engine, i)["old"], vector(take(old, keys))) < 1e-14
            assert float(row(engine, i)["seen"]) == round_
            before[i] = now


@kinds
def test_devices_without_a_new_visit_keep_their_last_direction(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    engine = make_engine(kind, JobFed(), task, plan, toy_settings(participation=0.5)["3 tiers"])
    run(engine, 3)
    known = engine.store.ids("rows1")
    seen = {i: int(row(engine, i)["seen"]) for i in known}
    rows_before = {i: row(engine, i) for i in known}
    log = engine.step()
    polled = {int(i) for b in log.bursts if b.depth == 1 for i in b.kids}
    assert polled
    assert set(known) - polled
    for i in known:
        if i in polled:
            assert int(row(engine, i)["seen"]) == 3 > seen[i]
        else:
            assert gap(row(engine, i), rows_before[i]) == 0.0


OPPOSITE = [[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]]


def test_staleness() -> None:
    """Round 12, seen in round 2 (10 rounds ago: counts) or 1 (11: keeps its team); team names follow the majority."""
    teams = np.array([0, 0, 1, 0])
    fresh = JobFed().regroup(rows(OPPOSITE, [2.0] * 4), teams, 2, 12)
    assert fresh.tolist() == [0, 0, 1, 1]
    stale = JobFed().regroup(rows(OPPOSITE, [2.0, 2.0, 2.0, 1.0]), teams, 2, 12)
    assert stale.tolist() == [0, 0, 1, 0]
    assert JobFed(staleness=11).regroup(rows(OPPOSITE, [2.0, 2.0, 2.0, 1.0]), teams, 2, 12).tolist() == [0, 0, 1, 1]
    assert JobFed(staleness=0).regroup(rows(OPPOSITE, [12.0, 12.0, 12.0, 11.0]), teams, 2, 12).tolist() == [0, 0, 1, 0]


def test_devices_that_did_not_move_keep_their_team() -> None:
    directions = [*OPPOSITE, [0.0, 0.0]]
    for team in (0, 1):
        teams = np.array([0, 1, 1, 0, team])
        found = JobFed().regroup(rows(directions), teams, 2, 0)
        assert found[4] == team
        assert same_partition(found[:4], np.array([0, 0, 1, 1]))


def test_min_team_size() -> None:
    """One device against four: a team of two takes the one of the four that is nearest to it, (0, 1)."""
    directions = [[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [0.6, 0.8], [-1.0, 0.2]]
    teams = np.array([0, 0, 0, 0, 1])
    assert JobFed().regroup(rows(directions), teams, 2, 0).tolist() == [0, 0, 0, 0, 1]
    assert JobFed(min_team_size=2).regroup(rows(directions), teams, 2, 0).tolist() == [0, 0, 0, 1, 1]
    # three teams' worth of devices are not there: nobody moves
    assert JobFed(min_team_size=3).regroup(rows(directions), teams, 2, 0).tolist() == teams.tolist()


@pytest.mark.parametrize(("method", "second"), [("average_linkage", 1), ("spherical_kmeans", 11)])
def test_the_two_ways_of_clustering(method: Any, second: int) -> None:
    """Ten devices at 0 degrees, ten at 50, one at 125.

    Average linkage joins the nearest means: 1 - cos 50 = .36 against 1 - cos 75 = .74, so the one stays alone. k-means
    weighs by number: (10 * 10 / 20) 2 (1 - cos 50) = 3.6, (10 * 1 / 11) 2 (1 - cos 75) = 1.3: the ten stay alone.
    """
    degrees = np.deg2rad([0.0] * 10 + [50.0] * 10 + [125.0])
    start = np.array([0] * 10 + [1] * 11)
    found = JobFed(clustering=method).regroup(rows(np.stack([np.cos(degrees), np.sin(degrees)], 1)), start, 2, 0)
    assert same_partition(found, np.array([0] * (21 - second) + [1] * second))


def test_one_team_or_too_few_directions_change_nothing() -> None:
    teams = np.array([0, 0, 1, 1])
    assert JobFed().regroup(rows([[0.0, 0.0]] * 3 + [[1.0, 0.0]]), teams, 2, 0).tolist() == teams.tolist()
    assert JobFed().regroup(rows(OPPOSITE), np.zeros(4, np.int64), 1, 0).tolist() == [0] * 4


@kinds
def test_a_model_without_batch_norm_has_no_direction(kind: str) -> None:
    tree = TopologySettings(fogs=4, teams="natural")
    engine = make_engine(kind, JobFed(), toy_task(norm=False), toy_plan(), tree, natural=toy_teams())
    run(engine, 2)
    assert engine.topology.parents[1].tolist() == toy_teams().tolist()
