"""AL2GD: the iteration over known teams written out, its gradient, and the optimum of the three levels."""

from typing import Any

import numpy as np
import pytest
import torch

from tierfed.algorithms.al2gd import AL2GD
from tierfed.errors import InputError
from tierfed.testing.toy import ENGINES, cloud, make_engine, quad, run, toy_task
from tierfed.topology import TopologySettings

A = np.array([-2.0, 1.0, 0.0, 5.0])
kinds = pytest.mark.parametrize("kind", ENGINES)


def means(theta: Any, teams: list[int], gamma: float, lam: float) -> tuple[Any, float, Any]:
    """wbar of each device's team [N], xbar, alpha of each device's team [N]."""
    team = np.array(teams)
    wbar = np.array([theta[team == k].mean() for k in team])
    alpha = np.array([lam / (lam + gamma * (team == k).sum()) for k in team])
    pulls = gamma * alpha  # sum_j alpha_j sum_i gamma theta / sum_j alpha_j sum_i gamma, as the paper weighs
    return wbar, float((pulls * theta).sum() / pulls.sum()), alpha


@kinds
@pytest.mark.parametrize("teams", [[0, 1, 0, 1], [0, 0, 0, 1]])
def test_T83_the_iteration_written_out(kind: str, teams: list[int]) -> None:
    """Per round a network step, a team step or neither (what was cut goes on), then up to four local ones."""
    lr, gamma, lam, tau, p0, p1 = 0.08, 0.7, 1.3, 0.4, 0.25, 0.2
    rest = 1 - p0
    task, plan = quad(A.tolist(), start=[4.0], sizes=[1, 2, 3, 4])
    algorithm = AL2GD(lr=lr, steps=2, epochs=2, gamma=gamma, lam=lam, tau=tau, p0=p0, p1=p1)
    settings = TopologySettings(fogs=2, teams="natural")
    engine = make_engine(kind, algorithm, task, plan, settings, natural=teams)
    theta, seen, cut = np.full(4, 4.0), [], False
    for _ in range(14):
        coins = {k: int(v) for k, v in engine.kept(0, 0)["coins"].items()}
        wbar, xbar, alpha = means(theta, teams, gamma, lam)
        assert coins["network"] + coins["team"] == (0 if cut else 1)
        if coins["network"]:
            to_x, to_w = alpha * (theta - xbar), tau * (1 - alpha) * (theta - wbar)
            theta = theta - lr * gamma / p0 * (to_x + to_w)
        elif coins["team"]:
            theta = theta - lr * gamma * (1 - tau) / (rest * p1) * (1 - alpha) * (theta - wbar)
        for _ in range(min(coins["local"], 4)):
            theta = theta - lr / (rest * (1 - p1)) * (theta - A)
        run(engine, 1)
        wbar, xbar, _ = means(theta, teams, gamma, lam)
        assert [engine.own(i)["theta"]["w"].item() for i in range(4)] == pytest.approx(theta, abs=1e-12)
        assert [engine.kept(1, k)["params"]["w"].item() for k in teams] == pytest.approx(wbar, abs=1e-12)
        assert cloud(engine)["w"].item() == pytest.approx(xbar, abs=1e-12)
        cut = coins["local"] >= 4
        seen.append("network" if coins["network"] else "team" if coins["team"] else "neither")
    assert set(seen) == {"network", "team", "neither"}


