"""Every algorithm may begin with models that another run has left: a common one, or one for each device."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from laws.cases import CASES, fits, task_of
from tierfed.algorithms import make
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import models
from tierfed.task import Task
from tierfed.testing.toy import apart, cloud, gap, make_engine, quad, run
from tierfed.testing.trees import DEVICES, FLOAT64, MODES, by_name, evaluated, happened, small_plan, trace, trees
from tierfed.topology import TopologySettings
from tierfed.tree import Params

GOES_ON = sorted(name for name in CASES if CASES[name].goes_on)


def others(task: Task, n: int, seed: int = 0) -> Iterator[Params]:
    """Models near the initial one; variances stay positive."""
    rng = np.random.default_rng([17, seed])
    for _ in range(n):
        yield {k: t + 0.1 * torch.from_numpy(rng.random(tuple(t.shape))) for k, t in task.init().items()}


def build(name: str, kind: str, task: Task) -> Engine:
    tree = trees(0.7)["3 tiers" if fits(name, "3 tiers") else "clusters"]
    return make_engine(kind, CASES[name], task, small_plan(), tree, MODES["lossy"].faults)


def begun(name: str, kind: str, own: bool = True) -> Engine:
    """At round 0, with a common model and one for each device."""
    task = task_of(name)
    engine = build(name, kind, task)
    (common,) = others(task, 1, seed=1)
    engine.beginning.give(common, others(task, DEVICES) if own else ())
    return engine


@pytest.mark.parametrize("name", GOES_ON)
def test_engines_agree(name: str) -> None:
    """From models of the devices' own."""
    before, after = begun(name, "serial"), begun(name, "vectorized")
    assert gap(evaluated(before), evaluated(after)) <= FLOAT64
    assert happened(before.step()) == happened(after.step())
    assert apart(before, after) <= FLOAT64


@pytest.mark.parametrize("name", GOES_ON)
def test_a_common_model_is_an_initial_model(name: str) -> None:
    """The same bits as with a module that holds it; nothing else knows the initial values."""
    engine, task = begun(name, "vectorized", own=False), task_of(name)
    (common,) = others(task, 1, seed=1)
    task.module.load_state_dict(common, strict=False)
    plain = build(name, "vectorized", task)
    trace(engine, 2)
    trace(plain, 2)
    kept = {k: v for k, v in by_name(engine).items() if not k.startswith("start")}
    assert gap(kept, by_name(plain)) == 0.0


def test_mocha_does_not_go_on() -> None:
    """Its models are made of dual variables; it is the only one."""
    assert sorted({name.partition(",")[0] for name in CASES if not CASES[name].goes_on}) == ["mocha"]


@pytest.mark.parametrize("kind", ["serial", "vectorized"])
class TestByHand:
    def test_a_device_begins_with_its_own_model(self, kind: str) -> None:
        """One full step of 1/2 to a = (0, 4) from (2, 8): (1, 6)."""
        task, plan = quad([0.0, 4.0])
        engine = make_engine(kind, make("ftl", {"lr": 0.5}), task, plan)
        own = [{"w": torch.tensor([v], dtype=torch.float64)} for v in (2.0, 8.0)]
        engine.beginning.give(own[0], own)
        assert [m.personal_pre["w"].item() for m in models(engine, np.arange(2), post=False)] == [2.0, 8.0]
        run(engine, 1)
        assert [m.personal_pre["w"].item() for m in models(engine, np.arange(2), post=False)] == [1.0, 6.0]

    def test_the_cloud_begins_with_the_common_model(self, kind: str) -> None:
        """Ditto's x = 5, v = (2, 8), lr = 1/2, lam = 1: x = mean (5/2, 9/2), v -= (v - a + v - 5) / 2."""
        task, plan = quad([0.0, 4.0])
        engine = make_engine(kind, make("ditto", {"lr": 0.5, "lam": 1.0}), task, plan)
        own = [{"w": torch.tensor([v], dtype=torch.float64)} for v in (2.0, 8.0)]
        engine.beginning.give({"w": torch.tensor([5.0], dtype=torch.float64)}, own)
        run(engine, 1)
        assert cloud(engine)["w"].item() == 3.5
        assert [engine.own(i)["v"]["w"].item() for i in range(2)] == [2.0 - (2.0 - 3.0) / 2, 8.0 - (4.0 + 3.0) / 2]

    @pytest.mark.parametrize("name", ["l2gd", "fmtl", "al2gd"])
    def test_who_keeps_a_mean_begins_with_it(self, kind: str, name: str) -> None:
        """Devices (1, 2, 3) and (7): the means of the teams are 2 and 7, that of all is 13 / 4."""
        task, plan = quad([0.0] * 4)
        settings = TopologySettings(fogs=2, teams="natural")
        quick = {"omega": "cluster"} if name == "fmtl" else {}
        engine = make_engine(kind, make(name, quick), task, plan, settings, natural=[0, 0, 0, 1])
        own = [{"w": torch.tensor([v], dtype=torch.float64)} for v in (1.0, 2.0, 3.0, 7.0)]
        engine.beginning.give({"w": torch.tensor([50.0], dtype=torch.float64)}, own)
        assert cloud(engine)["w"].item() == 3.25
        if not engine.tiers[1].relay:
            assert [engine.kept(1, k)["params"]["w"].item() for k in range(2)] == [2.0, 7.0]
