"""Per-FedAvg on QUAD, where the Hessian is one, and on a quartic loss, where its order matters."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tierfed.algorithms.fedavg import FedAvg
from tierfed.algorithms.perfedavg import PerFedAvg
from tierfed.engine.evaluate import models
from tierfed.task import Task
from tierfed.testing.toy import ENGINES, Point, cloud, gap, make_engine, quad, run, toy_plan, toy_task

kinds = pytest.mark.parametrize("kind", ENGINES)
orders = pytest.mark.parametrize("order", ["fo", "hf", "exact"])


@kinds
@orders
def test_T45_quadratics(kind: str, order: Any) -> None:
    """Every device: w - lr (1 - alpha)^k (w - a), k = 1 first-order, 2 with the Hessian; the mean is uniform."""
    task, plan = quad([-2.0, 1.0, 7.0], start=[5.0], sizes=[1, 2, 3])
    x = cloud(run(make_engine(kind, PerFedAvg(lr=0.3, alpha=0.2, order=order), task, plan), 1))["w"]
    assert x.item() == pytest.approx(5.0 - 0.3 * 0.8 ** (1 if order == "fo" else 2) * (5.0 - 2.0), abs=1e-11)


@kinds
@orders
def test_a_quartic_by_hand(kind: str, order: Any) -> None:
    """f = (w - a)^4 / 4, a = 1, w = 2: d = 1, u - a = 1 - 0.1 = 0.9, g = 0.729. H g = 3 d^2 g; the central difference
    has delta^2 g^3 more."""

    def quartic(out: Tensor, y: Tensor) -> Tensor:
        return 0.25 * (out - y).pow(4).sum(-1)

    _, plan = quad([1.0])
    task = Task(Point(torch.tensor([2.0], dtype=torch.float64)), quartic)
    algorithm = PerFedAvg(lr=0.3, alpha=0.1, order=order, delta=0.2)
    x = cloud(run(make_engine(kind, algorithm, task, plan), 1))["w"].item()
    curved = {"fo": 0.0, "hf": 3 * 0.729 + 0.2**2 * 0.729**3, "exact": 3 * 0.729}[order]
    assert x == pytest.approx(2.0 - 0.3 * (0.729 - 0.1 * curved), abs=1e-13)


@kinds
@orders
def test_T46_without_adaptation_it_is_fedavg(kind: str, order: Any) -> None:
    task, plan = toy_task(), toy_plan(batch=None)
    ours = run(make_engine(kind, PerFedAvg(alpha=0.0, epochs=2, order=order), task, plan), 2)
    fedavg = run(make_engine(kind, FedAvg(uniform=True, epochs=2), task, plan), 2)
    assert gap(cloud(ours), cloud(fedavg)) < 1e-12


@orders
def test_a_step_takes_independent_batches(order: Any) -> None:
    """D, D', D'' are the same step of successive passes; the derivative of g(u(w)) is exact where it is asked for."""
    task, plan = toy_task(torch.nn.Tanh, norm=False), toy_plan()
    algorithm, w = PerFedAvg(lr=0.3, alpha=0.2, order=order, steps=1, delta=1e-4), task.init()
    data = plan.one(5, algorithm, 0, 0)
    rows = data.rows[:, 0]
    assert len(rows) == (2 if order == "fo" else 3)
    assert len({tuple(sorted(r.tolist())) for r in rows}) == len(rows)

    def loss(params: Any, which: int) -> Tensor:
        each: Tensor = task.loss(task.outputs(params, data.x[rows[which]]), data.y[rows[which]])
        return each.mean()

    keys, point = list(w), {k: v.clone().requires_grad_() for k, v in w.items()}
    first = torch.autograd.grad(loss(point, 0), list(point.values()))
    u = {k: (w[k] - 0.2 * g).detach().requires_grad_() for k, g in zip(keys, first, strict=True)}
    g = list(torch.autograd.grad(loss(u, 1), list(u.values())))
    if order != "fo":
        slope = torch.autograd.grad(loss(point, 2), list(point.values()), create_graph=True)
        along = torch.stack([(a * b).sum() for a, b in zip(slope, g, strict=True)]).sum()
        hessian = torch.autograd.grad(along, list(point.values()))
        g = [a - 0.2 * b for a, b in zip(g, hessian, strict=True)]
    up, _ = algorithm.device(task, {"params": w}, {}, data)
    want = {k: w[k] - 0.3 * v for k, v in zip(keys, g, strict=True)}
    assert gap(up["params"], want) < (1e-7 if order == "hf" else 1e-14)


@kinds
@pytest.mark.parametrize("adapt_steps", [0, 1, 5])
def test_the_personal_model_is_adapted_on_training_data(kind: str, adapt_steps: int) -> None:
    a = [-2.0, 1.0, 7.0]
    task, plan = quad(a, start=[5.0], held=[100.0] * 3)
    engine = make_engine(kind, PerFedAvg(alpha=0.2, adapt_steps=adapt_steps), task, plan)
    for m in models(engine, np.arange(3), post=False):
        want = a[m.device] + 0.8**adapt_steps * (5.0 - a[m.device])
        assert m.personal_pre["w"].item() == pytest.approx(want, abs=1e-14)
        assert m.global_model is not None
        assert m.global_model["w"].item() == 5.0
