"""EPFLU and PPT: a sum along a path of devices is FedAvg's mean, and costs the hops of the path."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfed.algorithm import Algorithm, Tier
from tierfed.algorithms import make
from tierfed.algorithms.chain import Group, length, nearest, tour, two_opt
from tierfed.algorithms.epflu import EPFLU
from tierfed.algorithms.fedavg import FedAvg
from tierfed.algorithms.keep_local import KeepLocal
from tierfed.algorithms.ppt import PPT, MaskedGroup, rings, strangers
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import models
from tierfed.engine.node import Walk, mean_of_chain
from tierfed.errors import InputError
from tierfed.faults import Faults
from tierfed.models import build_model
from tierfed.peers import peer_distances
from tierfed.task import Task
from tierfed.testing.toy import (
    ENGINES,
    cloud,
    gap,
    info,
    make_engine,
    quad,
    records,
    run,
    toy_plan,
    toy_settings,
    toy_task,
)
from tierfed.testing.trees import Exactly
from tierfed.topology import TopologySettings
from tierfed.tree import Tree, nbytes, sub, take

kinds = pytest.mark.parametrize("kind", ENGINES)
A, SIZES = [0.0, 3.0, 6.0, 30.0], [2, 2, 4, 8]
MASKED = MaskedGroup(noise=1.0, ring_size=50, pool_size=1000, seed=0)
WHOLE, NP = 276, 212  # floats of the toy network: 8 - 16 - 4 with a batch norm of 4 x 16, and without it


def replies(seed: int, devices: int, dtype: torch.dtype = torch.float64) -> list[Tree]:
    rng = np.random.default_rng(seed)
    return [{"params": {"w": torch.as_tensor(rng.normal(size=(3, 2)), dtype=dtype)}} for _ in range(devices)]


def toy(kind: str, algorithm: Algorithm, tree: str = "flat", rounds: int = 3, **world: Any) -> Engine:
    return run(make_engine(kind, algorithm, toy_task(), toy_plan(), toy_settings(**world)[tree]), rounds)


def answered(kind: str, algorithm: Algorithm, faults: Faults | None = None) -> Engine:
    """One flat round from w = 0 with a step of 1: device i answers a_i."""
    task, plan = quad(A, sizes=SIZES)
    return run(make_engine(kind, algorithm, task, plan, faults=faults), 1)


@pytest.mark.parametrize("tier", [Group(), MASKED], ids=["plain", "masked"])
@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(5)), seed=st.integers(0, 2**40))
def test_T90_the_end_of_a_path_is_the_weighted_mean(tier: Tier, order: list[int], seed: int) -> None:
    ups, weights = replies(seed, 5), [5.0, 1.0, 40.0, 2.0, 7.0]
    said = {j: (ups[j], weights[j]) for j in order}
    mean = mean_of_chain(tier, Walk(np.array(order), weights[order[0]], seed), said)
    wanted = sum(w / 55.0 * up["params"]["w"] for w, up in zip(weights, ups, strict=True))
    assert gap(mean["params"]["w"], wanted) <= 1e-12


@kinds
@pytest.mark.parametrize("path", ["nearest", "random", "2opt"])
@pytest.mark.parametrize("name", ["epflu", "ppt"])
def test_T90_by_hand(kind: str, name: str, path: str) -> None:
    """(2*0 + 2*3 + 4*6 + 8*30) / 16"""
    engine = answered(kind, make(name, {"lr": 1.0, "path": path}))
    assert float(cloud(engine)["w"]) == pytest.approx(16.875, abs=1e-12)


def test_T91_sums_on_the_way_differ_from_the_true_ones_by_the_mask() -> None:
    ups, weights = replies(0, 4), [3.0, 1.0, 2.0, 9.0]
    mask, carry, true = MASKED.mask(ups[0], 3.0, 77), MASKED.mask(ups[0], 3.0, 77), Group().mask(ups[0], 3.0, 77)
    assert gap(true["params"]["w"], torch.zeros(3, 2)) == 0.0
    assert float(mask["params"]["w"].abs().min()) > 1e-3
    for up, weight in zip(ups, weights, strict=True):
        carry, true = MASKED.hop(carry, up, weight), Group().hop(true, up, weight)
        assert gap(sub(carry, true), mask) <= 1e-13
    assert gap(true["params"]["w"], sum(w * u["params"]["w"] for w, u in zip(weights, ups, strict=True))) <= 1e-13


def test_T91_a_mask_is_normal_and_known_to_its_device_alone() -> None:
    """Standard deviation 0.5 * 6 = 3; standard errors of mean and deviation at n = 40,000: 0.015 and 0.011."""
    tier, like = MaskedGroup(noise=0.5, ring_size=1, pool_size=1, seed=0), {"a": torch.zeros(200, 200)}
    mask, other = tier.mask(like, 6.0, 1)["a"], tier.mask(like, 6.0, 2)["a"]
    assert abs(float(mask.mean())) < 0.1
    assert abs(float(mask.std()) - 3.0) < 0.07
    assert abs(float((mask * other).mean())) < 0.3  # standard error 9 / 200
    assert gap(mask, tier.mask(like, 6.0, 1)["a"]) == 0.0


def test_T91_the_mask_cancels_in_single_precision() -> None:
    ups, weights = replies(3, 20, torch.float32), np.random.default_rng(4).integers(1, 600, 20).astype(float)
    said = {j: (ups[j], float(weights[j])) for j in range(20)}
    means = [
        mean_of_chain(t, Walk(np.arange(20), float(weights[0]), 5), said)["params"]["w"] for t in (Group(), MASKED)
    ]
    wanted = sum(w * up["params"]["w"].double() for w, up in zip(weights, ups, strict=True)) / weights.sum()
    assert means[1].dtype == torch.float32
    assert all(gap(m.double(), wanted) <= 1e-5 * float(wanted.abs().max()) for m in means)


@kinds
@pytest.mark.parametrize("name", ["epflu", "ppt"])
def test_T92_nothing_private_and_one_group_is_fedavg(kind: str, name: str) -> None:
    ours = toy(kind, make(name, {"private": "none"} if name == "epflu" else {}), participation=0.5)
    assert gap(cloud(ours), cloud(toy(kind, FedAvg(), participation=0.5))) <= 1e-12


@kinds
@pytest.mark.parametrize("tree", ["3 tiers", "4 tiers", "clusters"])
def test_T92_groups_that_average_once_are_hierfavg(kind: str, tree: str) -> None:
    fogs = 2 if tree == "clusters" else 4
    ours, edge = (toy(kind, a, tree, fogs=fogs) for a in (EPFLU(private="none"), FedAvg(edge=True)))
    assert gap(cloud(ours), cloud(edge)) <= 1e-12
    lowest = ours.depth - 1
    assert all(gap(ours.kept(lowest, f), edge.kept(lowest, f)) <= 1e-12 for f in range(4))


@kinds
def test_private_batch_norms_are_fedbns(kind: str) -> None:
    ours, fedbn = toy(kind, EPFLU(), participation=0.5), toy(kind, KeepLocal(), participation=0.5)
    assert gap(cloud(ours), cloud(fedbn)) <= 1e-12
    assert all(gap(records(ours)[k], records(fedbn)[k]) <= 1e-12 for k in records(ours))


@pytest.mark.parametrize(
    ("private", "stays"),
    [
        ("usyb", ["weight", "bias", "running_mean", "running_var"]),
        ("us", ["running_mean", "running_var"]),
        ("none", []),
    ],
)
def test_what_is_private_stays(private: Any, stays: list[str]) -> None:
    task, algorithm = toy_task(), EPFLU(private=private)
    assert sorted(algorithm.kept(task)) == sorted(f"1.{k}" for k in stays)
    assert set(algorithm.shared(task)) == set(task.keys) - set(algorithm.kept(task))
    assert algorithm.needs_norms is bool(stays)


@kinds
def test_a_group_is_a_team_model(kind: str) -> None:
    """Fog model: the mean of its devices; personal: what came down with the device's own batch norm."""
    engine = toy(kind, PPT(), "3 tiers", rounds=1)
    for m in models(engine, np.arange(12), post=False):
        assert m.team is not None
        assert gap(m.team, engine.kept(1, int(engine.topology.parents[1][m.device]))["params"]) == 0.0
        assert gap(m.global_model, cloud(engine)) == 0.0
        assert gap(m.personal_pre, cloud(engine)) == 0.0
    private = toy(kind, EPFLU(), "3 tiers", rounds=1)
    for m in models(private, np.array([3, 8]), post=False):
        assert gap(m.personal_pre, {**cloud(private), **private.own(m.device)["own"]}) == 0.0
        assert m.personal_pre.keys() == set(private.tasks[0].keys)


