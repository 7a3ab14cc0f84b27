"""pFedMe on QUAD: lr = 1 / (1 + lam) is the exact proximal point in one inner step, from anywhere."""

import pytest

from tierfed.algorithms.pfedme import PFedMe
from tierfed.errors import InputError
from tierfed.testing.toy import ENGINES, cloud, make_engine, quad, run, toy_task

A = [-2.0, 1.0, 7.0]  # mean 2
kinds = pytest.mark.parametrize("kind", ENGINES)


@kinds
@pytest.mark.parametrize("beta", [1.0, 0.5, 1.5])
@pytest.mark.parametrize("batches", [1, 3])
def test_T79_the_map_of_a_round(kind: str, beta: float, batches: int) -> None:
    """x <- (1 - beta) x + beta (q x + (1 - q) abar), q = (1 - eta lam / (1 + lam))^R, with uniform weights."""
    task, plan = quad(A, start=[5.0], sizes=[1, 2, 3])
    algorithm = PFedMe(lr=0.25, lam=3.0, inner=1, eta=0.2, beta=beta, epochs=batches)
    engine = run(make_engine(kind, algorithm, task, plan), 2)
    q, x = (1 - 0.2 * 3 / 4) ** batches, 5.0
    for _ in range(2):
        x = (1 - beta) * x + beta * (q * x + (1 - q) * 2.0)
    assert cloud(engine)["w"].item() == pytest.approx(x, abs=1e-13)


def test_T79_the_fixed_point() -> None:
    """x = abar, theta_i = (a_i + lam abar) / (1 + lam)."""
    task, plan = quad(A)
    algorithm = PFedMe(lr=0.25, lam=3.0, inner=1, eta=0.5)
    engine = run(make_engine("vectorized", algorithm, task, plan), 60)
    assert cloud(engine)["w"].item() == pytest.approx(2.0, abs=1e-10)
    found = [engine.own(i)["theta"]["w"].item() for i in range(3)]
    assert found == pytest.approx([(a + 3 * 2.0) / 4 for a in A], abs=1e-10)


@kinds
def test_T79_a_stiff_pull_leaves_theta_at_w(kind: str) -> None:
    """theta - w = (a - w) / (1 + lam)"""
    task, plan = quad(A, start=[5.0])
    engine = run(make_engine(kind, PFedMe(lr=1 / (1 + 1e6), lam=1e6, inner=1, eta=1e-7), task, plan), 1)
    away = [engine.own(i)["theta"]["w"].item() - 5.0 for i in range(3)]
    assert away == pytest.approx([(a - 5.0) / (1 + 1e6) for a in A], abs=1e-12)


@kinds
def test_inner_steps_by_hand(kind: str) -> None:
    """a = 4, lam = 2, lr = 0.1, from 0: theta = 0.4, then 0.4 - 0.1 (-3.6 + 0.8) = 0.68; w = 0.1 * 2 * 0.68 = 0.136.
    Second batch, from theta = 0.68: 0.68 - 0.1 (-3.32 + 1.088) = 0.9032, 0.9032 - 0.1 (-3.0968 + 1.5344) = 1.05944;
    w = 0.136 + 0.2 (1.05944 - 0.136) = 0.320688."""
    task, plan = quad([4.0])
    engine = run(make_engine(kind, PFedMe(lr=0.1, lam=2.0, inner=2, eta=0.1, epochs=2), task, plan), 1)
    assert engine.own(0)["theta"]["w"].item() == pytest.approx(1.05944, abs=1e-14)
    assert cloud(engine)["w"].item() == pytest.approx(0.320688, abs=1e-14)


def test_what_diverges_is_refused() -> None:
    with pytest.raises(InputError, match=r"wanted eta and lr below 2 / lam = 0.5"):
        PFedMe(lam=4.0, eta=0.5).tiers(toy_task(), (1, 4))
    with pytest.raises(InputError, match="wanted beta <= 1"):
        PFedMe(beta=2.0).tiers(toy_task(), (1, 4))
    assert len(PFedMe(beta=2.0).tiers(toy_task(norm=False), (1, 4))) == 1
