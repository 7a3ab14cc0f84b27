"""L2GD: coins that all devices share, the iteration written out, its gradient and its limits."""

from typing import Any

import numpy as np
import pytest
import torch

from tierfed.algorithms.coins import failures, uniform
from tierfed.algorithms.l2gd import L2GD
from tierfed.engine.base import Engine
from tierfed.errors import InputError
from tierfed.faults import Faults
from tierfed.testing.toy import (
    DEVICES,
    ENGINES,
    cloud,
    gap,
    make_engine,
    quad,
    records,
    run,
    toy_plan,
    toy_settings,
    toy_task,
)
from tierfed.tree import add, scale, zeros

A = [-2.0, 1.0, 7.0]
kinds = pytest.mark.parametrize("kind", ENGINES)


def xs(engine: Engine, n: int = 3) -> list[float]:
    return [engine.own(i)["x"]["w"].item() for i in range(n)]


def test_failures_before_the_first_success() -> None:
    """At least k of them with probability (1 - p)^k: u = 0.3 lies between 1/4 and 1/2."""
    u = torch.tensor([0.9, 0.6, 0.3, 0.2, 0.1], dtype=torch.float64)
    assert failures(u, 0.5).tolist() == [0, 0, 1, 2, 3]
    assert failures(u, 0.75).tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_coins_of_successive_rounds_are_uniform_and_independent(seed: int, which: int) -> None:
    """n = 20000: mean 1/2 +- 4 / sqrt(12 n), correlation 0 +- 4 / sqrt(n); rounds in float32 draw the same."""
    u = uniform(seed, torch.arange(20000, dtype=torch.float32), which)
    assert float(u.mean()) == pytest.approx(0.5, abs=4 / np.sqrt(12 * 20000))
    both = np.corrcoef([u[:-1].numpy(), u[1:].numpy()])[0, 1]
    assert abs(both) < 4 / np.sqrt(20000)
    other = np.corrcoef([u.numpy(), uniform(seed, torch.arange(20000), 1 - which).numpy()])[0, 1]
    assert abs(other) < 4 / np.sqrt(20000)
    assert float(u[777]) == float(uniform(seed, torch.tensor(777.0, dtype=torch.float64), which))


@kinds
def test_T82_the_iteration_written_out(kind: str) -> None:
    """One coin after the other, xbar anew in each step; six steps fit into a visit, and some rounds need more."""
    lr, lam, p, most = 0.1, 0.4, 0.2, 6
    task, plan = quad(A, start=[4.0])
    engine = make_engine(kind, L2GD(lr=lr, lam=lam, p=p, steps=3, epochs=2, coins=1), task, plan)
    x, cut, cuts, drawn = np.full(3, 4.0), False, 0, []
    for _ in range(12):
        ones, left = (int(engine.kept(0, 0)[k]) for k in ("ones", "zeros"))
        assert (ones == 0) == cut
        assert left >= 1
        for _ in range(ones):
            x = x - lr * lam / p * (x - x.mean())
        for _ in range(min(left, most)):
            x = x - lr / (1 - p) * (x - np.array(A))
        run(engine, 1)
        assert xs(engine) == pytest.approx(x, abs=1e-12)
        assert cloud(engine)["w"].item() == pytest.approx(x.mean(), abs=1e-12)
        cut = left > most
        cuts += cut
        drawn.append((ones, left))
    assert 0 < cuts < 12
    assert len(set(drawn)) > 4


@pytest.mark.parametrize("x", [[-2 / 1.4 + 0.8 / 1.4, 1.8 / 1.4, 7.8 / 1.4], [0.3, -5.0, 2.0]])
def test_T82_a_step_is_the_gradient_on_average_and_zero_at_the_optimum(x: list[float]) -> None:
    """(1 - p) step(0) + p step(1) = -lr ((x - a) + lam (x - xbar)); optimum x_i = (a_i + lam abar) / (1 + lam)."""
    algorithm = L2GD(lr=0.1, lam=0.4, p=0.2, steps=1)
    task, plan = quad(A)
    mean = sum(x) / 3
    for i in range(3):

        def step(ones: float, left: float, i: int = i) -> float:
            msg: dict[str, Any] = {"params": {"w": torch.tensor([mean], dtype=torch.float64)}}
            msg |= {"ones": torch.tensor(ones).double(), "zeros": torch.tensor(left).double()}
            state = {"x": {"w": torch.tensor([x[i]], dtype=torch.float64)}}
            return float(algorithm.device(task, msg, state, plan.one(i, algorithm, 0, 0))[1]["x"]["w"]) - x[i]

        average = 0.8 * step(0, 1) + 0.2 * step(1, 0)
        gradient = (x[i] - A[i]) + 0.4 * (x[i] - mean)
        assert average == pytest.approx(-0.1 * gradient, abs=1e-14)
        assert (abs(gradient) < 1e-12) == (x[0] < 0)


@kinds
def test_T82_without_coupling_it_is_local_training(kind: str) -> None:
    task, plan = quad(A, start=[4.0])
    engine = make_engine(kind, L2GD(lr=0.1, lam=0.0, p=0.2, steps=50), task, plan)
    steps = 0
    for _ in range(3):
        steps += int(engine.kept(0, 0)["zeros"])
        run(engine, 1)
    assert xs(engine) == pytest.approx([a + 0.875**steps * (4.0 - a) for a in A], abs=1e-12)


@kinds
def test_T82_a_full_step_leads_to_the_mean(kind: str) -> None:
    """lr lam / p = 1: after averaging all are at xbar, so a round is FedAvg's with B local steps."""
    task, plan = quad(A, start=[4.0])
    engine = make_engine(kind, L2GD(lr=0.2, lam=1.0, p=0.2, steps=50), task, plan)
    x = 4.0
    for _ in range(3):
        left = int(engine.kept(0, 0)["zeros"])
        run(engine, 1)
        assert xs(engine) == pytest.approx([a + 0.75**left * (x - a) for a in A], abs=1e-12)
        x = sum(xs(engine)) / 3


@kinds
@pytest.mark.parametrize("tree", ["flat", "3 tiers"])
def test_silent_devices_stay_in_the_mean(kind: str, tree: str) -> None:
    """N xbar and what is still owed are the sum of all x_i, polled or not."""
    task, plan = toy_task(), toy_plan()
    settings = toy_settings(participation=0.5)[tree]
    engine = run(make_engine(kind, L2GD(steps=2), task, plan, settings, Faults(loss=0.4)), 4)
    total, arrived = zeros(cloud(engine)), scale(cloud(engine), DEVICES)
    for i in range(DEVICES):
        total = add(total, engine.own(i)["x"])
    for (table, _), record in records(engine).items():
        arrived = add(arrived, record["moved"]) if table.startswith("owed") else arrived
    assert gap(total, arrived) < 1e-11
    assert any(table.startswith("owed") for table, _ in records(engine))


def test_one_exchange_a_round() -> None:
    """Down the mean and two numbers, up the change, eight bytes each."""
    task, plan = quad(A)
    sent = make_engine("serial", L2GD(), task, plan).step().link_bytes()
    assert sent == {(0, "down"): 3 * 8 * 3, (0, "up"): 3 * 8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 0.0}, "wanted 0 < p < 1"),
        ({"p": 1.0}, "wanted 0 < p < 1"),
        ({"steps": None}, "set algorithm.steps"),
        ({"lr": 0.3, "lam": 1.0, "p": 0.1}, "wanted lr <= p / lam = 0.1"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        L2GD(**settings).tiers(toy_task(), (1, 4))
