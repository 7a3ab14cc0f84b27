"""Evaluation walks down: every device on the message of its own parent, without a trace in the run."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from laws.cases import CASES, fits, subject, task_of
from tierfed import evaluation
from tierfed.algorithm import Data
from tierfed.algorithms import make
from tierfed.algorithms.jobfed import JobFed
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import message_to, models
from tierfed.evaluation import Found, evaluate
from tierfed.metrics import Kind
from tierfed.plan import Plan
from tierfed.task import LOSSES, Task
from tierfed.testing.laws import evaluation_leaves_no_trace
from tierfed.testing.toy import ENGINES, Ids, gap, make_engine, toy_task
from tierfed.testing.trees import DEVICES, evaluated, relative, small_plan, trace, trees
from tierfed.tree import Tree, mix, take


def after(kind: str, name: str, rounds: int = 2) -> Engine:
    tree = "3 tiers" if fits(name, "3 tiers") else "clusters"
    return trace(make_engine(kind, CASES[name], task_of(name), small_plan(), trees(0.7)[tree]), rounds).engine


@pytest.mark.parametrize(("name", "kind"), [(n, "vectorized") for n in CASES] + [("jobfed", "serial")])
def test_evaluation_leaves_no_trace(name: str, kind: str) -> None:
    evaluation_leaves_no_trace(subject(name), kind)


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


TEST = [np.arange(3 * i, 3 * i + n) for i, n in enumerate((4, 0, 9, 1, 4, 6, 2, 7, 4))]
"""Test rows of the devices: ragged, one has none."""


def one_at_a_time(engine: Engine, kind: Kind = "classification", test: Sequence[Ids] = TEST) -> Tree:
    """The scores by definition: every device alone, on the message of its parent, one model after the other."""
    out: Tree = {}
    for i, rows in enumerate(test):
        task, own, algorithm = engine.task(i), engine.own(i), engine.algorithm
        message, data = message_to(engine, i), engine.plan.one(i, algorithm, engine.round, 0)
        up, state = algorithm.device(task, message, own, data)
        fogs = [int(engine.topology.ancestor(engine.depth, np.array([i]), d)[0]) for d in range(engine.depth)]
        inner = [engine.tiers[d].model(engine.kept(d, fogs[d])) for d in range(engine.depth)]
        found = {
            "global": inner[0],
            "team": next((m for m in reversed(inner[1:]) if m is not None), None),
            "personal_pre": algorithm.personal(task, message, own, data),
            "personal_post": algorithm.personal(task, {**message, **up}, state, data),
        }
        x, y = engine.plan.x[rows], engine.plan.y[rows]
        for name, params in found.items():
            if params is None or not params.keys() >= set(task.keys) or not len(rows):
                continue
            logits = task.outputs(params, x)
            scores = {"loss": task.loss(logits, y)}
            if kind == "classification":
                scores["accuracy"] = (logits.argmax(1) == y).double()
            else:
                scores["abs_error"] = (logits - y).abs().mean(1)
                scores["squared_error"] = (logits - y).square().mean(1)
            for metric, each in scores.items():
                out.setdefault(name, {}).setdefault(metric, {})[str(i)] = each.mean()
    return out


def plain(found: Found) -> Tree:
    """Scores as a tree with a leaf for each device."""
    return {
        name: {
            metric: dict(zip(map(str, s.devices.tolist()), torch.from_numpy(s.values), strict=True))
            for metric, s in scores.items()
        }
        for name, scores in found.items()
    }


def accuracies(tree: Tree) -> Tree:
    return {name: scores["accuracy"] for name, scores in tree.items()}


@pytest.mark.parametrize(("name", "tree"), [(n, t) for n in CASES for t in ("flat", "clusters") if fits(n, t)])
def test_together_is_one_at_a_time(name: str, tree: str) -> None:
    """Every algorithm: the batched evaluation has the scores of the definition, and the very accuracies."""
    engine = trace(make_engine("vectorized", CASES[name], task_of(name), small_plan(), trees(0.7)[tree]), 1).engine
    expected, found = one_at_a_time(engine), plain(evaluate(engine, TEST, "classification", np.arange(DEVICES)))
    assert relative(found, expected) <= 1e-12
    assert gap(accuracies(found), accuracies(expected)) == 0.0


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("name", ["fedavg", "hierfavg", "fedbn", "jobfed", "ditto", "pfedla", "finetune", "pfedhn"])
def test_neither_chunks_nor_parts_change_a_score(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 3 rows cut the test data of one device, parts of 10 keep two or three devices together."""
    engine, everybody = after(kind, name), np.arange(DEVICES)
    expected = one_at_a_time(engine)
    for chunk, rows in ((1, 2048), (2, 3), (4, 10), (0, 10), (0, 2048)):
        monkeypatch.setattr(evaluation, "_ROWS_AT_ONCE", rows)
        found = plain(evaluate(engine, TEST, "classification", everybody, chunk=chunk))
        assert relative(found, expected) <= 1e-12
        assert gap(accuracies(found), accuracies(expected)) == 0.0


