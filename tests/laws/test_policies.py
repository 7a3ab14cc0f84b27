"""How replies are weighed: every policy in both engines, and by hand on QUAD with a step of 1: device i answers a_i."""

from itertools import product

import numpy as np
import pytest

from laws.cases import CASES
from tierfed.algorithms.fedavg import FedAvg
from tierfed.engine.base import Engine
from tierfed.faults import Faults
from tierfed.testing.toy import ENGINES, apart, cloud, make_engine, quad, run, toy_task
from tierfed.testing.trees import FLOAT64, Exactly, happened, small_plan, trace, trees
from tierfed.topology import TopologySettings

EDGE = ("hierfavg", "scaffold, edge", "jobfed", "jobfed, team")
TEAMS = [0, 0, 0, 1]
A = [0.0, 3.0, 6.0, 30.0]


def _places() -> list[tuple[str, str, tuple[str, str, str]]]:
    """Every algorithm with every policy, and every policy on every tree."""
    policies = product(("samples", "devices", "children"), ("active", "all"), ("skip", "stale"))
    far = ("3 tiers", "4 tiers", "clusters")
    return [(name, far[(i + j) % 3], p) for j, p in enumerate(policies) for i, name in enumerate(EDGE)]


@pytest.mark.parametrize(("name", "tree", "policy"), _places())
def test_engines_agree_under_every_policy(name: str, tree: str, policy: tuple[str, str, str]) -> None:
    weighting, over, empty = policy
    task, plan = toy_task(), small_plan(largest=9, batch=5)
    settings = trees(0.6, weighting=weighting, over=over, empty=empty)[tree]
    serial, vectorized = (
        trace(make_engine(kind, CASES[name], task, plan, settings, Faults(loss=0.5)), 2) for kind in ENGINES
    )
    assert [happened(log) for log in serial.logs] == [happened(log) for log in vectorized.logs]
    assert apart(serial.engine, vectorized.engine) <= FLOAT64


def mean(
    kind: str,
    *,
    edge: bool = True,
    sizes: tuple[int, ...] = (2, 2, 2, 2),
    faults: Faults | None = None,
    participation: tuple[float | int, ...] = (1.0, 1.0),
    weighting: str = "auto",
    over: str = "active",
    empty: str = "skip",
) -> Engine:
    """One round of FedAvg over the teams {0, 3, 6} and {30}, from w = 0."""
    task, plan = quad(A, sizes=sizes)
    settings = TopologySettings(
        fogs=2,
        teams="natural",
        participation=participation,
        weighting=weighting,  # type: ignore[arg-type]
        over=over,  # type: ignore[arg-type]
        empty=empty,  # type: ignore[arg-type]
    )
    return run(make_engine(kind, FedAvg(lr=1.0, edge=edge), task, plan, settings, faults, natural=TEAMS), 1)


@pytest.mark.parametrize("kind", ENGINES)
class TestByHand:
    def test_samples(self, kind: str) -> None:
        """(2*0 + 2*3 + 4*6 + 8*30) / 16"""
        assert float(cloud(mean(kind, sizes=(2, 2, 4, 8)))["w"]) == pytest.approx(16.875, abs=1e-12)

    def test_devices(self, kind: str) -> None:
        """(0 + 3 + 6 + 30) / 4, however many samples they have"""
        assert float(cloud(mean(kind, sizes=(2, 2, 4, 8), weighting="devices"))["w"]) == pytest.approx(9.75, abs=1e-12)

    def test_children(self, kind: str) -> None:
        """((0 + 3 + 6) / 3 + 30) / 2"""
        assert float(cloud(mean(kind, sizes=(2, 2, 4, 8), weighting="children"))["w"]) == pytest.approx(16.5, abs=1e-12)

    def test_children_of_relays_are_the_devices(self, kind: str) -> None:
        engine = mean(kind, edge=False, sizes=(2, 2, 4, 8), weighting="children")
        assert float(cloud(engine)["w"]) == pytest.approx(9.75, abs=1e-12)

    def test_over_all_counts_the_silent_as_unchanged(self, kind: str) -> None:
        """Fog 0 hears one of three: a_j / 3; fog 1 hears its one: 30. The cloud heard two of four devices."""
        engine = mean(kind, participation=(1.0, 1), weighting="devices", over="all")
        (j,) = engine.topology.poll(1, 0, 0, 0)
        assert float(cloud(engine)["w"]) == pytest.approx((A[j] / 3 + 30) / 2 * 2 / 4, abs=1e-12)

    @pytest.mark.parametrize(("empty", "want"), [("skip", 30.0), ("stale", (3 * 0 + 1 * 30) / 4)])
    def test_a_fog_that_hears_nobody(self, kind: str, empty: str, want: float) -> None:
        faults = Exactly(lost_at=tuple((2, i, 0) for i in range(3)))
        engine = mean(kind, faults=faults, weighting="devices", empty=empty)
        assert float(cloud(engine)["w"]) == pytest.approx(want, abs=1e-12)

    def test_a_relay_that_hears_nobody_is_never_stale(self, kind: str) -> None:
        faults = Exactly(lost_at=tuple((2, i, 0) for i in range(3)))
        engine = mean(kind, faults=faults, edge=False, weighting="devices", empty="stale")
        assert float(cloud(engine)["w"]) == pytest.approx(30.0, abs=1e-12)

    def test_an_empty_team_weighs_nothing(self, kind: str) -> None:
        task, plan = quad(A)
        settings = TopologySettings(fogs=3, teams="natural", weighting="children", over="all")
        engine = make_engine(kind, FedAvg(lr=1.0, edge=True), task, plan, settings, natural=[0, 1, 2, 2])
        engine.set_topology(engine.topology.regrouped(np.array([0, 0, 0, 2])))
        run(engine, 1)
        assert float(cloud(engine)["w"]) == pytest.approx((3.0 + 30.0) / 2, abs=1e-12)
