"""APFL: steps by hand, the fixed point for a fixed alpha, and FedAvg and local training at the ends of alpha."""

import numpy as np
import pytest

from tierfed.algorithms.apfl import APFL
from tierfed.algorithms.fedavg import FedAvg
from tierfed.algorithms.keep_local import KeepLocal
from tierfed.engine.evaluate import models
from tierfed.testing.toy import ENGINES, cloud, gap, make_engine, quad, run, toy_plan, toy_settings, toy_task

kinds = pytest.mark.parametrize("kind", ENGINES)


@kinds
def test_two_rounds_by_hand(kind: str) -> None:
    """a = 4, s = 0.1. Round 0 from w = v = 0: gradient -4 at vbar = 0, v = w: alpha stays 1/2; w = 0.4, v = 0.2.
    Round 1: vbar = 0.3, gradient -3.7; alpha = 0.5 - 0.1 (0.2 - 0.4) (-3.7) = 0.426; v = 0.2 + 0.05 * 3.7; w = 0.76."""
    task, plan = quad([4.0])
    engine = run(make_engine(kind, APFL(lr=0.1), task, plan), 1)
    assert (cloud(engine)["w"].item(), engine.own(0)["v"]["w"].item()) == pytest.approx((0.4, 0.2), abs=1e-15)
    assert engine.own(0)["alpha"].item() == 0.5
    run(engine, 1)
    assert (cloud(engine)["w"].item(), engine.own(0)["v"]["w"].item()) == pytest.approx((0.76, 0.385), abs=1e-15)
    assert engine.own(0)["alpha"].item() == pytest.approx(0.426, abs=1e-15)
    (m,) = models(engine, np.arange(1), post=False)
    assert m.personal_pre["w"].item() == pytest.approx(0.426 * 0.385 + 0.574 * 0.76, abs=1e-15)


@kinds
@pytest.mark.parametrize(("adapt", "moves"), [("round", 1), ("batch", 3), ("never", 0)])
def test_when_alpha_follows_its_gradient(kind: str, adapt: str, moves: int) -> None:
    """Three steps a visit, alpha_lr = 0.05, a = (0, 4): written out with scalars."""
    a, x, v, alpha = (0.0, 4.0), 1.0, [1.0, 1.0], [0.3, 0.3]
    for _ in range(2):
        ends = []
        for i in range(2):
            w = x
            for step in range(3):
                g = alpha[i] * v[i] + (1 - alpha[i]) * w - a[i]
                slope = (v[i] - w) * g
                v[i] -= 0.2 * alpha[i] * g
                w -= 0.2 * (w - a[i])
                alpha[i] -= 0.05 * slope if step < moves else 0.0
            ends.append(w)
        x = sum(ends) / 2
    task, plan = quad(a, start=[1.0], sizes=[1, 5])  # the mean is uniform
    algorithm = APFL(lr=0.2, epochs=3, alpha=0.3, alpha_lr=0.05, adapt=adapt)  # type: ignore[arg-type]
    engine = run(make_engine(kind, algorithm, task, plan), 2)
    assert cloud(engine)["w"].item() == pytest.approx(x, abs=1e-14)
    assert [engine.own(i)["v"]["w"].item() for i in range(2)] == pytest.approx(v, abs=1e-14)
    assert [engine.own(i)["alpha"].item() for i in range(2)] == pytest.approx(alpha, abs=1e-14)


def test_alpha_stays_between_zero_and_one() -> None:
    task, plan = quad([0.0, 4.0])
    engine = make_engine("serial", APFL(lr=0.1, epochs=2, alpha_lr=50.0, adapt="batch"), task, plan)
    seen = set()
    for _ in range(4):
        run(engine, 1)
        seen |= {engine.own(i)["alpha"].item() for i in range(2)}
    assert {0.0, 1.0} & seen
    assert all(0.0 <= alpha <= 1.0 for alpha in seen)


@kinds
def test_T81_alpha_zero_is_fedavg(kind: str) -> None:
    task, plan, settings = toy_task(), toy_plan(), toy_settings(participation=0.5)["3 tiers"]
    apfl = run(make_engine(kind, APFL(alpha=0.0, adapt="never"), task, plan, settings), 3)
    fedavg = run(make_engine(kind, FedAvg(uniform=True), task, plan, settings), 3)
    assert gap(cloud(apfl), cloud(fedavg)) == 0.0
    for m in models(apfl, np.arange(0, 12, 4), post=False):
        assert gap(m.personal_pre, cloud(fedavg)) == 0.0


@kinds
def test_T81_alpha_one_is_local_training(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    apfl = run(make_engine(kind, APFL(alpha=1.0, adapt="never"), task, plan), 3)
    local = run(make_engine(kind, KeepLocal(private="all"), task, plan), 3)
    for m in models(apfl, np.arange(12), post=False):
        assert gap(m.personal_pre, local.own(m.device)["own"]) < 1e-13


def test_T81_the_fixed_point() -> None:
    """vbar_i = a_i, v_i = (a_i - (1 - alpha) x) / alpha, x = 3: with alpha = 0.4, (a_i - 1.8) / 0.4."""
    task, plan = quad([-1.0, 2.0, 8.0])
    engine = run(make_engine("vectorized", APFL(lr=1.0, alpha=0.4, adapt="never"), task, plan), 150)
    assert cloud(engine)["w"].item() == pytest.approx(3.0, abs=1e-12)
    found = [engine.own(i)["v"]["w"].item() for i in range(3)]
    assert found == pytest.approx([-7.0, 0.5, 15.5], abs=1e-9)
    pre = [m.personal_pre["w"].item() for m in models(engine, np.arange(3), post=False)]
    assert pre == pytest.approx([-1.0, 2.0, 8.0], abs=1e-9)
