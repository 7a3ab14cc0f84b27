"""FedFomo on QUAD: w = (L(own) - L(other)) / distance, L(theta) = (theta - held)^2 / 2 on the held-out sample."""

from typing import Any

import numpy as np
import pytest
import torch

from tierfed.algorithms.fedfomo import FedFomo, Matchmaker
from tierfed.engine.base import Engine
from tierfed.testing.toy import ENGINES, info, make_engine, quad
from tierfed.tree import Params, Tree, stack

kinds = pytest.mark.parametrize("kind", ENGINES)


def w(value: float) -> Params:
    return {"w": torch.tensor([value], dtype=torch.float64)}


def world(kind: str, thetas: list[float], held: list[float], **changes: Any) -> Engine:
    """Devices with these models that train nothing: a = theta is not needed, the learning rate is 1e-300."""
    task, plan = quad([0.0] * len(thetas), held=held)
    settings = {"lr": 1e-300, "models": len(thetas) - 1, "explore": 0.0, **changes}
    engine = make_engine(kind, FedFomo(**settings), task, plan)
    tier = engine.tiers[0]
    for i, theta in enumerate(thetas):
        engine.put_own(i, {"theta": w(theta)})
        engine.put_row(0, i, tier.child(w(theta), i))
    return engine


def found(engine: Engine, i: int) -> float:
    return float(engine.own(i)["theta"]["w"])


@kinds
def test_T84_all_received_models_worse(kind: str) -> None:
    """Device 0 is at its optimum and stays; P gets the raw, negative w: -(4 / 2) / 2 = -1 and -(16 / 2) / 4 = -2."""
    engine = world(kind, [1.0, 3.0, 5.0], [1.0, 0.0, 0.0])
    engine.step()
    assert found(engine, 0) == 1.0
    (record,) = engine.rows(0, np.array([0]))
    assert record["affinity"].tolist() == pytest.approx([0.0, -1.0, -2.0], abs=1e-12)


@kinds
def test_T84_one_better_is_taken_exactly(kind: str) -> None:
    """Judged on 2.9: 3 is better than 1, 7 is worse; the weight of the one that is left is 1."""
    engine = world(kind, [1.0, 3.0, 7.0], [2.9, 3.0, 7.0])
    engine.step()
    assert [found(engine, i) for i in range(3)] == [3.0, 3.0, 7.0]


@kinds
def test_two_better_by_hand(kind: str) -> None:
    """Judged on 0, L = theta^2 / 2, own 4 (8): others 2 (2) and 0 (0). w = 6 / 2 = 3 and 8 / 4 = 2, shares 3/5, 2/5.

    theta = 4 - 2 * 3/5 - 4 * 2/5 = 6/5
    """
    engine = world(kind, [4.0, 2.0, 0.0], [0.0, 2.0, 0.0])
    engine.step()
    assert found(engine, 0) == pytest.approx(1.2, abs=1e-12)


@kinds
def test_the_same_model_as_ones_own_says_nothing(kind: str) -> None:
    engine = world(kind, [1.0, 1.0, 1.0 + 1e-6], [0.0, 0.0, 0.0])
    engine.step()
    assert [found(engine, i) for i in range(2)] == [1.0, 1.0]
    assert engine.rows(0, np.array([0]))[0]["affinity"].tolist() == [0.0] * 3


@kinds
def test_then_it_trains(kind: str) -> None:
    """From 3, a step of 1/2 on (theta - 0)^2 / 2 leads to 3/2."""
    engine = world(kind, [1.0, 3.0], [3.0, 3.0], lr=0.5)
    engine.step()
    assert [found(engine, i) for i in range(2)] == [1.5, 1.5]


def asked(tier: Matchmaker, affinity: list[list[float]], slot: int, ids: list[int]) -> list[int]:
    rows: Tree = stack([tier.child(w(0.0), i) for i in ids])
    rows["affinity"] = torch.tensor(affinity, dtype=torch.float64)
    best = tier.best({"rows": rows, "ids": torch.tensor(ids)}, torch.tensor(slot))
    return [ids[int(s)] for s in best]


def test_the_best_liked_are_sent() -> None:
    tier = Matchmaker(devices=6, models=2, explore=0.0, seed=0)
    like = [[9.0, 1.0, 5.0, 2.0, 4.0, 3.0]] * 4
    assert asked(tier, like, 0, [0, 1, 3, 5]) == [5, 3]
    assert asked(tier, like, 2, [0, 1, 3, 5]) == [0, 5]


def test_random_ones_are_sent_with_the_probability_of_exploration() -> None:
    """The liked ones come only by chance when exploring: 1 of 10 pairs of 5 others, besides always at explore = 0."""
    ids, like = list(range(6)), [[0.0, 9.0, 8.0, 0.0, 0.0, 0.0]] * 6
    always = [asked(Matchmaker(devices=6, models=2, explore=0.0, seed=s), like, 0, ids) for s in range(200)]
    half = [asked(Matchmaker(devices=6, models=2, explore=0.5, seed=s), like, 0, ids) for s in range(200)]
    assert all(a == [1, 2] for a in always)
    share = np.mean([set(h) == {1, 2} for h in half])
    assert 0.45 < share < 0.65  # 0.5 + 0.5 / 10
    assert {i for h in half for i in h} == {1, 2, 3, 4, 5}


def test_exploration_is_drawn_anew_after_a_reply() -> None:
    tier = Matchmaker(devices=3, models=1, explore=1.0, seed=0)
    rows: Tree = stack([tier.child(w(0.0), i) for i in range(3)])
    up = {"params": {"w": torch.ones(1, 1, dtype=torch.float64)}, "w": torch.tensor([[0.5]], dtype=torch.float64)}
    now = {"rows": rows, "ids": torch.arange(3)}
    after = tier.absorb(now, up, info(round_=4)._replace(slots=torch.tensor([1])))["rows"]
    assert not torch.equal(after["chance"][1], rows["chance"][1])
    assert torch.equal(after["chance"][[0, 2]], rows["chance"][[0, 2]])
    partner = int(tier.best(now, torch.tensor(1))[0])
    assert after["affinity"][1, partner] == 0.5
    assert float(after["affinity"].sum()) == 0.5


@kinds
def test_a_small_team_gets_what_there_is(kind: str) -> None:
    """Two devices, M = 5: one model of eight bytes comes down, the mask costs a byte; up go the model and M weights."""
    engine = world(kind, [1.0, 3.0], [2.9, 3.0], models=5)
    sent = engine.step().link_bytes()
    assert sent == {(0, "down"): 2 * (8 + 1), (0, "up"): 2 * (8 + 5 * 8)}
    assert found(engine, 0) == 3.0
