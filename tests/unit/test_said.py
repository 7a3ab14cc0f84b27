"""Messages of a burst: several devices may get one message, and replies come in pieces."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfed.engine.said import Down, Up
from tierfed.testing.toy import gap
from tierfed.tree import Tree


def replies(size: int) -> Tree:
    """Reply i is (i, -i) and i; 12 bytes of payload in float32."""
    values = torch.arange(float(size))
    return {"params": {"w": torch.stack([values, -values], 1)}, "n": values}


def test_one_message_for_many_is_not_copied() -> None:
    down = Down({"w": torch.arange(6.0).view(2, 3)}, np.array([1, 1, 1]))
    assert down.rows()["w"].tolist() == [[3.0, 4.0, 5.0]] * 3
    assert down.rows()["w"].stride() == (0, 1)
    assert down.bytes().tolist() == [12, 12, 12]
    assert down.of(np.array([2])).owner.tolist() == [1]


def test_messages_of_several_parents() -> None:
    down = Down({"w": torch.arange(6.0).view(2, 3)}, np.array([1, 0, 1]))
    assert down.rows()["w"][:, 0].tolist() == [3.0, 0.0, 3.0]


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)), st.sets(st.integers(1, 5)))
def test_the_pieces_do_not_matter(order: list[int], cuts: set[int]) -> None:
    """Whole trees and payloads are equal; so is a mean up to rounding, for it is added up in their order."""
    all_at_once, size = replies(6), 6
    pieces = [
        (np.array(part), {"params": {"w": all_at_once["params"]["w"][part]}, "n": all_at_once["n"][part]})
        for part in np.split(np.array(order), sorted(cuts))
    ]
    up = Up(size, pieces)
    assert gap(up.whole(), all_at_once) == 0.0
    assert up.bytes().tolist() == [12] * 6
    assert sorted(i for i, _ in up.singles()) == list(range(6))
    owner, weight = np.array([0, 0, 0, 1, 1, 1]), np.array([1.0, 2.0, 1.0, 0.0, 3.0, 1.0])
    mean = up.mean(2, owner, weight)
    assert torch.allclose(mean["n"], torch.tensor([1.0, 4.25]))
    assert torch.allclose(mean["params"]["w"][:, 1], torch.tensor([-1.0, -4.25]))


@pytest.mark.parametrize("numbers", [7, 10_000])
def test_the_bits_of_a_mean_do_not_depend_on_where_a_chunk_ends(numbers: int) -> None:
    values, weight = torch.rand(40, numbers, generator=torch.Generator().manual_seed(0)), np.linspace(0.1, 3, 40)
    owner = np.arange(40) % 3
    means = [
        Up(40, [(at, {"w": values[at]}) for at in np.array_split(np.arange(40), n)]).mean(3, owner, weight)["w"]
        for n in (1, 2, 7, 40)
    ]
    assert all(torch.equal(means[0], other) for other in means[1:])
    by_hand = [
        (values[owner == i].T.double() @ torch.as_tensor(weight[owner == i])) / weight[owner == i].sum()
        for i in range(3)
    ]
    assert torch.allclose(means[0].double(), torch.stack(by_hand), atol=1e-6)


def test_what_was_lost_may_be_anything() -> None:
    up = Up(2, [(np.array([0, 1]), {"w": torch.tensor([2.0, float("nan")])})])
    assert up.mean(1, np.array([0, 0]), np.array([3.0, 0.0]))["w"].tolist() == [2.0]


def test_who_said_nothing() -> None:
    up = Up(2, [(np.array([0]), {"w": torch.tensor([5.0])})]).at(np.array([3, 1]), 4)
    assert up.whole()["w"].tolist() == [0.0, 0.0, 0.0, 5.0]
    assert up.bytes().tolist() == [0, 0, 0, 4]
    assert Up(3).whole() == {}
    assert Up(3).mean(1, np.zeros(3, np.int64), np.zeros(3)) == {}
    assert "w" in up
    assert "owed" not in up
