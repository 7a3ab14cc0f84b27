"""Fates are pure functions of (seed, kind, level, node, round, tick), as often as they should be."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tierfed.errors import InputError
from tierfed.faults import Faults, at
from tierfed.settings import build

MANY = np.arange(20_000)


@pytest.mark.parametrize("kind", ["lost", "silent"])
@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
def test_as_often_as_asked(kind: str, p: float) -> None:
    happened = getattr(Faults(loss=p, dropout=p), kind)(0, 1, MANY, 0, 0)
    assert stats.binomtest(int(happened.sum()), len(MANY), p).pvalue > 1e-6


@pytest.mark.parametrize("kind", ["lost", "silent"])
def test_never_and_always(kind: str) -> None:
    assert not getattr(Faults(), kind)(0, 1, MANY, 0, 0).any()
    assert getattr(Faults(loss=1.0, dropout=1.0), kind)(0, 1, MANY, 0, 0).all()


@given(st.permutations(range(10)), st.integers(0, 99), st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_the_company_does_not_matter(order: list[int], round_: int, tick: int) -> None:
    f, ids = Faults(loss=0.5, dropout=0.5, slowdown=1.0), np.arange(10)
    for kind in (f.lost, f.silent):
        whole = kind(3, 2, ids, round_, tick)
        assert np.array_equal(kind(3, 2, np.array(order), round_, tick), whole[order])
    assert np.array_equal(f.slow(3, np.array(order), round_), f.slow(3, ids, round_)[order])


def test_fates_of_levels_rounds_ticks_seeds_and_kinds_are_unrelated() -> None:
    f = Faults(loss=0.5, dropout=0.5)
    draws = [f.lost(0, 1, MANY, 0, 0), f.lost(1, 1, MANY, 0, 0), f.lost(0, 2, MANY, 0, 0), f.lost(0, 1, MANY, 1, 0)]
    draws += [f.lost(0, 1, MANY, 0, 1), f.silent(0, 1, MANY, 0, 0)]
    agree = [float((a == b).mean()) for i, a in enumerate(draws) for b in draws[:i]]
    assert max(abs(share - 0.5) for share in agree) < 0.02  # five standard deviations are 0.018


def test_a_smaller_probability_is_a_subset() -> None:
    few, many = (Faults(loss=p).lost(0, 1, MANY, 0, 0) for p in (0.1, 0.4))
    assert not (few & ~many).any()


def test_probabilities_per_link() -> None:
    f = Faults(loss=(0.0, 1.0))
    assert [bool(f.lost(0, level, np.arange(1), 0, 0)[0]) for level in (1, 2, 3)] == [False, True, True]
    assert [at((0.1, 0.2), link) for link in range(3)] == [0.1, 0.2, 0.2]
    assert at(0.3, 7) == 0.3


def test_slowdown_is_log_normal() -> None:
    slow = Faults(slowdown=0.5).slow(0, MANY, 4)
    assert stats.kstest(np.log(slow) / 0.5, "norm").pvalue > 1e-6
    assert Faults().slow(0, np.arange(3), 4).tolist() == [1.0, 1.0, 1.0]


def test_nobody_is_fine() -> None:
    none = np.zeros(0, np.int64)
    assert Faults(loss=0.5).lost(0, 1, none, 0, 0).shape == (0,)


@pytest.mark.parametrize(
    "table", [{"loss": 1.5}, {"dropout": -0.1}, {"loss": [0.5, 2.0]}, {"deadline_seconds": 0}, {"slowdown": -1}]
)
def test_impossible_values(table: dict[str, object]) -> None:
    with pytest.raises(InputError, match="faults"):
        build(Faults, table, "faults")
