"""Federated distillation: teachers without the device itself, its own means, a step by hand; T-51, T-53."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tierfed.algorithms.fd import FD
from tierfed.algorithms.keep_local import KeepLocal
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import message_to
from tierfed.errors import InputError
from tierfed.plan import Plan
from tierfed.task import Task
from tierfed.testing.toy import ENGINES, gap, make_engine, run, toy_plan, toy_task
from tierfed.testing.trees import Exactly
from tierfed.topology import TopologySettings

kinds = pytest.mark.parametrize("kind", ENGINES)


def doubles(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def world(*labels: Sequence[int], classes: int = 2, batch: int | None = None) -> tuple[Task, Plan]:
    """z = w [C], whatever x is; from w = 0. :param labels: of the samples of each device"""
    net = nn.Linear(1, classes, bias=False).double()
    nn.init.zeros_(net.weight)
    ends = np.cumsum([len(part) for part in labels])
    rows = [np.arange(e - len(part), e) for e, part in zip(ends, labels, strict=True)]
    empty = [np.zeros(0, np.int64)] * len(labels)
    y = torch.tensor([label for part in labels for label in part])
    x = torch.ones(len(y), 1, dtype=torch.float64)
    return Task(net, classes=classes), Plan(x=x, y=y, train=rows, held=empty, batch=batch, dtype=torch.float64)


def put(engine: Engine, *models: Sequence[float]) -> None:
    for i, w in enumerate(models):
        engine.put_own(i, {"w": {"weight": doubles(w)[:, None]}})


def teacher(engine: Engine, device: int) -> tuple[Tensor, list[bool]]:
    message = message_to(engine, device)
    return message["teacher"], message["known"].tolist()


@kinds
def test_T51_two_devices_teach_each_other(kind: str) -> None:
    """Full batches, one step: zbar is w before it. Device 0 has labels 0, 1, device 1 label 1, device 2 labels 1, 2."""
    task, plan = world([0, 0, 1], [1, 1], [2, 1], classes=3)
    engine = make_engine(kind, FD(), task, plan)
    w = doubles([[3, 0, 1], [0, 6, 2], [5, 5, 0]])
    put(engine, *w.tolist())
    assert teacher(engine, 0)[1] == [False] * 3
    run(engine, 1)
    first, known = teacher(engine, 0)
    assert known == [False, True, True]
    assert gap(first[1:], torch.stack([(w[1] + w[2]) / 2, w[2]])) < 1e-14
    second, known = teacher(engine, 1)
    assert known == [True, True, True]
    assert gap(second, torch.stack([w[0], (w[0] + w[2]) / 2, w[2]])) < 1e-14
    third, known = teacher(engine, 2)
    assert known == [True, True, False]
    assert gap(third[:2], torch.stack([w[0], (w[0] + w[1]) / 2])) < 1e-14


@kinds
def test_who_was_not_heard_last_is_not_taken_out(kind: str) -> None:
    """Round 0: all three are heard. Round 1: the reply of device 2 is lost, so the sums are of 0 and 1 alone, and
    device 2 gets the mean of both. Round 2: nobody is heard, the teachers stay."""
    task, plan = world([0], [0], [0])
    faults = Exactly(lost_at=((1, 2, 1), *((1, i, 2) for i in range(3))))
    engine = make_engine(kind, FD(lr=1e-9), task, plan, faults=faults)
    w = doubles([[3, 0], [0, 6], [60, 30]])
    put(engine, *w.tolist())
    run(engine, 1)
    assert gap(teacher(engine, 2)[0][0], (w[0] + w[1]) / 2) < 1e-6
    assert gap(teacher(engine, 0)[0][0], (w[1] + w[2]) / 2) < 1e-6
    for _ in range(2):
        run(engine, 1)
        assert gap(teacher(engine, 2)[0][0], (w[0] + w[1]) / 2) < 1e-6
        assert gap(teacher(engine, 0)[0][0], w[1]) < 1e-6


@kinds
def test_who_was_not_polled_is_not_taken_out(kind: str) -> None:
    """One of three devices a round: the two others get its mean, itself has no teacher."""
    task, plan = world([0], [0], [0])
    engine = make_engine(kind, FD(lr=1e-9), task, plan, TopologySettings(fogs=0, participation=1))
    w = doubles([[3, 0], [0, 6], [60, 30]])
    put(engine, *w.tolist())
    for round_ in range(4):
        (j,) = engine.topology.poll(0, 0, round_, 0).tolist()
        run(engine, 1)
        assert teacher(engine, j)[1] == [False, False]
        others = [i for i in range(3) if i != j]
        assert max(gap(teacher(engine, i)[0][0], w[j]) for i in others) < 1e-6


@kinds
def test_a_step_by_hand(kind: str) -> None:
    """Labels 0, 1 on both devices. The gradient of device 0 is, over both labels, half of softmax(w) - onehot(y) +
    gamma (softmax(w) - softmax(t_y)), and t_y = w of device 1 for both: w = (0, 0), t = (log 3, 0)."""
    task, plan = world([0, 1], [0, 1])
    engine = make_engine(kind, FD(lr=0.5, gamma=2.0), task, plan)
    put(engine, (0, 0), (math.log(3), 0))
    run(engine, 1)  # without teachers: device 0 stays, device 1 goes to log 3 - 1/2 (3/4 - 1/2), 1/2 (3/4 - 1/2)
    assert gap(engine.own(0)["w"]["weight"], doubles([[0], [0]])) < 1e-15
    assert gap(engine.own(1)["w"]["weight"], doubles([[math.log(3) - 0.125], [0.125]])) < 1e-14
    run(engine, 1)
    assert gap(engine.own(0)["w"]["weight"], doubles([[0.25], [-0.25]])) < 1e-14


@kinds
def test_labels_that_nobody_else_has_are_not_distilled(kind: str) -> None:
    """Device 0 has label 0 alone, device 1 label 1: with any gamma both train alone."""
    task, plan = world([0, 0], [1])
    taught, alone = (run(make_engine(kind, a, task, plan), 3) for a in (FD(gamma=9.0), KeepLocal(private="all")))
    assert max(gap(taught.own(i)["w"], alone.own(i)["own"]) for i in range(2)) == 0.0


@kinds
def test_means_are_of_the_outputs_before_each_step(kind: str) -> None:
    """Two samples of label 0 in batches of one: z = 0, then z = lr (1/2, -1/2)."""
    task, plan = world([0, 0], [0], batch=1)
    engine = run(make_engine(kind, FD(lr=0.5), task, plan), 1)
    assert gap(teacher(engine, 1)[0][0], doubles([0.125, -0.125])) < 1e-15


@kinds
def test_T53_without_distillation_it_is_local_only(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    alone = run(make_engine(kind, KeepLocal(private="all"), task, plan), 3)
    free = run(make_engine(kind, FD(gamma=0.0), task, plan), 3)
    taught = run(make_engine(kind, FD(gamma=0.1), task, plan), 3)
    assert [gap(free.own(i)["w"], alone.own(i)["own"]) for i in range(12)] == [0.0] * 12
    assert gap(taught.own(0)["w"], alone.own(0)["own"]) > 1e-6


@kinds
@pytest.mark.parametrize(("where", "fog"), [("cloud", 2), ("fog", 0)])
def test_bytes(where: Any, fog: int, kind: str) -> None:
    """4 x 4 numbers and a mark for each of 4 labels, both ways; the cloud hears every device over its relays."""
    plan = toy_plan(6)
    settings = TopologySettings(fogs=3, teams="sequential")
    links = make_engine(kind, FD(server_at=where), toy_task(), plan, settings).step().link_bytes()
    each = 16 * 8 + 4
    assert {links[1, way] for way in ("down", "up")} == {6 * each}
    assert {links[0, way] for way in ("down", "up")} == {3 * fog * each}


def test_a_regression_has_no_labels() -> None:
    with pytest.raises(InputError, match="take data that have classes"):
        FD().tiers(Task(nn.Linear(1, 1)), (1, 3))
