"""Transfer learning: which layers are chosen, and FTL as a stage of its own, which starts from a model and sends
nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tierfed.algorithm import Algorithm
from tierfed.algorithms import make
from tierfed.algorithms.finetune import FineTune
from tierfed.algorithms.ftl import FTL
from tierfed.algorithms.layers import Tuning
from tierfed.algorithms.reptile import Reptile
from tierfed.engine.evaluate import models
from tierfed.errors import InputError
from tierfed.task import Task
from tierfed.testing.toy import ENGINES, gap, make_engine, quad, run, toy_net, toy_plan, toy_settings, toy_task
from tierfed.tree import Params

kinds = pytest.mark.parametrize("kind", ENGINES)
STATISTICS = {"1.running_mean", "1.running_var"}
CHOICES: list[tuple[dict[str, Any], set[str]]] = [
    ({"tune": "all"}, {"0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"}),
    ({"tune": "head"}, {"3.weight", "3.bias"}),
    ({"tune": "head", "depth": 0}, set()),
    ({"tune": "bias"}, {"0.bias", "1.bias", "3.bias"}),
    ({"tune": "adaptors"}, {"3.bias"}),
    ({"tune": "adaptors", "depth": 2}, {"1.weight", "1.bias", "3.bias"}),
    ({"tune": "adaptors", "depth": 3}, {"0.bias", "1.weight", "1.bias", "3.bias"}),
    ({"tune": "match", "match": "[03].*"}, {"0.weight", "0.bias", "3.weight", "3.bias"}),
    ({"tune": "match", "match": "3.weight"}, {"3.weight"}),
]
chosen = pytest.mark.parametrize(("changes", "keys"), CHOICES)


def after(algorithm: Algorithm, task: Task, kind: str = "vectorized", rounds: int = 2) -> list[Params]:
    """The personal models of the toy's devices after some rounds."""
    engine = run(make_engine(kind, algorithm, task, toy_plan()), rounds)
    return [m.personal_pre for m in models(engine, np.arange(12), post=False)]


@chosen
@pytest.mark.parametrize("method", [FineTune, FTL, Reptile])
def test_which_layers(method: type[Tuning], changes: dict[str, Any], keys: set[str]) -> None:
    """8 - 16 - batch norm - 4: the layers are 0, 1 (the batch norm) and 3."""
    assert set(method(**changes).tuned(toy_task())) == keys


@chosen
@kinds
def test_T42_what_is_not_chosen_stays_bit_by_bit(kind: str, changes: dict[str, Any], keys: set[str]) -> None:
    """Statistics of the batch norm move with its parameters; an empty choice (T-40) leaves the model as it was. Before
    a batch norm that trains, the gradient of a bias is zero up to rounding: 0.bias may move, or not."""
    task = toy_task()
    start, moves = task.init(), keys | (STATISTICS if keys & {"1.weight", "1.bias"} else set())
    for mine in after(FTL(**changes), task, kind):
        found = {k for k in start if not torch.equal(mine[k], start[k])}
        assert moves - {"0.bias"} <= found <= moves


def test_T42_a_batch_norm_without_parameters_before_any_layer() -> None:
    """It follows the first layer: tuning the head leaves its statistics alone."""
    task = Task(nn.Sequential(nn.BatchNorm1d(8, affine=False), toy_net(norm=False)).double())
    start = task.init()
    (head,) = {k.rpartition(".")[0] for k in task.head_keys()}
    for mine in after(FTL(tune="head"), task)[:3]:
        assert {k for k in start if not torch.equal(mine[k], start[k])} == {f"{head}.weight", f"{head}.bias"}
    for mine in after(FTL(tune="all"), task)[:3]:
        assert {k for k in start if not torch.equal(mine[k], start[k])} == set(start)


@kinds
@settings(max_examples=25, deadline=None)
@given(
    x=st.floats(-5, 5),
    a=st.lists(st.floats(-5, 5), min_size=2, max_size=4),
    lr=st.floats(0.05, 0.9),
    epochs=st.integers(1, 4),
    rounds=st.integers(1, 3),
)
def test_T41_closed_form(kind: str, x: float, a: list[float], lr: float, epochs: int, rounds: int) -> None:
    """theta_i = a_i + (1 - s)^F (x - a_i) after F = epochs times rounds full-batch steps."""
    task, plan = quad(a, start=[x])
    engine = run(make_engine(kind, FTL(lr=lr, epochs=epochs), task, plan), rounds)
    for m in models(engine, np.arange(len(a)), post=False):
        want = a[m.device] + (1 - lr) ** (epochs * rounds) * (x - a[m.device])
        assert m.personal_pre["w"].item() == pytest.approx(want, abs=1e-12)
        assert m.global_model == {}


@kinds
def test_all_layers_is_local_training_and_nothing_is_sent(kind: str) -> None:
    task, plan, tree = toy_task(), toy_plan(), toy_settings(participation=0.5)["3 tiers"]
    ftl, local = (make_engine(kind, make(name), task, plan, tree) for name in ("ftl", "local"))
    for _ in range(2):
        assert set(ftl.step().link_bytes().values()) == {0}
        local.step()
    for i in range(12):
        assert gap(ftl.own(i), local.own(i)) == 0.0


@pytest.mark.parametrize("name", ["ftl", "finetune", "reptile"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tune": "match", "match": "conv*"}, ["fits no parameter", "0.weight, 0.bias, 1.weight", "3.bias"]),
        ({"tune": "match"}, ["fits no parameter"]),
        ({"match": "3.*"}, ["a pattern is for tune = 'match'"]),
        ({"tune": "head", "depth": 4}, ["depth = 4", "at most 3"]),
        ({"tune": "adaptors", "depth": 4}, ["depth = 4", "at most 3"]),
    ],
)
def test_choices_that_cannot_be(name: str, changes: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(InputError) as err:
        make(name, changes).tiers(toy_task(), (1, 2))
    assert [text for text in said if text not in str(err.value)] == []


def test_an_unknown_choice() -> None:
    with pytest.raises(InputError, match=r"algorithm\.tune = 'heads'"):
        make("ftl", {"tune": "heads"})
