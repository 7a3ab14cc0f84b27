"""Ditto: FedAvg that does not notice the personal models, and personal models between their own optimum and x."""

import numpy as np
import pytest

from tierfed.algorithms.ditto import Ditto
from tierfed.algorithms.fedavg import FedAvg
from tierfed.algorithms.keep_local import KeepLocal
from tierfed.engine.evaluate import models
from tierfed.testing.toy import ENGINES, cloud, gap, make_engine, quad, run, toy_plan, toy_settings, toy_task

kinds = pytest.mark.parametrize("kind", ENGINES)


@kinds
@pytest.mark.parametrize(("lam", "personal_epochs"), [(0.0, 1), (1.0, 0), (0.7, 3)])
def test_T80_the_global_model_is_fedavg_bit_by_bit(kind: str, lam: float, personal_epochs: int) -> None:
    task, plan, settings = toy_task(), toy_plan(), toy_settings(participation=0.5)["3 tiers"]
    algorithm = Ditto(epochs=2, lam=lam, personal_epochs=personal_epochs)
    ditto = run(make_engine(kind, algorithm, task, plan, settings), 3)
    fedavg = run(make_engine(kind, FedAvg(epochs=2), task, plan, settings), 3)
    assert gap(cloud(ditto), cloud(fedavg)) == 0.0


@kinds
def test_T80_without_a_pull_the_personal_model_is_local_training(kind: str) -> None:
    task, plan = toy_task(), toy_plan(batch=None)
    ditto = run(make_engine(kind, Ditto(lam=0.0, personal_epochs=2), task, plan), 3)
    local = run(make_engine(kind, KeepLocal(private="all", epochs=2), task, plan), 3)
    for m in models(ditto, np.arange(12), post=False):
        assert gap(m.personal_pre, local.own(m.device)["own"]) < 1e-12
    assert gap(ditto.own(0)["v"], cloud(ditto)) > 1e-3


@kinds
def test_T80_two_rounds_by_hand(kind: str) -> None:
    """QUAD, a = (0, 3, 30), s = 0.1: x = 0, 1.1, 2.09. The pull is to the x received, not to the w_i trained from it:
    v of a = 3: 0 -> 0.3 -> 0.3 - 0.1 ((0.3 - 3) + 2 (0.3 - 1.1)) = 0.73."""
    task, plan = quad([0.0, 3.0, 30.0])
    engine = run(make_engine(kind, Ditto(lr=0.1, lam=2.0), task, plan), 2)
    assert cloud(engine)["w"].item() == pytest.approx(2.09, abs=1e-14)
    assert engine.own(1)["v"]["w"].item() == pytest.approx(0.73, abs=1e-14)


def test_T80_it_ends_between_its_own_optimum_and_x() -> None:
    """v_i = (a_i + lam x) / (1 + lam), x = 11."""
    task, plan = quad([0.0, 3.0, 30.0])
    engine = run(make_engine("vectorized", Ditto(lr=0.3, lam=2.0), task, plan), 80)
    found = [engine.own(i)["v"]["w"].item() for i in range(3)]
    assert found == pytest.approx([22 / 3, 25 / 3, 52 / 3], abs=1e-9)