@kinds
@pytest.mark.parametrize(("algorithm", "floats", "hops"), [(EPFLU(), NP, 11), (PPT(), WHOLE, 12)])
def test_T93_bytes_of_one_group(kind: str, algorithm: Algorithm, floats: int, hops: int) -> None:
    """Twelve devices: one model in, one sum out, 11 hops each way; PPT's sum makes one more, back to its creator."""
    log = make_engine(kind, algorithm, toy_task(), toy_plan()).step()
    size = 8 * floats
    assert log.link_bytes() == {
        (0, "down"): size, (0, "up"): size, (1, "down"): 11 * size, (1, "up"): hops * size
    }  # fmt: skip
    (chain,) = log.chains
    assert sorted(chain.devices.tolist()) == list(range(12))
    assert len(chain.distances) == hops
    following = np.append(chain.devices[1:], chain.devices[:1])[:hops]
    assert gap(chain.distances, peer_distances(0, chain.devices[:hops], following)) == 0.0


@kinds
def test_T93_bytes_of_groups(kind: str) -> None:
    """Two team rounds: every group of g devices has 2 (g - 1) hops each way, one way in and one way out a team round,
    and sends one consensus up."""
    engine = make_engine(kind, EPFLU(), toy_task(), toy_plan(), toy_settings(team_rounds=2)["3 tiers"])
    log, size = engine.step(), 8 * NP
    for way in ("down", "up"):
        found = [log.link_bytes()[level, way] for level in range(3)]
        assert found == [4 * size, 2 * 4 * size, 2 * (12 - 4) * size]
    assert sorted((c.tick, c.node) for c in log.chains) == list(itertools.product((0, 1), range(4)))
    for c in log.chains:
        assert set(engine.topology.parents[1][c.devices].tolist()) == {c.node}


