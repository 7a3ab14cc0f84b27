"""Arithmetic by key."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tierfed import tree
from tierfed.testing.toy import gap
from tierfed.tree import SEPARATOR

NAMES = st.text(st.characters(exclude_characters=SEPARATOR, codec="utf-8"), min_size=1, max_size=5)
LEAVES = st.lists(st.integers(0, 3), max_size=3).map(lambda shape: torch.arange(torch.Size(shape).numel()).view(shape))
TREES = st.dictionaries(
    NAMES, st.recursive(LEAVES, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=6), max_size=4
)


def same(a: Any, b: Any) -> bool:
    """Same keys in the same order, the same tensors at the leaves."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a is b


@given(TREES)
@settings(max_examples=50, deadline=None)
def test_unflatten_is_the_inverse_of_flatten(t: dict[str, Any]) -> None:
    flat = tree.flatten(t)
    assert all(isinstance(v, Tensor) for v in flat.values())
    assert same(tree.unflatten(flat), t)


@given(TREES)
@settings(max_examples=25, deadline=None)
def test_leaves_and_nbytes_see_every_tensor_once(t: dict[str, Any]) -> None:
    flat = tree.flatten(t)
    mine = [v for path, v in flat.items() if not path.endswith(SEPARATOR)]
    assert [id(v) for v in tree.leaves(t)] == [id(v) for v in mine]
    assert tree.nbytes(t) == 8 * sum(v.numel() for v in mine)


def test_flatten_marks_empty_dicts() -> None:
    flat = tree.flatten({"a": {"b": torch.ones(2), "c": {}}, "d": {}})
    assert set(flat) == {f"a{SEPARATOR}b", f"a{SEPARATOR}c{SEPARATOR}", f"d{SEPARATOR}"}
    assert tree.unflatten(flat).keys() == {"a", "d"}
    assert tree.unflatten(flat)["a"]["c"] == {}


def test_arithmetic_is_by_key_not_by_place() -> None:
    a, b = {"x": torch.tensor(1.0), "y": torch.tensor(2.0)}, {"y": torch.tensor(20.0), "x": torch.tensor(10.0)}
    assert gap(tree.add(a, b), {"x": 11.0, "y": 22.0}) == 0
    assert gap(tree.add(a, b, 0.5), {"x": 6.0, "y": 12.0}) == 0
    assert gap(tree.sub(b, a), {"x": 9.0, "y": 18.0}) == 0
    assert gap(tree.scale(a, 3.0), {"x": 3.0, "y": 6.0}) == 0
    assert float(tree.dot(a, b)) == 1 * 10 + 2 * 20
    assert gap(tree.stack([a, b]), {"x": torch.tensor([1.0, 10.0]), "y": torch.tensor([2.0, 20.0])}) == 0


@pytest.mark.parametrize("other", [{"x": 1}, {"x": 1, "y": 2, "z": 3}, {"x": 1, "Y": 2}])
def test_trees_with_other_keys_are_refused(other: dict[str, int]) -> None:
    a = {"x": torch.ones(1), "y": torch.ones(1)}
    with pytest.raises(KeyError, match="trees differ in the keys"):
        tree.add(a, {k: torch.ones(1) for k in other})


@pytest.mark.parametrize("t", [0.0, 1.0, torch.tensor(0.0), torch.tensor(1.0)])
def test_mix_is_exact_at_its_ends(t: float | Tensor) -> None:
    a, b = {"w": torch.tensor([1e16, 0.1, -3.0])}, {"w": torch.tensor([0.3, 1e-16, 7.0])}
    assert torch.equal(tree.mix(a, b, t)["w"], b["w"] if float(t) else a["w"])


def test_mix_in_between() -> None:
    a, b = {"w": torch.tensor(2.0)}, {"w": torch.tensor(10.0)}
    assert float(tree.mix(a, b, 0.25)["w"]) == 4.0
    assert float(tree.mix(a, b, torch.tensor(0.25, dtype=torch.float64))["w"]) == 4.0


def test_where_takes_one_side_whole() -> None:
    a, b = {"w": torch.tensor([1.0, float("nan")])}, {"w": torch.tensor([3.0, 4.0])}
    assert torch.equal(tree.where(torch.tensor(False), a, b)["w"], b["w"])
    assert float(tree.where(torch.tensor(True), a, b)["w"][0]) == 1.0


def test_row_is_the_inverse_of_stack() -> None:
    parts = [{"a": torch.full((2,), float(i)), "b": {"c": torch.tensor(i)}} for i in range(3)]
    whole = tree.stack(parts)
    assert whole["a"].shape == (3, 2)
    assert [gap(tree.row(whole, i), p) for i, p in enumerate(parts)] == [0.0] * 3


def test_vector_of_nothing_is_empty() -> None:
    assert tree.vector({}).shape == (0,)
    assert tree.vector({"a": torch.ones(2, 2), "b": {"c": torch.tensor(5.0)}}).tolist() == [1, 1, 1, 1, 5]


def test_zeros_take_scalar() -> None:
    a: tree.Tree = {"x": torch.ones(2, dtype=torch.float64), "y": {"z": torch.ones(3, dtype=torch.int64)}}
    assert gap(tree.zeros(a), {"x": torch.zeros(2), "y": {"z": torch.zeros(3)}}) == 0
    assert tree.zeros(a)["y"]["z"].dtype == torch.int64
    assert tree.take(a, ["y"]) == {"y": a["y"]}
    assert tree.scalar(0.5, {"x": a["x"]}).dtype == torch.float64
    assert tree.scalar(0.5, {}).dtype == torch.get_default_dtype()
