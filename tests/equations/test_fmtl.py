"""Federated multi-task learning with Omega = I - 11'/m: steps by hand, and the optimum, which is L2GD's."""

import numpy as np
import pytest

from support import DEVICES, ENGINES, cloud, gap, make_engine, quad, records, run, toy_plan, toy_settings, toy_task
from tierfed.algorithms.fmtl import FMTL
from tierfed.algorithms.keep_local import KeepLocal
from tierfed.engine.evaluate import models
from tierfed.faults import Faults
from tierfed.tree import add, scale, zeros

kinds = pytest.mark.parametrize("kind", ENGINES)


@kinds
def test_two_rounds_by_hand(kind: str) -> None:
    """m = 2, a = (0, 4), from 2, lam = 1, s = 0.1, two steps; Omega_tt = 1/2, the others stay where they were heard.
    Round 0: c = 1 - 2. Device 0: 2 - 0.1 (2 + 1 - 1) = 1.8, 1.8 - 0.1 (1.8 + 0.9 - 1) = 1.63; device 1: 2.2, 2.37.
    Round 1, mean 2: device 0 has c = 0.815 - 2: 1.63 - 0.1 (1.63 + 0.815 - 1.185) = 1.504, then 1.3969."""
    task, plan = quad([0.0, 4.0], start=[2.0], sizes=[1, 3])
    engine = run(make_engine(kind, FMTL(lr=0.1, lam=1.0, epochs=2), task, plan), 1)
    assert [engine.own(i)["w"]["w"].item() for i in range(2)] == pytest.approx([1.63, 2.37], abs=1e-14)
    run(engine, 1)
    assert [engine.own(i)["w"]["w"].item() for i in range(2)] == pytest.approx([1.3969, 2.6031], abs=1e-14)
    assert cloud(engine)["w"].item() == pytest.approx(2.0, abs=1e-14)


def test_T47_the_optimum() -> None:
    """w_i = (a_i + lam abar) / (1 + lam): lam = 0.5, abar = 2."""
    a = [-2.0, 1.0, 7.0]
    task, plan = quad(a, start=[9.0])
    engine = run(make_engine("vectorized", FMTL(lr=0.3, lam=0.5), task, plan), 90)
    found = [m.personal_pre["w"].item() for m in models(engine, np.arange(3), post=False)]
    assert found == pytest.approx([(v + 0.5 * 2.0) / 1.5 for v in a], abs=1e-9)
    assert cloud(engine)["w"].item() == pytest.approx(2.0, abs=1e-9)


@kinds
def test_T48_without_a_relationship_it_is_local_training_bit_by_bit(kind: str) -> None:
    task, plan = toy_task(), toy_plan()
    fmtl = run(make_engine(kind, FMTL(lam=0.0), task, plan), 3)
    local = run(make_engine(kind, KeepLocal(private="all"), task, plan), 3)
    for i in range(DEVICES):
        assert gap(fmtl.own(i)["w"], local.own(i)["own"]) == 0.0


@kinds
@pytest.mark.parametrize("tree", ["flat", "3 tiers"])
def test_silent_devices_stay_in_the_mean(kind: str, tree: str) -> None:
    """m times the mean and what is still owed are the sum of all w_i, polled or not."""
    task, plan = toy_task(), toy_plan()
    engine = run(make_engine(kind, FMTL(), task, plan, toy_settings(participation=0.5)[tree], Faults(loss=0.4)), 4)
    total, arrived = zeros(cloud(engine)), scale(cloud(engine), DEVICES)
    for i in range(DEVICES):
        total = add(total, engine.own(i)["w"])
    for (table, _), record in records(engine).items():
        arrived = add(arrived, record["moved"]) if table.startswith("owed") else arrived
    assert gap(total, arrived) < 1e-11


def test_d_up_and_d_plus_one_down() -> None:
    task, plan = quad([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    assert make_engine("serial", FMTL(), task, plan).step().link_bytes() == {
        (0, "down"): 2 * 8 * 4,
        (0, "up"): 2 * 8 * 3,
    }


def test_one_task_alone_has_nobody_to_relate_to() -> None:
    task, plan = quad([4.0])
    engine = run(make_engine("serial", FMTL(lr=0.1, lam=3.0), task, plan), 2)
    assert engine.own(0)["w"]["w"].item() == pytest.approx(4.0 * (1 - 0.9**2), abs=1e-14)
