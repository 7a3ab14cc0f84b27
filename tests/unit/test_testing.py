"""`tierfed.testing`: a right algorithm passes, and each way to be wrong breaks the law that is about it."""

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import tierfed
from tierfed.task import Task
from tierfed.testing import LAWS, LawError, check_algorithm
from tierfed.tree import Params, Tree, scale

COUNT = itertools.count()


class Average(tierfed.Algorithm):
    def device(self, task: Task, msg: Tree, state: Tree, data: tierfed.Data) -> tuple[Tree, Tree]:
        return {"params": self.told(task.train(msg["params"], data, self.lr))}, state

    def told(self, params: Params) -> Params:
        """What is wrong with it."""
        return params


class Branches(Average):
    def told(self, params: Params) -> Params:
        return params if float(next(iter(params.values())).sum()) > 0 else scale(params, 2.0)


class Remembers(Average):
    """Outside of its state: neither engine's order nor a resumed run knows it."""

    def told(self, params: Params) -> Params:
        return scale(params, 1.0 + 0.01 * (next(COUNT) % 7))


class Forgets(Average):
    """A key of the state that only a visit adds."""

    def device(self, task: Task, msg: Tree, state: Tree, data: tierfed.Data) -> tuple[Tree, Tree]:
        return {"params": task.train(msg["params"], data, self.lr)}, {"new": torch.zeros(1)}


class Draws(Average):
    def told(self, params: Params) -> Params:
        return {k: v + torch.randn_like(v) for k, v in params.items()}


def broken(algorithm: type[tierfed.Algorithm], *laws: str) -> str:
    with pytest.raises(LawError) as found:
        check_algorithm(algorithm, only=laws)
    return str(found.value)


@pytest.mark.parametrize("law", LAWS)
def test_a_right_algorithm_passes(law: str) -> None:
    (outcome,) = check_algorithm("ditto", {"lam": 0.5}, only=[law])
    assert (outcome.law, outcome.state, outcome.why) == (law, "holds", "")


def test_an_algorithm_for_linear_models() -> None:
    def linear(act: Any = None, dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> Task:
        return Task(nn.Linear(8, 4).to(dtype))

    law = "engines agree, 3 tiers, lossy"
    assert check_algorithm("mocha", task=linear, only=[law])[0].state == "holds"
    assert "MOCHA is for one linear layer" in check_algorithm("mocha", only=[law], raises=False)[0].why


def test_fogs_that_do_more_than_relay_are_noticed() -> None:
    (outcome,) = check_algorithm("hierfavg", only=["relays are not there"])
    assert (outcome.state, outcome.why) == ("left out", "its fogs do more than relay")


def test_python_branches_are_named_with_their_line() -> None:
    told = broken(Branches, "engines agree, flat, full")
    assert "no Python `if` on values of tensors" in told
    assert "test_testing.py, line" in told


def test_a_memory_of_its_own_breaks_the_laws() -> None:
    laws = ("engines agree, flat, full", "engines agree, 3 tiers, full", "resumed is uninterrupted")
    told = broken(Remembers, *laws)
    assert told.startswith("Remembers breaks 3 of 3 laws")
    assert "differ by" in told
    assert "kept0/0" in told or "own/" in told


def test_a_state_that_changes_its_keys() -> None:
    told = broken(Forgets, "states keep their form")
    assert "has another form than `init` gave it: new" in told


def test_random_numbers_of_its_own() -> None:
    assert "breaks 1 of 1" in broken(Draws, "engines agree, flat, full")


@pytest.mark.parametrize(
    ("algorithm", "settings", "only", "message"),
    [
        ("dito", None, (), "did you mean 'ditto'"),
        ("ditto", {"lamb": 1}, (), "did you mean 'lam'"),
        (Average(), {"lr": 1}, (), "an instance has its own"),
        (3, None, (), "wanted a tierfed.Algorithm"),
        ("ditto", None, ("chunks matter",), "did you mean 'chunks do not matter'"),
    ],
)
def test_bad_input(algorithm: Any, settings: Any, only: tuple[str, ...], message: str) -> None:
    with pytest.raises(tierfed.InputError, match=message):
        check_algorithm(algorithm, settings, only=only)
