"""The tree: children and totals against brute force, polls, teams by hand, and what does not fit together."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tierfed.errors import InputError
from tierfed.settings import build
from tierfed.topology import Ids, Policy, Topology, TopologySettings, build_topology, form_teams

SETTINGS = settings(max_examples=25, deadline=None)


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    """Random trees of one to four levels; inner nodes may be empty."""
    nodes = (1, *draw(st.lists(st.integers(1, 4), max_size=3)))
    sizes = (*nodes[1:], draw(st.integers(1, 12)))
    parents = tuple(
        np.array(draw(st.lists(st.integers(0, above - 1), min_size=n, max_size=n)), np.int64)
        for above, n in zip(nodes, sizes, strict=True)
    )
    share = st.one_of(st.floats(0.05, 1.0), st.integers(1, 5))
    return Topology(
        parents=parents,
        policies=tuple(Policy(sample=draw(share)) for _ in nodes),
        samples=np.array(draw(st.lists(st.integers(1, 50), min_size=sizes[-1], max_size=sizes[-1])), np.int64),
        nodes=nodes,
        seed=draw(st.integers(0, 99)),
    )


def under(t: Topology, depth: int, node: int, to: int) -> list[int]:
    """Descendants by climbing from every node of the level."""
    out = []
    for i in range(t.shape[to]):
        at = i
        for d in reversed(range(depth, to)):
            at = int(t.parents[d][at])
        if at == node:
            out.append(i)
    return out


@given(topologies())
@SETTINGS
def test_children_and_descendants_by_brute_force(t: Topology) -> None:
    for depth in range(t.depth):
        for node in range(t.nodes[depth]):
            assert t.children(depth, node).tolist() == under(t, depth, node, depth + 1)
            for to in range(depth + 1, t.depth + 1):
                assert t.below(depth, node, to).tolist() == under(t, depth, node, to)


@given(topologies())
@SETTINGS
def test_ancestors_are_the_inverse(t: Topology) -> None:
    for depth in range(t.depth):
        up = t.ancestor(t.depth, np.arange(t.devices), depth)
        assert all(i in under(t, depth, int(k), t.depth) for i, k in enumerate(up))


@given(topologies(), st.lists(st.booleans(), min_size=4, max_size=4))
@SETTINGS
def test_totals_by_brute_force(t: Topology, relay: list[bool]) -> None:
    def children(depth: int, node: int) -> int:
        """Those who answer for themselves: relays stand for their children, empty nodes for nobody."""
        kids = under(t, depth, node, depth + 1)
        if depth + 1 == t.depth:
            return len(kids)
        return sum(children(depth + 1, k) if relay[depth + 1] else bool(under(t, depth + 1, k, t.depth)) for k in kids)

    totals = t.totals(relay[: t.depth])
    for depth in range(t.depth):
        for node in range(t.nodes[depth]):
            devices = under(t, depth, node, t.depth)
            want = [int(t.samples[devices].sum()), len(devices), children(depth, node)]
            assert totals[depth][node].tolist() == want


@given(topologies(), st.integers(0, 50), st.integers(0, 3))
@SETTINGS
def test_polls_are_without_replacement(t: Topology, round_: int, tick: int) -> None:
    for depth in range(t.depth):
        for node in range(t.nodes[depth]):
            kids, polled = t.children(depth, node).tolist(), t.poll(depth, node, round_, tick).tolist()
            sample = t.policies[depth].sample
            want = sample if isinstance(sample, int) else max(1, round(sample * len(kids)))
            assert len(polled) == min(len(kids), want)
            assert polled == sorted(set(polled))
            assert set(polled) <= set(kids)
            assert t.poll(depth, node, round_, tick).tolist() == polled


@given(topologies(), st.integers(0, 9))
@SETTINGS
def test_a_cohort_is_what_relays_would_poll(t: Topology, round_: int) -> None:
    level = [0]
    for depth in range(t.depth):
        level = [int(i) for node in level for i in t.poll(depth, node, round_, 3)]
        assert t.cohort(0, 0, depth + 1, round_, 3).tolist() == level


def flat(n: int, sample: float | int, seed: int = 0) -> Topology:
    one = Policy(sample=sample)
    return Topology(
        parents=(np.zeros(n, np.int64),), policies=(one,), samples=np.ones(n, np.int64), nodes=(1,), seed=seed
    )


@pytest.mark.parametrize(("sample", "count"), [(1.0, 10), (0.55, 6), (0.01, 1), (1, 1), (3, 3), (99, 10)])
def test_share_or_number(sample: float | int, count: int) -> None:
    assert len(flat(10, sample).poll(0, 0, 0, 0)) == count


def test_polls_are_fair() -> None:
    """Each of 10 devices in 3 of 10 polls: 4000 polls, chi-square of dependent cells is smaller than of free ones."""
    t = flat(10, 3)
    counts = np.bincount(np.concatenate([t.poll(0, 0, r, 0) for r in range(4000)]), minlength=10)
    assert ((counts - 1200.0) ** 2 / 1200.0).sum() < stats.chi2.ppf(1 - 1e-6, 9)


def test_polls_differ_by_round_tick_and_seed() -> None:
    t = flat(40, 0.5)
    polls = [t.poll(0, 0, 0, 0), t.poll(0, 0, 1, 0), t.poll(0, 0, 0, 1), flat(40, 0.5, seed=1).poll(0, 0, 0, 0)]
    assert len({tuple(p.tolist()) for p in polls}) == 4


def test_regrouping_moves_devices_and_keeps_nodes() -> None:
    t = build_topology(TopologySettings(fogs=(2, 3), teams="sequential"), np.arange(1, 7))
    moved = t.regrouped(np.array([0, 0, 0, 0, 2, 2]))
    assert t.children(2, 1).tolist() == [2, 3]
    assert moved.children(2, 1).tolist() == []
    assert moved.poll(2, 1, 0, 0).tolist() == []
    assert moved.shape == t.shape
    assert moved.totals([False] * 3)[2].tolist() == [[10, 4, 4], [0, 0, 0], [11, 2, 2]]


class TestTeams:
    def test_sequential(self) -> None:
        assert form_teams("sequential", 3, 8, 0).tolist() == [0, 0, 0, 1, 1, 1, 2, 2]

    @given(st.integers(1, 6), st.integers(0, 20), st.integers(0, 99))
    @SETTINGS
    def test_random_teams_are_even(self, teams: int, more: int, seed: int) -> None:
        out = form_teams("random", teams, teams + more, seed)
        size = Counter(out.tolist())
        assert set(size) == set(range(teams))
        assert max(size.values()) - min(size.values()) <= 1
        assert np.array_equal(out, form_teams("random", teams, teams + more, seed))

    def test_random_teams_depend_on_the_seed(self) -> None:
        assert len({tuple(form_teams("random", 3, 12, s).tolist()) for s in range(5)}) == 5

    def test_natural(self) -> None:
        assert form_teams("natural", 2, 3, 0, natural=np.array([1, 0, 1])).tolist() == [1, 0, 1]

    def test_worst_by_hand(self) -> None:
        """Four labels, two teams: {0, 1} and {2, 3}. A tie goes to the smaller team."""
        labels = np.array([[5, 0, 1, 0], [0, 0, 2, 2], [0, 3, 0, 3], [0, 0, 0, 9], [1, 1, 1, 1]])
        # device 2 ties with both teams at one device: the first; then 3 joins its own; 4 ties at two each: the first
        assert form_teams("worst", 2, 5, 0, labels=labels).tolist() == [0, 1, 0, 1, 0]

    def test_average_by_hand(self) -> None:
        """Ten labels, two teams: ranges of seven, 0-6 and 5-9 with 0 and 1."""
        labels = np.zeros((6, 10), np.int64)
        labels[0, 2] = 4  # only team 0 has 2
        labels[1, 8] = 4  # only team 1 has 8
        labels[2, [3, 9]] = 3, 4  # more of team 1
        labels[3, 5] = 7  # both: the smaller team 0 (1 device, team 1 has 2)
        labels[4, [1, 4]] = 5, 1  # both have 1, only team 0 has 4
        labels[5, 0] = 2  # both: team 1 (2 devices, team 0 has 3)
        assert form_teams("average", 2, 6, 0, labels=labels).tolist() == [0, 1, 1, 0, 0, 1]

    @pytest.mark.parametrize("classes", [7, 10, 26])
    @pytest.mark.parametrize("teams", [2, 3, 4, 5])
    def test_worst_ranges_partition_the_labels(self, classes: int, teams: int) -> None:
        """A device per label: each joins the one team that owns its label, ranges are contiguous and even."""
        out = form_teams("worst", teams, classes, 0, labels=np.eye(classes, dtype=np.int64))
        assert out.tolist() == sorted(out.tolist())
        size = np.bincount(out, minlength=teams)
        assert size.max() - size.min() <= 1

    @pytest.mark.parametrize(
        ("kind", "changes", "message"),
        [
            ("natural", {}, "the data name no teams"),
            ("natural", {"natural": np.array([0, 1, 2, 0])}, "gives 2 teams, the data have 3"),
            ("worst", {}, "needs class labels"),
            ("average", {"labels": np.zeros((4, 0), np.int64)}, "needs class labels"),
            ("worst", {"labels": np.array([[1, 0]] * 4)}, "team 1 of 2 has no devices"),
        ],
    )
    def test_what_cannot_be(self, kind: str, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            form_teams(kind, 2, 4, 0, **changes)


class TestBuild:
    @pytest.mark.parametrize(
        ("fogs", "natural", "shape"),
        [
            ("auto", None, (1, 12)),
            ("auto", np.arange(12) % 5, (1, 5, 12)),
            (0, np.arange(12) % 5, (1, 12)),
            (3, None, (1, 3, 12)),
            ((2, 6), None, (1, 2, 6, 12)),
        ],
    )
    def test_shape(self, fogs: Any, natural: Ids | None, shape: tuple[int, ...]) -> None:
        t = build_topology(TopologySettings(fogs=fogs), np.ones(12, np.int64), natural=natural)
        assert t.shape == shape
        assert all(len(t.children(d, k)) > 0 for d in range(t.depth) for k in range(t.nodes[d]))

    @pytest.mark.parametrize(
        ("table", "links"),
        [
            ({"fogs": 0}, ("cloud-device",)),
            ({"fogs": 3}, ("cloud-fog", "fog-device")),
            ({"fogs": [2, 3]}, ("cloud-region", "region-fog", "fog-device")),
            ({"fogs": 3, "clusters": 2}, ("cloud-fog", "fog-cluster", "cluster-device")),
        ],
    )
    def test_names_of_links(self, table: dict[str, Any], links: tuple[str, ...]) -> None:
        t = build_topology(build(TopologySettings, table, "topology"), np.ones(12, np.int64))
        assert t.links == links
        assert t.depth == len(links)

    def test_clusters_stay_inside_their_fog(self) -> None:
        teams = np.arange(12) % 3
        t = build_topology(TopologySettings(fogs=3, clusters=2), np.ones(12, np.int64), natural=teams)
        assert t.nodes == (1, 3, 6)
        assert t.parents[1].tolist() == [0, 0, 1, 1, 2, 2]
        assert t.ancestor(3, np.arange(12), 1).tolist() == teams.tolist()
        assert [len(t.children(2, c)) for c in range(6)] == [2] * 6
        assert t.colocated == (False, True, False)

    def test_policies_of_one_value_and_of_a_list(self) -> None:
        ones = np.ones(12, np.int64)
        t = build_topology(TopologySettings(fogs=(2, 4), participation=0.5, team_rounds=3), ones)
        assert [(p.sample, p.bursts) for p in t.policies] == [(1.0, 1), (1.0, 1), (0.5, 3)]
        t = build_topology(TopologySettings(fogs=(2, 4), participation=(1, 0.5, 2), team_rounds=(4, 2)), ones)
        assert [(p.sample, p.bursts) for p in t.policies] == [(1, 1), (0.5, 4), (2, 2)]

    def test_one_is_a_number_and_one_point_zero_all(self) -> None:
        one, every = (build(TopologySettings, {"participation": p}, "topology") for p in (1, 1.0))
        counts = [len(build_topology(s, np.ones(9, np.int64)).poll(0, 0, 0, 0)) for s in (one, every)]
        assert counts == [1, 9]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"fogs": 13}, "a team would have no devices"),
            ({"fogs": (4, 2)}, "puts 2 nodes below 4"),
            ({"clusters": 2}, "topology.clusters needs fogs"),
            ({"fogs": 4, "clusters": 4}, "fog 0 has 3 devices"),
            ({"fogs": 2, "participation": (0.5, 0.5, 0.5)}, "has 3 values, the tree has 2"),
            ({"fogs": 2, "team_rounds": (2, 2)}, "has 2 values, the tree has 1"),
            ({"fogs": 0, "team_rounds": 2}, "the tree is flat"),
            ({"fogs": 4, "participation": 5}, "5 participants per fog, but no fog has more than 3 devices"),
            ({"fogs": 4, "participation": (5, 1.0)}, "5 participants per cloud, but no cloud has more than 4 fogs"),
            ({"fogs": 3, "teams": "worst"}, "needs class labels"),
        ],
    )
    def test_what_does_not_fit(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            build_topology(TopologySettings(**changes), np.ones(12, np.int64))

    @pytest.mark.parametrize(
        "table",
        [
            {"participation": 0.0},
            {"participation": 1.5},
            {"participation": 0},
            {"fogs": -1},
            {"fogs": [2, 0]},
            {"team_rounds": 0},
            {"weighting": "losses"},
            {"over": "none"},
            {"empty": "zero"},
            {"teams": "best"},
            {"clusters": -1},
        ],
    )
    def test_impossible_values(self, table: dict[str, Any]) -> None:
        with pytest.raises(InputError, match=f"topology.{next(iter(table))}"):
            build(TopologySettings, table, "topology")
