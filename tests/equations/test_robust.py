"""Robust rules on numbers that can be checked by hand, and what they promise whoever the attackers are."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tierfed.algorithms import make
from tierfed.links import At, Attack, Heard, Link, Links, ReduceSettings
from tierfed.links.rules import Robust, krum_order, median, needed, trimmed_mean, weiszfeld
from tierfed.testing.toy import cloud, make_engine, quad
from tierfed.tree import Tree

AT = At(0, 1, 0, 0, 0)
RULES = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median", "norm_bound")


def points(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def reduced(rule: str, changes: Tensor, sent: Tensor | None = None, weights: Any = None, **more: Any) -> Tensor:
    """What a parent makes of changes [H, d] of what it sent [d]."""
    at = torch.zeros(changes.shape[1], dtype=changes.dtype) if sent is None else sent
    n = len(changes)
    heard = Heard(
        [{"params": {"w": at + c}, "loss": c.sum()} for c in changes],
        [{"params": {"w": at}}] * n,
        np.ones(n) if weights is None else np.array(weights, np.float64),
        np.arange(n),
        np.arange(n),
    )
    out: Tree = Robust(settings=ReduceSettings(rule=rule, **more)).reduce(heard, {}, AT)[0]  # type: ignore[arg-type]
    moved: Tensor = out["params"]["w"] - at
    return moved


def test_median_by_hand() -> None:
    """Odd: the middle one of each coordinate; even: half way between the two in the middle."""
    assert median(points([1, 9], [5, 2], [3, -4])).tolist() == [3, 2]
    assert median(points([1.0], [7], [2], [100])).tolist() == [4.5]


def test_trimmed_mean_by_hand() -> None:
    """Of five, floor(0.2 * 5) = 1 falls away at either end: (2 + 3 + 4) / 3; of four, none."""
    assert trimmed_mean(points([1.0], [2], [3], [4], [90]), 0.2).tolist() == [3.0]
    assert trimmed_mean(points([1.0], [2], [3], [94]), 0.2).tolist() == [25.0]


def test_krum_by_hand() -> None:
    """H = 5, f = 1: two nearest others count. 0, 1, 3, 6 and 50 have the scores 1 + 9, 1 + 4, 4 + 9, 9 + 25 and
    44^2 + 47^2: the one at 1 is best, then 0, then 3.
    """
    x = points([0.0], [1], [3], [6], [50])
    assert krum_order(x, 0.2).tolist() == [1, 0, 2, 3, 4]
    assert reduced("krum", x).tolist() == [1.0]
    assert reduced("multi_krum", x).tolist() == [(0 + 1 + 3 + 6) / 4]
    assert needed("krum", 0.2, 4) == 3
    assert needed("multi_krum", 0.2, 5) == 5
    assert needed("median", 0.2, 5) == 1


def test_geometric_median_by_hand() -> None:
    """Of three on a line the middle one; of the corners of a triangle with equal sides its center, which is their mean;
    of a cross with arms of any length, its center.
    """
    assert reduced("geometric_median", points([0.0], [1], [100]), steps=1000)[0] == pytest.approx(1.0, abs=1e-3)
    third = points([0, 0], [1, 0], [0.5, 3**0.5 / 2])
    assert reduced("geometric_median", third) == pytest.approx(third.mean(0).tolist())
    cross = points([1, 0], [-5, 0], [0, 2], [0, -70])
    assert reduced("geometric_median", cross, steps=2000).abs().max() < 1e-2


def test_norm_bound_by_hand() -> None:
    """(3, 4) is 5 long: with bound 1 it counts as (0.6, 0.8); (0.5, 0) stays. Weights 3 : 1."""
    out = reduced("norm_bound", points([3, 4], [0.5, 0]), sent=points([7, -2])[0], weights=[3, 1], bound=1.0)
    assert out.tolist() == pytest.approx([(3 * 0.6 + 0.5) / 4, 3 * 0.8 / 4])


@given(st.integers(0, 2**31), st.integers(5, 12), st.sampled_from(RULES))
@settings(max_examples=60, deadline=None)
def test_the_order_of_children_does_not_matter(seed: int, n: int, rule: str) -> None:
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, 4)))
    shuffled = x[torch.from_numpy(rng.permutation(n))]
    assert torch.allclose(reduced(rule, x), reduced(rule, shuffled), atol=1e-9)


@given(st.integers(0, 2**31), st.integers(5, 15), st.sampled_from(RULES[:5]))
@settings(max_examples=60, deadline=None)
def test_moving_all_moves_the_result(seed: int, n: int, rule: str) -> None:
    """Equivariant under translation: the same of what is sent and of a change."""
    rng = np.random.default_rng(seed)
    x, by = torch.from_numpy(rng.normal(size=(n, 3))), torch.from_numpy(rng.normal(size=3))
    assert torch.allclose(reduced(rule, x + by), reduced(rule, x) + by, atol=1e-6)
    assert torch.allclose(reduced(rule, x, sent=10 * by), reduced(rule, x), atol=1e-6)


@given(st.integers(0, 2**31), st.sampled_from([9, 10, 15, 20]), st.floats(1.0, 1e9), st.sampled_from(RULES[:5]))
@settings(max_examples=80, deadline=None)
def test_a_fifth_of_attackers_stays_without_power(seed: int, n: int, far: float, rule: str) -> None:
    """However far they go together, the result stays near the honest ones, who are within 1 of the origin."""
    rng, f = np.random.default_rng(seed), int(0.2 * n)
    honest = rng.uniform(-1, 1, (n - f, 3)) / 3**0.5
    x = torch.from_numpy(np.concatenate([honest, far * np.ones((f, 3))]))
    assert float(reduced(rule, x, steps=500).norm()) <= 3.0


@given(st.integers(0, 2**31), st.integers(1, 7), st.floats(10, 1e6))
@settings(max_examples=40, deadline=None)
def test_the_median_breaks_down_at_half(seed: int, honest: int, far: float) -> None:
    """One honest child more than there are attackers holds it; with as many, it follows them half way."""
    rng = np.random.default_rng(seed)
    good = rng.uniform(-1, 1, (honest, 2))
    held = median(torch.from_numpy(np.concatenate([good, far * np.ones((honest - 1, 2))])))
    lost = median(torch.from_numpy(np.concatenate([good, far * np.ones((honest, 2))])))
    assert float(held.abs().max()) <= 1.0
    assert float(lost.min()) >= far / 2 - 1


def test_equal_changes_are_their_own_result() -> None:
    for rule in RULES[:5]:
        assert reduced(rule, points([2, -1], [2, -1], [2, -1])).tolist() == [2, -1]
    assert weiszfeld(points([1, 1], [1, 1]), 5).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("rule", "wanted"), [(None, 4.8), ("median", 4.0), ("trimmed_mean", 4.0), ("krum", 3.0)])
def test_a_round_by_hand(rule: str | None, wanted: float) -> None:
    """f_i = 1/2 |w - a_i|^2 from w = 0 with lr 0.5 moves a device half way: changes 1, 2, 3, 4, 5 for a = 2 .. 10.

    The first one is scaled by 10: 10, 2, 3, 4, 5; their mean 4.8, median 4, trimmed (3 + 4 + 5) / 3 = 4. Krum with two
    nearest: scores of 2: 1 + 4, 3: 1 + 1, 4: 1 + 1, 5: 1 + 4; the first best is 3.
    """
    task, plan = quad([2.0, 4.0, 6.0, 8.0, 10.0])
    link = Link(rule=None if rule is None else Robust(settings=ReduceSettings(rule=rule)))  # type: ignore[arg-type]
    links = Links(below=(link,), attack=Attack(kind="scale", level=1, nodes=frozenset({0}), strength=10.0))
    engine = make_engine("serial", make("fedavg", {"lr": 0.5}), task, plan, links=links)
    engine.step()
    assert cloud(engine)["w"].tolist() == pytest.approx([wanted])


def test_attacks_by_hand() -> None:
    change = {"params": {"w": torch.tensor([3.0, -4.0])}}
    nodes = frozenset({1})
    flip = Attack(kind="sign_flip", level=1, nodes=nodes, strength=2.0)
    assert flip.change(change, (1,))["params"]["w"].tolist() == [-6.0, 8.0]
    many = {"params": {"w": torch.full((4000,), 3.0)}}
    noise = Attack(kind="noise", level=1, nodes=nodes, strength=2.0).change(many, (1,))["params"]["w"]
    assert float(noise.std()) == pytest.approx(6.0, rel=0.05)
    assert abs(float(noise.mean())) < 0.4
    assert flip.attacks(1, 1)
    assert not flip.attacks(1, 0)
    assert not flip.attacks(2, 1)
