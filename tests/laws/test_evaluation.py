"""Evaluation walks down: every device on the message of its own parent, without a trace in the run."""

import numpy as np
import pytest

from laws.cases import CASES, fits, task_of
from laws.world import DEVICES, by_name, evaluated, small_plan, trace, trees
from support import ENGINES, gap, make_engine, toy_task
from tierfed.algorithms import make
from tierfed.algorithms.jobfed import JobFed
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import models
from tierfed.tree import mix, take


def after(kind: str, name: str, rounds: int = 2) -> Engine:
    tree = "3 tiers" if fits(name, "3 tiers") else "clusters"
    return trace(make_engine(kind, CASES[name], task_of(name), small_plan(), trees(0.7)[tree]), rounds).engine


@pytest.mark.parametrize(("name", "kind"), [(n, "vectorized") for n in CASES] + [("jobfed", "serial")])
def test_evaluation_leaves_no_trace(name: str, kind: str) -> None:
    engine = after(kind, name, 1)
    before, round_, bursts = dict(by_name(engine)), engine.round, len(engine.log.bursts)
    first = evaluated(engine)
    assert gap(by_name(engine), before) == 0.0
    assert (engine.round, len(engine.log.bursts)) == (round_, bursts)
    assert gap(evaluated(engine), first) == 0.0


@pytest.mark.parametrize("name", ["fedbn", "hierfavg", "jobfed, team"])
def test_the_order_and_number_of_devices_do_not_matter(name: str) -> None:
    engine = after("vectorized", name)
    every = evaluated(engine, np.arange(DEVICES))
    some = np.array([7, 2, 5])
    assert [m.device for m in models(engine, some)] == [7, 2, 5]
    assert gap(evaluated(engine, some), take(every, ["7", "2", "5"])) <= 1e-12
    ones = {str(m.device): m.personal_post for m in models(engine, some, chunk=1)}
    assert gap(ones, {i: m["post"] for i, m in take(every, ["7", "2", "5"]).items()}) <= 1e-12


def test_personal_post_is_optional() -> None:
    assert [m.personal_post for m in models(after("vectorized", "fedavg"), np.arange(3), post=False)] == [None] * 3


@pytest.mark.parametrize("kind", ENGINES)
def test_hierfavg_by_hand(kind: str) -> None:
    """A device would hear from its fog what the fog would hear from the cloud: x. The team model is the fog's own."""
    engine = after(kind, "hierfavg")
    x = engine.kept(0, 0)["params"]
    for m in models(engine, np.arange(DEVICES)):
        fog = int(engine.topology.parents[-1][m.device])
        data = engine.plan.one(m.device, engine.algorithm, 2, 0)
        assert m.team is not None
        assert gap(m.global_model, x) == 0.0
        assert gap(m.team, engine.kept(1, fog)["params"]) == 0.0
        assert gap(m.personal_pre, x) == 0.0
        assert gap(m.personal_post, engine.tasks[0].train(x, data, engine.algorithm.lr)) <= 1e-12


@pytest.mark.parametrize("kind", ENGINES)
def test_jobfed_by_hand(kind: str) -> None:
    """pre: the mixture of the received part and the device's own; post: what it becomes by training."""
    task = toy_task()
    algorithm = make("jobfed", {"alpha": 0.3, "recluster_every": 0})
    assert isinstance(algorithm, JobFed)
    engine = trace(make_engine(kind, algorithm, task, small_plan(), trees()["3 tiers"]), 2).engine
    x, down = engine.kept(0, 0)["params"], algorithm.np_keys(task)
    for m in models(engine, np.arange(0, DEVICES, 4)):
        own = engine.own(m.device)
        pre = {**own["own"], **mix(take(own["own"], down), take(x, down), own["alpha"])}
        data = engine.plan.one(m.device, algorithm, 2, 0)
        assert gap(m.personal_pre, pre) == 0.0
        assert m.personal_post is not None
        after_visit = task.train(pre, data, algorithm.lr)
        up, state = algorithm.device(task, {"params": take(x, down)}, own, data)
        assert gap(state["own"], after_visit) <= 1e-12
        again = {**after_visit, **mix(take(after_visit, down), take(up["params"], down), state["alpha"])}
        assert gap(m.personal_post, again) <= 1e-12


def test_flat_trees_have_no_team() -> None:
    engine = trace(make_engine("vectorized", CASES["fedavg"], toy_task(), small_plan(), trees()["flat"]), 1).engine
    assert [m.team for m in models(engine, np.arange(3))] == [None] * 3