@pytest.mark.parametrize("kind", ENGINES)
def test_different_architectures(kind: str) -> None:
    kinds = np.array([0, 1, 0, 0, 1, 0, 1, 0, 0])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        tasks = [toy_task(), Task(nn.Linear(8, 4).double(), public=toy_task().public, classes=4)]
    for name in ("local", "fd"):
        engine = trace(make_engine(kind, make(name), tasks, small_plan(), trees()["3 tiers"], kinds=kinds), 1).engine
        found = plain(evaluate(engine, TEST, "classification", np.arange(DEVICES)))
        assert found.keys() == {"personal_pre", "personal_post"}
        assert relative(found, one_at_a_time(engine)) <= 1e-12


@pytest.mark.parametrize("kind", ENGINES)
def test_batch_norms_without_running_statistics(kind: str) -> None:
    """What such a model says of a sample depends on its batch: every device is a batch of its own.

    A batch of one sample has no variance, so nobody has a single one here.
    """
    test = [rows if len(rows) > 1 else rows[:0] for rows in TEST]
    norm = nn.BatchNorm1d(5, track_running_stats=False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        task = Task(nn.Sequential(nn.Linear(8, 5), norm, nn.Linear(5, 4)).double(), classes=4)
    for name in ("fedavg", "ditto"):
        engine = trace(make_engine(kind, make(name), task, small_plan(), trees()["3 tiers"]), 1).engine
        found = plain(evaluate(engine, test, "classification", np.arange(DEVICES)))
        assert relative(found, one_at_a_time(engine, test=test)) <= 1e-12


@pytest.mark.parametrize("kind", ENGINES)
def test_regression(kind: str) -> None:
    plan = small_plan()
    plan = replace(plan, y=torch.stack([plan.x[:, 0], plan.x[:, 1] * plan.x[:, 2]], 1))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(2)
        task = Task(nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2)).double(), LOSSES["mse"])
    for name in ("fedavg", "ditto"):
        engine = trace(make_engine(kind, make(name), task, plan, trees()["3 tiers"]), 1).engine
        found = plain(evaluate(engine, TEST, "regression", np.arange(DEVICES)))
        assert set(found["personal_pre"]) == {"abs_error", "squared_error", "loss"}
        assert relative(found, one_at_a_time(engine, "regression")) <= 1e-12


@pytest.mark.parametrize("name", ["fedavg", "pfedla", "jobfed"])
def test_a_sample_has_the_scores_of_the_whole(name: str) -> None:
    engine = after("vectorized", name)
    whole = plain(evaluate(engine, TEST, "classification", np.arange(DEVICES)))
    some = plain(evaluate(engine, TEST, "classification", np.array([0, 1, 5, 8])))
    for model, scores in some.items():
        for metric, values in scores.items():
            assert set(values) == {"0", "5", "8"}  # device 1 has no test data
            assert gap(values, take(whole[model][metric], values)) <= 1e-12


def test_nobody_with_test_data_gives_no_score() -> None:
    assert evaluate(after("vectorized", "fedavg", 1), TEST, "classification", np.array([1])) == {}


def test_data_are_drawn_for_algorithms_that_look_at_them_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A personal model that is a part of the message needs no batches; one that is tuned does."""
    for name, looks in (("fedavg", False), ("jobfed", False), ("finetune", True), ("per-fedavg", True)):
        engine, drawn = after("vectorized", name, 1), list[int]()
        data = type(engine.plan).data

        def counted(plan: Plan, devices: Sequence[int], *rest: Any, data: Any = data, drawn: Any = drawn) -> Data:
            drawn.append(len(devices))
            return data(plan, devices, *rest)  # type: ignore[no-any-return]

        monkeypatch.setattr(type(engine.plan), "data", counted)
        evaluate(engine, TEST, "classification", np.arange(DEVICES), post=False)
        monkeypatch.undo()
        assert bool(drawn) == looks