def test_T93_floats_of_the_papers_network() -> None:
    module = build_model("epflu_mlp", (784,), 10, {}, 0)
    task = Task(module, torch.nn.functional.cross_entropy)
    sizes = [nbytes(take(task.init(), a.shared(task))) // 4 for a in (EPFLU(), PPT())]
    assert sizes == [199_210, 200_010]


@kinds
@pytest.mark.parametrize("algorithm", [EPFLU(lr=1.0), PPT(lr=1.0)], ids=["epflu", "ppt"])
def test_who_is_away_is_gone_around(kind: str, algorithm: Algorithm) -> None:
    """(2*0 + 4*6 + 8*30) / 14 without device 1; two hops for the model of three."""
    engine = answered(kind, algorithm, Exactly(away_at=((1, 1, 0),)))
    assert float(cloud(engine)["w"]) == pytest.approx(264 / 14, abs=1e-12)
    (chain,) = engine.log.chains
    assert sorted(chain.devices.tolist()) == [0, 2, 3]
    assert engine.log.link_bytes()[1, "down"] == 2 * 8
    assert engine.log.silent == {0: 1}


@kinds
@pytest.mark.parametrize("device", range(4))
@pytest.mark.parametrize("algorithm", [EPFLU(lr=1.0), PPT(lr=1.0)], ids=["epflu", "ppt"])
def test_what_is_lost_is_not_in_the_sum(kind: str, algorithm: Algorithm, device: int) -> None:
    """Whatever its place on the path, the first with its mask included; its hops are counted."""
    engine = answered(kind, algorithm, Exactly(lost_at=((1, device, 0),)))
    wanted = sum(n * a for i, (n, a) in enumerate(zip(SIZES, A, strict=True)) if i != device) / (16 - SIZES[device])
    assert float(cloud(engine)["w"]) == pytest.approx(wanted, abs=1e-12)
    assert len(engine.log.chains[0].devices) == 4
    assert engine.log.lost == {0: 1}


class Stopwatch:
    """A clock on which a visit takes a second a sample and half a second for each byte that it is told of."""

    def visit_seconds(self, topology: Any, devices: Any, down: Any, up: Any, samples: Any, slow: Any) -> Any:
        return samples * slow + (down + up) / 2


@kinds
def test_the_deadline_of_a_device_on_a_path_is_for_its_training(kind: str) -> None:
    """Seconds 2, 2, 4, 8: the last is late. (2*0 + 2*3 + 4*6) / 8"""
    task, plan = quad(A, sizes=SIZES)
    engine = make_engine(kind, EPFLU(lr=1.0), task, plan, faults=Faults(deadline_seconds=5.0), clock=Stopwatch())
    assert float(cloud(run(engine, 1))["w"]) == pytest.approx(30 / 8, abs=1e-12)


def test_engines_take_the_same_paths() -> None:
    paths = []
    for kind in ENGINES:
        engine = make_engine(kind, PPT(), toy_task(), toy_plan(), toy_settings(0.7, 2)["4 tiers"], Faults(dropout=0.2))
        logs = [engine.step() for _ in range(3)]
        paths.append([sorted((c.tick, c.node, *c.devices.tolist()) for c in log.chains) for log in logs])
    assert paths[0] == paths[1]


@pytest.mark.parametrize("path", ["nearest", "random"])
def test_paths_are_drawn_anew_for_every_node_and_visit(path: Any) -> None:
    """Two fogs of six, eight rounds with two visits each: a path starts at any place, the same one in 1 of 6 pairs."""
    settings_ = TopologySettings(fogs=2, teams="sequential", team_rounds=2)
    engine = make_engine("vectorized", EPFLU(path=path), toy_task(), toy_plan(), settings_)
    chains = [c for _ in range(8) for c in engine.step().chains]
    starts = np.array([[c.devices[0] % 6 for c in chains if c.node == node] for node in (0, 1)])
    assert starts.shape == (2, 16)
    assert all(len(set(s.tolist())) >= 4 for s in starts)
    assert 0 < (starts[0] == starts[1]).sum() < 9
    assert 0 < (starts[:, ::2] == starts[:, 1::2]).sum() < 9


def test_a_mask_is_another_one_in_every_visit_and_of_every_device() -> None:
    engine = make_engine("serial", PPT(), *quad([0.0] * 30))

    def key(device: int, tick: int) -> int:
        walk = engine.walk(0, 0, np.array([device]), tick)
        assert walk is not None
        assert (walk.places.tolist(), walk.weight) == ([0], 2.0)
        return walk.key

    keys = {key(i, tick) for i in range(30) for tick in range(3)}
    engine.round = 1
    keys |= {key(i, 0) for i in range(30)}
    assert len(keys) == 120
    assert all(0 <= k < 2**63 for k in keys)
    walk = engine.walk(0, 0, np.arange(30), 0)
    assert walk is not None
    assert walk.key == key(int(walk.places[0]), 0)


def test_nearest_by_hand() -> None:
    """On a line, 0, 1, 2.8, -1.5 from 0: 1 is 1 away, then 2.8 (1.8), then -1.5: 1 + 1.8 + 4.3; the other way round the
    first three: 1.8 + 1 + 1.5."""
    places = np.array([0.0, 1.0, 2.8, -1.5])
    cost = np.abs(places[:, None] - places)
    greedy = nearest(cost, 0)
    assert greedy.tolist() == [0, 1, 2, 3]
    assert length(cost, greedy) == pytest.approx(7.1)
    shorter = two_opt(cost, greedy)
    assert shorter.tolist() == [2, 1, 0, 3]
    assert length(cost, shorter) == pytest.approx(4.3)
    assert greedy.tolist() == [0, 1, 2, 3]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 25), st.integers(0, 2**32))
