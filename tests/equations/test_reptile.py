"""Reptile: x <- x + server_lr m with m <- b1 m + (1 - b1) Delta, or Adam; K' steps from x to the personal model."""

import math

import numpy as np
import pytest

from tierfed.algorithms.finetune import FineTune
from tierfed.algorithms.reptile import Reptile
from tierfed.engine.evaluate import models
from tierfed.testing.toy import ENGINES, cloud, gap, make_engine, quad, run, toy_plan, toy_settings, toy_task

kinds = pytest.mark.parametrize("kind", ENGINES)
A = [-1.0, 5.0]


@kinds
def test_sgd_by_hand(kind: str) -> None:
    """K = 2 full steps of 1/2 lead to (x + 3 a) / 4, so Delta = 3/4 (mean a - x) with mean a = (-1 + 3 * 5) / 4 = 3.5.

    x = 0.5, m = 0: Delta = 2.25, m = 1.125, x = 0.5 + 0.4 * 1.125 = 0.95; Delta = 1.9125, m = 1.51875, x = 1.5575.
    """
    task, plan = quad(A, start=[0.5], sizes=[1, 3])
    algorithm = Reptile(lr=0.5, steps=2, optimizer="sgd", server_lr=0.4, beta1=0.5, adapt_steps=3, adapt_lr=0.2)
    engine = make_engine(kind, algorithm, task, plan)
    for x in (0.95, 1.5575):
        run(engine, 1)
        assert cloud(engine)["w"].item() == pytest.approx(x, abs=1e-14)
        for m in models(engine, np.arange(2), post=False):
            assert m.personal_pre["w"].item() == pytest.approx(A[m.device] + 0.8**3 * (x - A[m.device]), abs=1e-14)


@kinds
def test_adam_by_hand(kind: str) -> None:
    """From zero moments: x + server_lr (1 - b1) Delta / (sqrt((1 - b2) Delta^2) + tau), Delta = 3/4 * 3 = 2.25."""
    task, plan = quad(A, start=[0.5], sizes=[1, 3])
    algorithm = Reptile(lr=0.5, steps=2, server_lr=0.2, beta1=0.9, beta2=0.99, tau=1e-3)
    want = 0.5 + 0.2 * 0.1 * 2.25 / (math.sqrt(0.01 * 2.25**2) + 1e-3)
    assert cloud(run(make_engine(kind, algorithm, task, plan), 1))["w"].item() == pytest.approx(want, abs=1e-14)


@kinds
def test_one_server_step_of_rate_one_is_fedavg_with_fine_tuning(kind: str) -> None:
    """A pass of K = K' steps is what fine-tuning takes too."""
    task, plan, tree = toy_task(), toy_plan(), toy_settings(participation=0.5)["3 tiers"]
    both = [
        run(make_engine(kind, algorithm, task, plan, tree), 2)
        for algorithm in (
            Reptile(optimizer="sgd", server_lr=1.0, beta1=0.0, steps=3, adapt_steps=3, tune="head"),
            FineTune(steps=3, tune_epochs=1, tune="head"),
        )
    ]
    assert gap(cloud(both[0]), cloud(both[1])) <= 1e-14
    for a, b in zip(*(models(e, np.arange(12), post=False) for e in both), strict=True):
        assert gap(a.personal_pre, b.personal_pre) <= 1e-12


@pytest.mark.parametrize("changes", [{"adapt_steps": 0}, {"tune": "head", "depth": 0}])
def test_without_adaptation_the_personal_model_is_the_global_one(changes: dict[str, int]) -> None:
    engine = run(make_engine("vectorized", Reptile(**changes), toy_task(), toy_plan()), 1)
    (m,) = models(engine, np.array([3]), post=False)
    assert gap(m.personal_pre, cloud(engine)) == 0.0


def test_more_steps_than_a_pass_begin_it_again() -> None:
    """One batch per pass on QUAD: K' = 5 steps of 0.1 from x = 0."""
    task, plan = quad([4.0])
    engine = make_engine("serial", Reptile(steps=None, adapt_steps=5, lr=0.1), task, plan)
    (m,) = models(engine, np.arange(1), post=False)
    assert m.personal_pre["w"].item() == pytest.approx(4.0 * (1 - 0.9**5), abs=1e-14)