@pytest.mark.parametrize("at_optimum", [True, False])
def test_T83_a_step_is_the_gradient_on_average_and_zero_at_the_optimum(at_optimum: bool) -> None:
    """gamma = 1.5, lam = 0.5, teams {-2, 0} and {1, 5}: c = 3/5, w = (2 c abar + lam x) / (2 c + lam), x = 1;
    theta = (a + gamma w) / (1 + gamma). alpha = 0.5 / (0.5 + 3) = 1/7."""
    teams = [0, 1, 0, 1]
    w = np.array([(1.2 * -1 + 0.5) / 1.7, (1.2 * 3 + 0.5) / 1.7])[teams]
    theta = (A + 1.5 * w) / 2.5 if at_optimum else np.array([0.3, -5.0, 2.0, 1.0])
    wbar, xbar, alpha = means(theta, teams, 1.5, 0.5)
    assert alpha.tolist() == pytest.approx([1 / 7] * 4)
    algorithm = AL2GD(lr=0.05, gamma=1.5, lam=0.5, tau=0.3, p0=0.2, p1=0.5, steps=1)
    task, plan = quad(A.tolist())

    def step(i: int, network: float, team: float, local: float) -> float:
        def number(value: float) -> torch.Tensor:
            return torch.tensor(float(value), dtype=torch.float64)

        msg: dict[str, Any] = {
            "params": {"w": number(xbar)[None]},
            "team": {"w": number(wbar[i])[None]},
            "alpha": number(alpha[i]),
            "coins": {"network": number(network), "team": number(team), "local": number(local)},
        }
        state = {"theta": {"w": number(theta[i])[None]}}
        new = algorithm.device(task, msg, state, plan.one(i, algorithm, 0, 0))[1]["theta"]["w"]
        return float(new) - float(theta[i])

    for i in range(4):
        average = 0.2 * step(i, 1, 0, 0) + 0.8 * 0.5 * step(i, 0, 1, 0) + 0.8 * 0.5 * step(i, 0, 0, 1)
        gradient = theta[i] - A[i] + 1.5 * (theta[i] - (1 - alpha[i]) * wbar[i] - alpha[i] * xbar)
        assert average == pytest.approx(-0.05 * gradient, abs=1e-14)
        assert (abs(gradient) < 1e-13) == at_optimum


@kinds
def test_a_flat_tree_is_one_team(kind: str) -> None:
    """Then w = x, alpha = 0: every step of either kind is a pull to the mean of all."""
    task, plan = quad(A.tolist(), start=[4.0])
    engine = make_engine(kind, AL2GD(lr=0.08, steps=4, gamma=0.7, tau=0.4, p0=0.25, p1=0.2), task, plan)
    theta = np.full(4, 4.0)
    for _ in range(8):
        coins = {k: int(v) for k, v in engine.kept(0, 0)["coins"].items()}
        near = 0.08 * 0.7 * (coins["network"] * 0.4 / 0.25 + coins["team"] * 0.6 / (0.75 * 0.2))
        theta = theta - near * (theta - theta.mean())
        theta = A + (1 - 0.08 / (0.75 * 0.8)) ** min(coins["local"], 4) * (theta - A)
        run(engine, 1)
    assert [engine.own(i)["theta"]["w"].item() for i in range(4)] == pytest.approx(theta, abs=1e-12)
    assert cloud(engine)["w"].item() == pytest.approx(theta.mean(), abs=1e-12)


def test_the_coins_have_their_probabilities() -> None:
    """p0 = 0.2, p1 = 0.5: 0.4 of the steps are local, 0.2 / 0.6 of the others the network's, then 0.4 / 0.6 local."""
    (cloud_tier,) = AL2GD(p0=0.2, p1=0.5).tiers(toy_task(), (1, 4))
    zero = torch.tensor(0.0, dtype=torch.float64)
    draws = [cloud_tier.draw(torch.tensor(float(t)), zero > 0, zero) for t in range(4000)]  # type: ignore[attr-defined]
    network = np.mean([float(d["network"]) for d in draws])
    assert network == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / 4000))
    assert all(d["network"] + d["team"] == 1 for d in draws)
    assert np.mean([float(d["local"]) for d in draws]) == pytest.approx(2 / 3, abs=4 * np.sqrt(10 / 9 / 4000))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p0": 1.0}, "both must lie between 0 and 1"),
        ({"p1": 0.0}, "both must lie between 0 and 1"),
        ({"steps": None}, "set algorithm.steps"),
        ({"lr": 0.2}, "wanted lr <= 0.1"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AL2GD(**settings).tiers(toy_task(), (1, 2, 4))
