"""Every algorithm, every tree: the serial and the vectorized engine do the same, to the byte and to rounding."""

import numpy as np
import pytest
import torch

from laws.cases import CASES, fits, task_of
from laws.world import (
    DEVICES,
    FLOAT64,
    MODES,
    TREES,
    Trace,
    by_name,
    evaluated,
    happened,
    relative,
    small_plan,
    trace,
    trees,
    walked,
)
from support import apart, gap, make_engine
from tierfed.engine.vectorized import Vectorized


def _places() -> list[tuple[str, str, str]]:
    """Every case on every tree with messages lost, which leaves out devices as well; in the other modes every case too,
    on trees that change from one case to the next: on two with everybody, on one with a part.
    """
    out = []
    for number, name in enumerate(CASES):
        fitting = [tree for tree in TREES if fits(name, tree)]
        turned = fitting[number % len(fitting) :] + fitting[: number % len(fitting)]
        out += [(name, tree, "lossy") for tree in fitting]
        out += [(name, tree, "full") for tree in turned[:2]]
        out.append((name, turned[-1], "partial"))
    return out


def agree(a: Trace, b: Trace, limit: float = FLOAT64) -> None:
    """Same bytes and events; records and evaluated models within `limit`."""
    assert [happened(log) for log in a.logs] == [happened(log) for log in b.logs]
    assert [log.link_bytes() for log in a.logs] == [log.link_bytes() for log in b.logs]
    assert apart(a.engine, b.engine) <= limit
    assert gap(evaluated(a.engine), evaluated(b.engine)) <= limit


@pytest.mark.parametrize(("name", "tree", "mode"), _places())
def test_engines_agree(name: str, tree: str, mode: str) -> None:
    task, plan = task_of(name), small_plan()
    both = [walked(kind, CASES[name], task, plan, tree, MODES[mode]) for kind in ("serial", "vectorized")]
    agree(both[0], both[1])


@pytest.mark.parametrize("name", CASES)
def test_engines_agree_with_dropout_layers(name: str) -> None:
    task, plan = task_of(name, dropout=0.3), small_plan()
    both = [walked(kind, CASES[name], task, plan, "4 tiers", MODES["lossy"], 2) for kind in ("serial", "vectorized")]
    agree(both[0], both[1])


@pytest.mark.parametrize("name", CASES)
def test_engines_agree_in_float32(name: str) -> None:
    """A smooth activation: a ReLU's kink would turn rounding into another path."""
    task, plan = task_of(name, torch.nn.Tanh, torch.float32), small_plan(dtype=torch.float32)
    both = [walked(kind, CASES[name], task, plan, "4 tiers", MODES["lossy"], 2) for kind in ("serial", "vectorized")]
    assert [happened(log) for log in both[0].logs] == [happened(log) for log in both[1].logs]
    assert relative(by_name(both[0].engine), by_name(both[1].engine)) <= 1e-5


@pytest.mark.parametrize("name", CASES)
def test_chunks_do_not_matter(name: str) -> None:
    task, plan = task_of(name), small_plan()

    def after(size: int) -> Trace:
        engine = make_engine("vectorized", CASES[name], task, plan, trees(0.7)["4 tiers"], MODES["lossy"].faults)
        assert isinstance(engine, Vectorized)
        engine.chunk = size
        return trace(engine, 1)

    whole = after(256)
    agree(after(1), whole)
    agree(after(3), whole)


@pytest.mark.parametrize("name", [n for n in CASES if fits(n, "3 tiers")])
def test_engines_agree_while_devices_change_team(name: str) -> None:
    """New teams before every round, one in the middle of them empty: what is stored by id follows its device."""
    task, plan, rng = task_of(name), small_plan(), np.random.default_rng(7)
    teams = [np.array([0, 2, 3])[rng.integers(0, 3, DEVICES)] for _ in range(2)]

    def after(kind: str) -> Trace:
        engine = make_engine(kind, CASES[name], task, plan, trees(0.7)["3 tiers"])
        logs = []
        for team in teams:
            engine.set_topology(engine.topology.regrouped(team))
            logs.append(engine.step())
        return Trace(engine=engine, logs=logs)

    agree(after("serial"), after("vectorized"))