def test_tours_go_through_all_and_2opt_is_never_longer(devices: int, seed: int) -> None:
    cost = peer_distances(seed, np.arange(devices)[:, None], np.arange(devices))
    tours = {kind: tour(kind, cost, np.random.default_rng(seed)) for kind in ("nearest", "random", "2opt")}  # type: ignore[arg-type]
    assert all(sorted(order.tolist()) == list(range(devices)) for order in tours.values())
    assert length(cost, tours["2opt"]) <= length(cost, tours["nearest"]) + 1e-9
    order = tours["2opt"]
    for i, j in itertools.combinations(range(devices), 2):
        reversed_ = np.concatenate([order[:i], order[i : j + 1][::-1], order[j + 1 :]])
        assert length(cost, reversed_) >= length(cost, order) - 1e-6


def test_random_tours_are_uniform() -> None:
    """3! orders, 200 times each on average; standard deviation 13."""
    rng, cost = np.random.default_rng(0), np.zeros((3, 3))
    orders = [tuple(tour("random", cost, rng).tolist()) for _ in range(1200)]
    counts = [orders.count(o) for o in itertools.permutations(range(3))]
    assert sum(counts) == 1200
    assert max(abs(c - 200) for c in counts) < 65


def test_pairs_to_avoid_follow_each_other_only_where_they_must() -> None:
    """0 and 1 are near, but strangers: 2 goes between them. If all are strangers the distances decide."""
    places = np.array([0.0, 1.0, 50.0])
    cost = np.abs(places[:, None] - places)
    strange = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0]], bool)
    for seed in range(10):
        rngs = [np.random.default_rng(seed) for _ in range(3)]
        assert tour("2opt", cost, rngs[0], strange)[1] == 2
        assert tour("2opt", cost, rngs[1], ~np.eye(3, dtype=bool)).tolist() == tour("2opt", cost, rngs[2]).tolist()


