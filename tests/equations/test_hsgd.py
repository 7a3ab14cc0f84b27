"""h-SGD: HierFAVG where every child counts alike. With a step of 1 device i answers a_i."""

import pytest

from tierfed.algorithms import make
from tierfed.testing.toy import ENGINES, cloud, gap, make_engine, quad, run, toy_plan, toy_settings, toy_task
from tierfed.topology import TopologySettings

A = [0.0, 3.0, 6.0, 30.0]
SIZES = [1, 2, 3, 4]
kinds = pytest.mark.parametrize("kind", ENGINES)


@kinds
def test_devices_count_alike_in_a_team_and_teams_at_the_cloud(kind: str) -> None:
    """((0 + 3 + 6) / 3 + 30) / 2"""
    task, plan = quad(A, sizes=SIZES)
    settings = TopologySettings(fogs=2, teams="natural")
    engine = run(make_engine(kind, make("h-sgd", {"lr": 1.0}), task, plan, settings, natural=[0, 0, 0, 1]), 1)
    assert cloud(engine)["w"].item() == pytest.approx(16.5, abs=1e-13)
    assert engine.kept(1, 0)["params"]["w"].item() == pytest.approx(3.0, abs=1e-13)


@kinds
def test_flat_it_is_the_plain_mean(kind: str) -> None:
    task, plan = quad(A, sizes=SIZES)
    assert cloud(run(make_engine(kind, make("h-sgd", {"lr": 1.0}), task, plan), 1))["w"].item() == pytest.approx(9.75)


@kinds
def test_T65_team_rounds_compose(kind: str) -> None:
    """x <- rho^K x + (1 - rho^K) (mean of team means), rho = (1 - s)^L: from 2, abar = 16.5."""
    task, plan = quad(A, start=[2.0], sizes=SIZES)
    settings = TopologySettings(fogs=2, teams="natural", team_rounds=3)
    algorithm = make("h-sgd", {"lr": 0.1, "epochs": 2})
    engine = run(make_engine(kind, algorithm, task, plan, settings, natural=[0, 0, 0, 1]), 1)
    assert cloud(engine)["w"].item() == pytest.approx(0.9**6 * 2 + (1 - 0.9**6) * 16.5, abs=1e-13)


@kinds
def test_it_is_hierfavg_with_children_as_the_unit(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    ours = run(make_engine(kind, make("h-sgd"), task, plan, toy_settings()["4 tiers"]), 2)
    settings = toy_settings(weighting="children")["4 tiers"]
    assert gap(cloud(ours), cloud(run(make_engine(kind, make("hierfavg"), task, plan, settings), 2))) == 0.0
