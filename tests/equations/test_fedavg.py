"""FedAvg, HierFAVG and FedProx on QUAD: after K full-batch steps, theta_i = a_i + (1 - s)^K (x - a_i)."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tierfed.algorithms.fedavg import FedAvg
from tierfed.testing.toy import ENGINES, cloud, gap, make_engine, quad, run, toy_plan, toy_settings, toy_task
from tierfed.topology import TopologySettings

A = [[-2.0, 1.0], [0.0, 2.0], [1.0, 0.5], [5.0, -1.0]]
START = [3.0, -4.0]
SIZES = [1, 2, 3, 4]
MEAN = [(-2 + 0 + 3 + 20) / 10, (1 + 4 + 1.5 - 4) / 10]  # sum n_i a_i / sum n_i
TEAMS = [0, 1, 0, 1]
kinds = pytest.mark.parametrize("kind", ENGINES)


def fogs(count: int, **changes: object) -> TopologySettings:
    return TopologySettings(fogs=count, teams="natural", **changes)  # type: ignore[arg-type]


@kinds
@pytest.mark.parametrize("steps", [1, 3])
def test_T62_a_round_moves_to_the_weighted_mean_of_the_optima(kind: str, steps: int) -> None:
    task, plan = quad(A, start=START, sizes=SIZES)
    x = cloud(run(make_engine(kind, FedAvg(lr=0.1, epochs=steps), task, plan), 1))["w"]
    rho = 0.9**steps
    assert x.tolist() == pytest.approx([rho * b + (1 - rho) * m for b, m in zip(START, MEAN, strict=True)], abs=1e-14)


@kinds
def test_T63_local_steps_pull_the_fixed_point_off_the_optimum(kind: str) -> None:
    h, a = (0.5, 1.0, 2.0, 4.0), (-2.0, 0.0, 1.0, 5.0)
    task, plan = quad(a, h=h)
    x = cloud(run(make_engine(kind, FedAvg(lr=0.1, epochs=5), task, plan), 32))["w"]
    pull = [1 - (1 - 0.1 * hi) ** 5 for hi in h]
    fixed = sum(p * ai for p, ai in zip(pull, a, strict=True)) / sum(pull)
    assert fixed == pytest.approx(2.1661236456877, abs=1e-12)
    assert x.item() == pytest.approx(fixed, abs=1e-10)
    x = cloud(run(make_engine(kind, FedAvg(lr=0.4, epochs=1), task, plan), 25))["w"]
    assert x.item() == pytest.approx(2.8, abs=1e-10)  # sum h_i a_i / sum h_i = 21 / 7.5


def test_T64_one_full_batch_is_one_gradient_step_on_the_weighted_loss() -> None:
    task, plan = toy_task(norm=False), toy_plan(batch=None)
    new = cloud(run(make_engine("vectorized", FedAvg(lr=0.3), task, plan), 1))
    net, rows = task.module, torch.from_numpy(np.concatenate(plan.train))
    cross_entropy(net(plan.x[rows]), plan.y[rows]).backward()
    want = {k: p.detach() - 0.3 * p.grad for k, p in net.named_parameters() if p.grad is not None}
    assert gap(new, want) < 1e-13


@kinds
def test_T65_team_rounds_compose(kind: str) -> None:
    task, plan = quad(A, start=START, sizes=SIZES)
    engine = make_engine(kind, FedAvg(lr=0.1, epochs=2, edge=True), task, plan, fogs(2, team_rounds=3), natural=TEAMS)
    x = cloud(run(engine, 1))["w"]
    rho = 0.9 ** (2 * 3)
    assert x.tolist() == pytest.approx([rho * b + (1 - rho) * m for b, m in zip(START, MEAN, strict=True)], abs=1e-14)
    # team 0: devices 0 and 2 with weights 1 and 3
    mine = [rho * START[0] + (1 - rho) * (-2 + 3 * 1) / 4, rho * START[1] + (1 - rho) * (1 + 3 * 0.5) / 4]
    assert engine.kept(1, 0)["params"]["w"].tolist() == pytest.approx(mine, abs=1e-14)


@kinds
def test_T66_one_team_round_is_fedavg(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    flat = run(make_engine(kind, FedAvg(), task, plan), 2)
    for name in ("3 tiers", "4 tiers", "clusters"):
        tree = run(make_engine(kind, FedAvg(edge=True), task, plan, toy_settings()[name]), 2)
        assert gap(cloud(tree), cloud(flat)) < 1e-13, name


@kinds
def test_T66_one_fog_with_two_team_rounds_is_two_rounds(kind: str) -> None:
    task, plan = toy_task(), toy_plan(batch=None)
    flat = run(make_engine(kind, FedAvg(), task, plan), 4)
    one = run(make_engine(kind, FedAvg(edge=True), task, plan, TopologySettings(fogs=1, team_rounds=2)), 2)
    assert gap(cloud(one), cloud(flat)) < 1e-12


@kinds
def test_T66_teams_of_one_with_two_team_rounds_take_twice_the_local_steps(kind: str) -> None:
    task, plan = toy_task(), toy_plan(batch=None)
    flat = run(make_engine(kind, FedAvg(epochs=2), task, plan), 2)
    n = len(plan.samples)
    engine = make_engine(kind, FedAvg(edge=True, epochs=1), task, plan, fogs(n, team_rounds=2), natural=np.arange(n))
    assert gap(cloud(run(engine, 2)), cloud(flat)) < 1e-12


@kinds
def test_server_lr_is_the_step_of_the_cloud_alone(kind: str) -> None:
    """x <- x + server_lr (mean - x); with lr = 1 every device answers a_i, and fogs average fully."""
    task, plan = quad(A, start=START, sizes=SIZES)
    algorithm = FedAvg(lr=1.0, edge=True, server_lr=0.25)
    engine = run(make_engine(kind, algorithm, task, plan, fogs(2), natural=TEAMS), 1)
    want = [0.75 * b + 0.25 * m for b, m in zip(START, MEAN, strict=True)]
    assert cloud(engine)["w"].tolist() == pytest.approx(want, abs=1e-14)
    assert engine.kept(1, 0)["params"]["w"].tolist() == pytest.approx([0.25, 0.625], abs=1e-14)


def test_T69_a_proximal_weight_of_zero_changes_no_bit() -> None:
    task, plan = toy_task(), toy_plan()
    data, x = plan.one(3, FedAvg(epochs=2), 0, 0), task.init()
    assert gap(task.train(x, data, 0.1, pull=(0.0, x)), task.train(x, data, 0.1)) == 0.0
    tiny = run(make_engine("vectorized", FedAvg(mu=1e-12), task, plan), 2)
    assert gap(cloud(tiny), cloud(run(make_engine("vectorized", FedAvg(), task, plan), 2))) < 1e-9


@kinds
@pytest.mark.parametrize("mu", [0.5, 3.0])
def test_T70_fedprox_closed_form(kind: str, mu: float) -> None:
    """theta_i = t_i + (1 - s (1 + mu))^K (x - t_i) with t_i = (a_i + mu x) / (1 + mu); the mean is linear in a."""
    task, plan = quad(A, start=START, sizes=SIZES)
    x = cloud(run(make_engine(kind, FedAvg(lr=0.1, epochs=4, mu=mu), task, plan), 1))["w"]
    for b, m, got in zip(START, MEAN, x.tolist(), strict=True):
        target = (m + mu * b) / (1 + mu)
        assert got == pytest.approx(target + (1 - 0.1 * (1 + mu)) ** 4 * (b - target), abs=1e-14)


def test_the_proximal_term_leaves_batch_norm_statistics_alone() -> None:
    """A pull so strong that the parameters stay at the anchor: the statistics still follow the data (momentum 1/10)."""
    task, plan = toy_task(), toy_plan(batch=None)
    algorithm = FedAvg(lr=1e-9, mu=1e3, epochs=2)
    new, old = cloud(run(make_engine("vectorized", algorithm, task, plan), 1)), task.init()
    hidden = [plan.x[torch.from_numpy(rows)] @ old["0.weight"].T + old["0.bias"] for rows in plan.train]
    mean = sum(len(z) * z.mean(0) for z in hidden) / plan.samples.sum()
    assert gap(new["1.running_mean"], (1 - 0.9**2) * mean) < 1e-7
    assert gap({k: new[k] for k in task.trainable}, {k: old[k] for k in task.trainable}) < 1e-7


@kinds
def test_weight_decay_is_part_of_the_loss(kind: str) -> None:
    task, plan = quad([4.0], start=[1.0], weight_decay=0.5)
    x = cloud(run(make_engine(kind, FedAvg(lr=0.1), task, plan), 1))["w"]
    assert x.item() == pytest.approx(1.0 - 0.1 * ((1.0 - 4.0) + 0.5 * 1.0), abs=1e-15)


def test_team_rounds_make_the_grouping_matter() -> None:
    """Two team rounds from x = 0 with lr 1/4, h = (1, 2), a = (0, 4): theta_0 = 3/4 x and theta_1 = x/2 + 2.

    In one team: (0 + 2) / 2 = 1, then (3/4 + 5/2) / 2 = 13/8. Each on its own: 0, and 2 then 3; mean 3/2.
    """
    task, plan = quad([0.0, 4.0], h=[1.0, 2.0])
    for teams, want in (([0, 0], 13 / 8), ([0, 1], 3 / 2)):
        settings = fogs(max(teams) + 1, team_rounds=2)
        engine = make_engine("serial", FedAvg(lr=0.25, edge=True), task, plan, settings, natural=teams)
        assert cloud(run(engine, 1))["w"].item() == pytest.approx(want, abs=1e-14)