def test_strangers_have_no_key_in_common() -> None:
    keys = np.array([[0, 3], [3, 5], [1, 2]])
    assert strangers(keys, 6).tolist() == [[False, False, True], [False, False, True], [True, True, False]]
    drawn = rings(np.array([4, 9]), 8, 10, 1)
    assert [len(set(ring)) for ring in drawn.tolist()] == [8, 8]
    assert drawn[1].tolist() == rings(np.array([9]), 8, 10, 1)[0].tolist()
    assert drawn[0].tolist() != drawn[1].tolist()
    assert 0 <= drawn.min() <= drawn.max() < 10


def test_neighbors_on_a_path_share_a_key() -> None:
    """Of 40 devices with 3 of 12 keys, half of the pairs share one: the path finds neighbors that do, up to its end."""
    tier = MaskedGroup(kind="2opt", noise=1.0, ring_size=3, pool_size=12, seed=0)
    ids = np.arange(40)
    apart = strangers(rings(ids, 3, 12, 0), 12)
    assert 0.25 < apart.mean() < 0.55  # C(9, 3) / C(12, 3) = 0.38
    order = tier.path(ids, peer_distances(1, ids[:, None], ids), np.random.default_rng(0))
    assert sorted(order.tolist()) == ids.tolist()
    assert not apart[order[:-1], order[1:]].any()


def test_a_ring_is_no_larger_than_the_pool() -> None:
    task, plan = quad(A)
    with pytest.raises(InputError, match=r"ring of 50 keys out of 49; take algorithm\.ring_size at most"):
        make_engine("serial", PPT(pool_size=49), task, plan)


class High(EPFLU):
    """A chain above fogs that average."""

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        return (Group(), Group())


class Seeing(Group):
    sees = "all"


class Lost(Group):
    def path(self, ids: Any, distances: Any, rng: Any) -> Any:
        return np.zeros(len(ids), np.int64)


class Flat(EPFLU):
    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        return (Seeing(),)


class Nowhere(EPFLU):
    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        return (Lost(),)


def test_chains_that_cannot_be() -> None:
    task, plan = quad(A)
    with pytest.raises(InputError, match=r"Group is a chain on level 0 of 2; .* make it the last tier"):
        make_engine("serial", High(), task, plan, TopologySettings(fogs=2))
    with pytest.raises(InputError, match="Seeing is a chain that relays, sees or watches"):
        make_engine("serial", Flat(), task, plan)
    with pytest.raises(InputError, match=r"Lost\.path gave \[0, 0, 0, 0\] for 4 devices; .* places 0 to 3 once"):
        make_engine("vectorized", Nowhere(), task, plan).step()


def test_a_path_through_too_many() -> None:
    engine = make_engine("vectorized", EPFLU(), *quad([0.0, 1.0]))
    assert engine.walk(0, 0, np.arange(2), 0) is not None
    with pytest.raises(InputError, match=r"through 4001 devices, .* take more teams \(topology\.fogs\)"):
        engine.walk(0, 0, np.arange(4001), 0)


def test_a_group_that_heard_some_of_all_moves_by_their_share() -> None:
    """over = "all": x <- x + share (mean - x)"""
    x, mean = torch.tensor([4.0], dtype=torch.float64), torch.tensor([8.0], dtype=torch.float64)
    new = Group().absorb({"params": {"w": x}}, {"params": {"w": mean}}, info(heard=1.0, total=4.0, share=0.25))
    assert gap(new["params"]["w"], torch.tensor([5.0])) == 0.0
