"""FedAvg + fine-tuning: the personal model is the received x after F epochs on the tuned part."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tierfed.algorithms.fedavg import FedAvg
from tierfed.algorithms.finetune import FineTune
from tierfed.engine.evaluate import models
from tierfed.testing.toy import ENGINES, cloud, gap, make_engine, quad, run, toy_plan, toy_settings, toy_task
from tierfed.tree import Params

STATISTICS = ("1.running_mean", "1.running_var")
kinds = pytest.mark.parametrize("kind", ENGINES)


def personal(algorithm: FineTune, norm: bool = True, device: int = 2) -> tuple[Params, Params, list[str]]:
    """(the received x, what the device predicts with, batch-norm statistics) after two rounds of the toy."""
    task, plan = toy_task(norm=norm), toy_plan()
    engine = run(make_engine("vectorized", algorithm, task, plan), 2)
    data = plan.one(device, algorithm, 2, 0)
    x = cloud(engine)
    return x, algorithm.personal(task, {"params": x}, engine.own(device), data), task.buffers


@kinds
def test_the_rounds_are_fedavg_bit_by_bit(kind: str) -> None:
    """Whatever is tuned: fine-tuning never leaves the device, and takes no batch from the training."""
    task, plan, settings = toy_task(), toy_plan(), toy_settings(participation=0.5)["3 tiers"]
    plain = cloud(run(make_engine(kind, FedAvg(epochs=2), task, plan, settings), 2))
    for tune in ("all", "head", "bias"):
        algorithm = FineTune(epochs=2, tune=tune, tune_epochs=3)
        assert gap(cloud(run(make_engine(kind, algorithm, task, plan, settings), 2)), plain) == 0.0


@pytest.mark.parametrize("changes", [{"tune_epochs": 0}, {"tune": "head", "depth": 0}])
@pytest.mark.parametrize("norm", [True, False])
def test_T40_nothing_tuned_is_the_global_model(changes: dict[str, Any], norm: bool) -> None:
    x, mine, _ = personal(FineTune(**changes), norm)
    assert gap(mine, x) == 0.0


@kinds
def test_T41_closed_form(kind: str) -> None:
    """theta_i = a_i + (1 - s)^F (x - a_i), with x after one round of K = 2 steps; s of the tuning is its own."""
    a = (-1.0, 2.0, 8.0)
    task, plan = quad(a, start=[1.0])
    engine = run(make_engine(kind, FineTune(lr=0.1, epochs=2, tune_epochs=4, tune_lr=0.3), task, plan), 1)
    x = 0.9**2 * 1.0 + (1 - 0.9**2) * 3.0
    assert cloud(engine)["w"].item() == pytest.approx(x, abs=1e-14)
    for m in models(engine, np.arange(3), post=False):
        assert m.personal_pre["w"].item() == pytest.approx(a[m.device] + 0.7**4 * (x - a[m.device]), abs=1e-14)
        assert m.global_model is not None
        assert m.global_model["w"].item() == pytest.approx(x, abs=1e-14)


def test_the_same_learning_rate_by_default() -> None:
    task, plan = quad([4.0])
    engine = make_engine("serial", FineTune(lr=0.5, tune_epochs=1), task, plan)
    (m,) = models(engine, np.arange(1), post=False)
    assert m.personal_pre["w"].item() == 2.0


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({"tune": "head"}, {"3.weight", "3.bias"}),
        ({"tune": "head", "depth": 2}, {"3.weight", "3.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}),
        ({"tune": "bias"}, {"0.bias", "1.bias", "3.bias", "1.running_mean", "1.running_var"}),
        ({"tune": "adaptors", "depth": 1}, {"3.bias"}),
        (
            {"tune": "adaptors", "depth": 2},
            {"3.bias", "1.weight", "1.bias", *STATISTICS},
        ),
        ({"tune": "match", "match": "*.weight"}, {"0.weight", "1.weight", "3.weight", *STATISTICS}),
        ({"tune": "all"}, set(toy_task().keys)),
    ],
)
def test_T42_what_is_not_tuned_stays_bit_by_bit(changes: dict[str, Any], moves: set[str]) -> None:
    """Statistics of a batch norm move with its parameters and freeze with them."""
    x, mine, _ = personal(FineTune(**changes))
    assert {k for k in x if gap(x[k], mine[k]) > 0.0} == moves


def test_tuning_helps_the_device_it_is_for() -> None:
    """The head alone is a convex problem: small full-batch steps never raise the loss on what they train on."""
    task, plan = toy_task(norm=False), toy_plan(batch=None)
    algorithm = FineTune(lr=0.05, tune="head", tune_epochs=20)
    engine = run(make_engine("vectorized", algorithm, task, plan), 2)
    for m in models(engine, np.arange(4), post=False):
        rows = torch.from_numpy(plan.train[m.device])
        x, y = plan.x[rows], plan.y[rows]
        before, after = (float(cross_entropy(task.outputs(p, x), y)) for p in (cloud(engine), m.personal_pre))
        assert after < before
