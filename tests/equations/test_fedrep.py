"""FedRep: the head first, then the body; nothing of the frozen part moves."""

import numpy as np
import pytest
import torch
from torch import nn

from tierfed.algorithms.fedavg import FedAvg
from tierfed.algorithms.fedrep import FedRep
from tierfed.engine.evaluate import models
from tierfed.task import Task
from tierfed.testing.toy import ENGINES, Point, cloud, gap, half_square, make_engine, quad, run, toy_plan, toy_task
from tierfed.tree import take

HEAD = ["3.weight", "3.bias"]
kinds = pytest.mark.parametrize("kind", ENGINES)


@kinds
def test_a_round_by_hand(kind: str) -> None:
    """f = 1/2 (u w - a)^2, body w, head u, from 1, s = 0.1. a = 1 stays. a = 3: u = 1 -> 1.2 -> 1.38 in two passes of
    the head; then w = 1 - 0.1 (1.38 - 3) 1.38 = 1.22356."""
    _, plan = quad([1.0, 3.0])
    one = torch.ones(1, dtype=torch.float64)
    task = Task(nn.Sequential(Point(one), Point(one)), half_square)
    engine = run(make_engine(kind, FedRep(lr=0.1, head_epochs=2), task, plan), 1)
    assert cloud(engine)["0.w"].item() == pytest.approx((1 + 1.22356) / 2, abs=1e-14)
    assert [engine.own(i)["head"]["1.w"].item() for i in range(2)] == pytest.approx([1.0, 1.38], abs=1e-14)
    assert list(cloud(engine)) == ["0.w"]


@kinds
def test_T77_without_head_epochs_heads_stay_and_the_body_is_fedavg_with_a_frozen_head(kind: str) -> None:
    task, plan, algorithm = toy_task(), toy_plan(4), FedRep(head_epochs=0, epochs=2)
    engine = run(make_engine(kind, algorithm, task, plan), 1)
    first, body = task.init(), algorithm.shared(task)
    for i in range(4):
        assert gap(engine.own(i)["head"], take(first, HEAD)) == 0.0
    ends = [task.train(first, plan.one(i, algorithm, 0, 0), algorithm.lr, keys=body) for i in range(4)]
    weights = [float(n) / plan.samples.sum() for n in plan.samples]
    for k in body:
        assert gap(cloud(engine)[k], sum(p * w[k] for p, w in zip(weights, ends, strict=True))) < 1e-13


@kinds
@pytest.mark.parametrize("head_epochs", [0, 2])
def test_T77_nothing_private_is_fedavg(kind: str, head_epochs: int) -> None:
    task, plan = toy_task(), toy_plan(batch=None)
    fedrep = run(make_engine(kind, FedRep(depth=0, head_epochs=head_epochs), task, plan), 3)
    fedavg = run(make_engine(kind, FedAvg(), task, plan), 3)
    assert gap(cloud(fedrep), cloud(fedavg)) <= (1e-12 if head_epochs else 0.0)


def test_the_statistics_of_a_frozen_body_stay() -> None:
    """Neither the body nor the statistics of its batch norm move in the phase of the head, nor the head after it."""
    task, plan, algorithm = toy_task(), toy_plan(3), FedRep(head_epochs=3)
    data, first = plan.one(0, algorithm, 0, 0), task.init()
    after = task.train(first, data.passes(0, 3), algorithm.lr, keys=HEAD)
    assert gap(take(after, algorithm.shared(task)), take(first, algorithm.shared(task))) == 0.0
    assert gap(take(after, HEAD), take(first, HEAD)) > 1e-3
    up, state = algorithm.device(
        task, {"params": take(first, algorithm.shared(task))}, algorithm.init(task, first), data
    )
    assert gap(state["head"], take(after, HEAD)) == 0.0
    want = task.train(after, data.passes(3), algorithm.lr, keys=algorithm.shared(task))
    assert gap(up["params"], take(want, algorithm.shared(task))) == 0.0


@kinds
def test_the_personal_model_is_the_received_body_with_the_own_head(kind: str) -> None:
    task, plan = toy_task(), toy_plan(3)
    engine = run(make_engine(kind, FedRep(head_epochs=2), task, plan), 2)
    for m in models(engine, np.arange(3), post=False):
        assert gap(m.personal_pre, {**cloud(engine), **engine.own(m.device)["head"]}) == 0.0
    assert gap(engine.own(0)["head"], engine.own(1)["head"]) > 1e-3
