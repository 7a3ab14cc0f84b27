"""FedAMP and HeurFedAMP: the attention weights by hand, the fixed point on QUAD, and what is left without a pull."""

from typing import Any

import pytest
import torch

from tierfed.algorithms.fedamp import Attention, FedAMP
from tierfed.algorithms.keep_local import KeepLocal
from tierfed.testing.toy import ENGINES, gap, make_engine, quad, run, toy_plan, toy_task

kinds = pytest.mark.parametrize("kind", ENGINES)


def attention(**changes: Any) -> Attention:
    task, _ = quad([0.0])
    (tier,) = FedAMP(**changes).tiers(task, (1, 3))
    assert isinstance(tier, Attention)
    return tier


def points(*values: Any) -> dict[str, torch.Tensor]:
    t = torch.tensor(values, dtype=torch.float64)
    return {"w": t[:, None] if t.dim() == 1 else t}


def column(engine: Any, n: int) -> torch.Tensor:
    return torch.stack([engine.own(i)["theta"]["w"][0] for i in range(n)])


def test_T85_weights_by_hand() -> None:
    """theta = (0, 1, 3), sigma = 2, alpha = 1/2: xi_ij = 1/4 exp(-|.|^2 / 2) with squares 1, 9, 4."""
    e = [0.25 * torch.exp(torch.tensor(-x / 2, dtype=torch.float64)).item() for x in (1.0, 9.0, 4.0)]
    want = [[1 - e[0] - e[1], e[0], e[1]], [e[0], 1 - e[0] - e[2], e[2]], [e[1], e[2], 1 - e[1] - e[2]]]
    got = attention(alpha=0.5, sigma=2.0).xi(points(0.0, 1.0, 3.0))
    assert gap(got, torch.tensor(want, dtype=torch.float64)) < 1e-15


def test_sigma_is_the_median_of_the_squared_distances() -> None:
    """Squares 1, 9, 4: the median is 4."""
    given = attention(alpha=0.5, sigma=4.0).xi(points(0.0, 1.0, 3.0))
    assert gap(attention(alpha=0.5).xi(points(0.0, 1.0, 3.0)), given) < 1e-15


def test_T85_weights_are_symmetric_and_convex_whatever_alpha_is() -> None:
    """alpha = 100 would make the self weights negative: all others are cut by one factor, the largest sum to 1."""
    xi = attention(alpha=100.0, sigma=1.0).xi(points(0.0, 1.0, 3.0))
    assert torch.equal(xi, xi.T)
    assert gap(xi.sum(1), torch.ones(3, dtype=torch.float64)) < 1e-15
    assert float(xi.min()) >= 0.0
    assert float(xi[1, 1]) == pytest.approx(0.0, abs=1e-15)
    assert float(xi[0, 1] / xi[1, 2]) == pytest.approx(float(torch.exp(torch.tensor(3.0))), rel=1e-6)


def test_T85_a_wide_sigma_leaves_everybody_alone() -> None:
    """xi -> alpha / sigma -> 0"""
    xi = attention(sigma=1e6).xi(points(0.0, 1.0, 3.0))
    assert gap(xi, torch.eye(3, dtype=torch.float64)) == pytest.approx(2e-6, rel=1e-4)


def test_equal_models_stay_equal() -> None:
    xi = attention().xi(points(2.0, 2.0, 2.0))
    assert gap(xi @ points(2.0, 2.0, 2.0)["w"], points(2.0, 2.0, 2.0)["w"]) < 1e-15
    assert attention().xi(points(5.0)).tolist() == [[1.0]]


def test_heurfedamp_by_hand() -> None:
    """Cosines of (1, 0), (0, 2), (3, 3): 0 and sqrt(1/2); own weight 1/4, sigma = 2."""
    s = float(torch.exp(torch.tensor(2.0, dtype=torch.float64) * 0.5**0.5))
    near, far = 0.75 * s / (1 + s), 0.75 / (1 + s)
    want = [[0.25, far, near], [far, 0.25, near], [0.375, 0.375, 0.25]]
    got = attention(attention="cosine", sigma=2.0, self_weight=0.25).xi(points([1.0, 0.0], [0.0, 2.0], [3.0, 3.0]))
    assert gap(got, torch.tensor(want, dtype=torch.float64)) < 1e-15
    even = attention(attention="cosine").xi(points([1.0, 0.0], [2.0, 0.0], [5.0, 0.0]))
    assert gap(even, torch.full((3, 3), 1 / 3, dtype=torch.float64)) < 1e-15


@kinds
def test_one_round_by_hand(kind: str) -> None:
    """theta = (0, 2), sigma = 4, alpha = 1: xi = exp(-1) / 4 = e, u = (2 e, 2 - 2 e). A step of 1/4 on
    (theta - a)^2 / 2 + 1/2 (theta - u)^2 from u, where the pull is zero: theta = u - (u - a) / 4."""
    task, plan = quad([8.0, -4.0])
    engine = make_engine(kind, FedAMP(lr=0.25, sigma=4.0), task, plan)
    for i, row in enumerate((0.0, 2.0)):
        engine.put_row(0, i, {"theta": {"w": torch.tensor([row], dtype=torch.float64)}})
    run(engine, 1)
    e = float(torch.exp(torch.tensor(-1.0, dtype=torch.float64))) / 4
    assert column(engine, 2).tolist() == pytest.approx([1.5 * e + 2, 0.75 * (2 - 2 * e) - 1], abs=1e-14)


@kinds
def test_T85_fixed_point(kind: str) -> None:
    """((1 + lam / alpha) I - lam / alpha Xi) theta = a; one step of 1 / (1 + lam / alpha) is the exact minimum."""
    a, lam, alpha = [0.0, 1.0, 3.0, 3.5], 2.0, 0.5
    task, plan = quad(a)
    algorithm = FedAMP(lr=1 / (1 + lam / alpha), lam=lam, alpha=alpha, sigma=4.0)
    engine = run(make_engine(kind, algorithm, task, plan), 300)
    theta, pull = column(engine, 4), lam / alpha
    xi = attention(alpha=alpha, sigma=4.0).xi({"w": theta[:, None]})
    assert gap((1 + pull) * theta - pull * xi @ theta, torch.tensor(a, dtype=torch.float64)) < 1e-10
    assert gap(theta, torch.tensor(a, dtype=torch.float64)) > 0.1


@kinds
def test_T85_without_a_pull_it_is_local_only(kind: str) -> None:
    """From its own model: local training, bit by bit; from u_i on QUAD: the minimum of its own loss."""
    task, plan = toy_task(), toy_plan()
    amp = run(make_engine(kind, FedAMP(lam=0.0, start="own"), task, plan), 3)
    local = run(make_engine(kind, KeepLocal(private="all"), task, plan), 3)
    assert [gap(amp.own(i)["theta"], local.own(i)["own"]) for i in range(12)] == [0.0] * 12
    task, plan = quad([1.0, 2.0, 5.0])
    exact = run(make_engine(kind, FedAMP(lam=0.0, lr=1.0), task, plan), 2)
    assert gap(column(exact, 3), torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)) < 1e-14
