"""Teams by direction: recovered from any start, under names that stay, never below the smallest size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfed.clustering import Floats, Ids, cluster, fill, recluster, rename

METHODS = ["average_linkage", "spherical_kmeans"]
LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12)


def bundle(groups: Ids, spread: float = 0.05, seed: int = 0) -> Floats:
    """Directions [n, 6] around one axis per group, of any length."""
    rng = np.random.default_rng(seed)
    return (np.eye(6)[groups] + spread * rng.normal(size=(len(groups), 6))) * rng.uniform(0.1, 10, (len(groups), 1))


def partition(teams: Ids) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(teams == t).tolist()) for t in np.unique(teams)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("start", range(5))
def test_groups_are_found_from_any_start(method: str, start: int) -> None:
    groups = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
    teams = np.random.default_rng(start).permutation(groups)
    assert partition(recluster(bundle(groups), teams, 3, method)) == partition(groups)


@pytest.mark.parametrize("method", METHODS)
def test_names_stay(method: str) -> None:
    """Teams that are right keep their names; one device that strayed comes home."""
    groups = np.array([2, 2, 2, 0, 0, 0, 1, 1, 1])
    assert recluster(bundle(groups), groups, 3, method).tolist() == groups.tolist()
    strayed = groups.copy()
    strayed[4] = 1
    assert recluster(bundle(groups), strayed, 3, method).tolist() == groups.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_the_length_of_a_direction_does_not_matter(method: str) -> None:
    groups, start = np.array([0, 1, 0, 1, 0, 1]), np.array([0, 0, 0, 1, 1, 1])
    d = bundle(groups)
    longer = d * np.array([1e-6, 1, 1e6, 3, 7, 1e3])[:, None]
    assert recluster(d, start, 2, method).tolist() == recluster(longer, start, 2, method).tolist()


def test_opposite_directions_are_farthest() -> None:
    d = np.array([[1.0, 0], [1, 0.1], [-1, 0], [-1, 0.1]])
    assert partition(recluster(d, np.array([0, 1, 0, 1]), 2)) == {frozenset({0, 1}), frozenset({2, 3})}


def test_who_has_no_direction_stays() -> None:
    groups = np.array([0, 0, 0, 1, 1, 1])
    d = bundle(groups)
    d[[2, 3]] = 0.0
    assert recluster(d, np.array([0, 0, 1, 0, 1, 1]), 2).tolist() == [0, 0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("directions", "groups", "smallest"),
    [(np.zeros((4, 3)), 2, 1), (np.zeros((4, 0)), 2, 1), (np.eye(4), 1, 1), (np.eye(4), 2, 3)],
)
def test_too_few_directions_change_nothing(directions: Floats, groups: int, smallest: int) -> None:
    teams = np.array([0, 1, 1, 0])
    assert recluster(directions, teams, groups, min_size=smallest).tolist() == [0, 1, 1, 0]


def test_rename_by_hand() -> None:
    """Cluster 0 shares one device with team 0, two with team 2; cluster 1 two with team 0; cluster 2 is left team 1."""
    assert rename(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 2, 2, 0, 0, 2]), 3).tolist() == [2, 2, 2, 0, 0, 1]


@given(LABELS)
@settings(max_examples=50, deadline=None)
def test_rename_keeps_the_partition_and_agrees_best(pairs: list[tuple[int, int]]) -> None:
    labels, teams = (np.array(v, np.int64) for v in zip(*pairs, strict=True))
    names = rename(labels, teams, 4)
    assert partition(names) == partition(labels)
    assert (names == teams).sum() >= (labels == teams).sum()


@given(LABELS, st.permutations(range(4)))
@settings(max_examples=50, deadline=None)
def test_names_come_from_the_partition_not_from_its_labels(pairs: list[tuple[int, int]], other: list[int]) -> None:
    """Two engines may find one partition under other labels (k-means starts that tie): nobody must move for that."""
    labels, teams = (np.array(v, np.int64) for v in zip(*pairs, strict=True))
    assert rename(np.array(other)[labels], teams, 4).tolist() == rename(labels, teams, 4).tolist()


def test_fill_by_hand() -> None:
    """Team 1 has one device at 90 degrees and needs two: the nearest of team 0 is the one at 50 degrees."""
    angle = np.deg2rad([0.0, 10.0, 50.0, 90.0])
    units = np.stack([np.cos(angle), np.sin(angle)], 1)
    assert fill(units, np.array([0, 0, 0, 1]), 2, 2).tolist() == [0, 0, 1, 1]


def test_fill_an_empty_team_with_the_misfit() -> None:
    angle = np.deg2rad([0.0, 5.0, 100.0, 10.0])
    units = np.stack([np.cos(angle), np.sin(angle)], 1)
    assert fill(units, np.array([0, 0, 0, 0]), 2, 1).tolist() == [0, 0, 1, 0]


@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 6), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_no_team_is_too_small(groups: int, smallest: int, more: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = groups * smallest + more
    out = recluster(rng.normal(size=(n, 3)), rng.integers(0, groups, n), groups, min_size=smallest)
    assert np.bincount(out, minlength=groups).min() >= smallest
    assert out.max() < groups


@pytest.mark.parametrize("method", METHODS)
def test_labels_are_in_range(method: str) -> None:
    units = np.eye(6)[[0, 1, 2, 0, 1, 2]]
    assert set(cluster(units, 3, method).tolist()) == {0, 1, 2}
