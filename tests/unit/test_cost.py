"""The virtual clock against the numbers of the source and against rounds worked out by hand."""

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierfed.cost import (
    EPFLU,
    Burst,
    CostSettings,
    RoundCost,
    Visit,
    clock,
    cloud_gain,
    cloud_transfer,
    compute,
    gain,
    link_distances,
    rate_bps,
    transfer,
)
from tierfed.errors import InputError
from tierfed.peers import Chain, peer_distances
from tierfed.settings import build

MNIST_BITS, CIFAR_BITS = 6_272.0, 24_576.0


def at(*values: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return np.array(values, np.float64)


def ids(*values: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array(values, np.int64)


def test_p2p_link_at_the_reference_distance() -> None:
    # T-110: g = 1e-8 / 50, p g / noise = 1, log2(2) = 1
    np.testing.assert_allclose(gain(at(50)), [2e-10], rtol=1e-15)
    np.testing.assert_allclose(rate_bps(gain(at(50))), [2e7], rtol=1e-15)
    seconds, joules = transfer(at(6_400_320), at(50))
    np.testing.assert_allclose(seconds, [0.3200160], rtol=1e-14)
    np.testing.assert_allclose(joules, [0.160008], rtol=1e-14)


def test_rate_at_distance_100_and_at_the_cloud_floor() -> None:
    # T-110: p g / noise = 1/2 and 1/4
    np.testing.assert_allclose(rate_bps(gain(at(100))), [1.16993e7], rtol=0, atol=50)  # half the last digit given
    np.testing.assert_allclose(rate_bps(gain(at(100))), [2e7 * math.log2(1.5)], rtol=1e-15)
    np.testing.assert_allclose(rate_bps(cloud_gain(at(50))), [6.43856e6], rtol=0, atol=5)
    np.testing.assert_allclose(rate_bps(cloud_gain(at(50))), [2e7 * math.log2(1.25)], rtol=1e-15)


@pytest.mark.parametrize(("bits", "seconds", "joules"), [(6272, 0.0677376, 0.01354752), (24576, 0.2654208, 0.05308416)])
def test_one_sample_on_a_device(bits: int, seconds: float, joules: float) -> None:
    # T-110
    spent, burnt = compute(bits, at(1, 3))
    np.testing.assert_allclose(spent, [seconds, 3 * seconds], rtol=1e-14)
    np.testing.assert_allclose(burnt, [joules, 3 * joules], rtol=1e-14)
    half = compute(bits, at(1), replace(EPFLU, half_capacitance=True))
    np.testing.assert_allclose(half, [[seconds], [joules / 2]], rtol=1e-14)


def test_gains_have_floors_and_a_longest_distance() -> None:
    np.testing.assert_allclose(gain(at(1, 10, 150, 1000)), [1e-8, 1e-9, 1e-10, 1e-10], rtol=1e-15)
    # with the extra loss of 10: 1e-9, 1e-10, then the floor 5e-11 from distance 20 on
    np.testing.assert_allclose(cloud_gain(at(1, 10, 20, 1000)), [1e-9, 1e-10, 5e-11, 5e-11], rtol=1e-15)
    open_floor = CostSettings(min_gain_p2p=1e-15)
    np.testing.assert_allclose(gain(at(200, 1000), open_floor), [5e-11, 5e-11], rtol=1e-15)


def test_cloud_link_is_dearer_in_proportion_to_the_mean_distance() -> None:
    # distance 10: gain 1e-10, p g / noise = 1/2, factor 1.5 * 10 / 50 = 0.3
    seconds, joules = cloud_transfer(at(2e7), at(10))
    np.testing.assert_allclose(seconds, [0.3 / math.log2(1.5)], rtol=1e-14)
    np.testing.assert_allclose(joules, [0.15 / math.log2(1.5)], rtol=1e-14)
    # beyond the longest distance: floor gain, factor 1.5 * 200 / 50 = 6, HierFAVG's multiplier of 10: 40
    np.testing.assert_allclose(cloud_transfer(at(2e7), at(999))[0], [6 / math.log2(1.25)], rtol=1e-14)
    hier = replace(EPFLU, cloud_multiplier=10.0)
    np.testing.assert_allclose(cloud_transfer(at(2e7), at(200), hier)[0], [40 / math.log2(1.25)], rtol=1e-14)


def test_settings_are_checked_from_a_table() -> None:
    assert build(CostSettings, {"bandwidth_hz": 1e6}, "cost") == CostSettings(bandwidth_hz=1e6)
    with pytest.raises(InputError, match="cpu_hz"):
        build(CostSettings, {"cpu_hz": 0}, "cost")


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), level=st.integers(0, 4), few=st.integers(0, 20))
def test_distances_depend_on_seed_level_and_child_alone(seed: int, level: int, few: int) -> None:
    many = link_distances(seed, level, 50)
    np.testing.assert_array_equal(link_distances(seed, level, few), many[:few])
    assert ((many >= 1) & (many <= 100)).all()
    assert not np.array_equal(many, link_distances(seed, level + 1, 50))
    assert not np.array_equal(many, link_distances(seed + 1, level, 50))


def test_distances_are_uniform() -> None:
    # standard errors of the mean and of a decile's share at n = 20,000: 0.2 and 0.002
    many = link_distances(0, 0, 20_000)
    assert abs(many.mean() - 50.5) < 1.0
    assert np.abs(np.histogram(many, 10, (1, 100))[0] / 20_000 - 0.1).max() < 0.01


def burst(depth: int, tick: int, *links: tuple[int, int, int, int]) -> Burst:
    parents, kids, down, up = np.array(links, np.int64).T
    return Burst(depth=depth, tick=tick, parents=parents, kids=kids, down_bytes=down, up_bytes=up)


def test_flat_round_takes_the_slowest_device_over_the_cloud_link() -> None:
    # mean of the distances of ALL children, (10 + 35 + 15) / 3 = 20: gain 5e-11, 2e7 log2(1.25) bit/s, factor 0.6
    per_byte = 8 * 0.6 / (2e7 * math.log2(1.25))
    per_sample = 0.0677376
    cost = clock(
        [burst(0, 0, (0, 0, 1000, 500), (0, 2, 1000, 0))],
        [Visit(tick=0, devices=ids(0, 2), samples=ids(10, 40))],
        1,
        (1,),
        EPFLU,
        (at(10, 35, 15),),
        MNIST_BITS,
        (False,),
    )
    assert (cost.down_bytes, cost.up_bytes) == ((2000,), (500,))
    np.testing.assert_allclose(cost.link_seconds, [2500 * per_byte], rtol=1e-13)
    np.testing.assert_allclose(cost.link_joules, [0.5 * 2500 * per_byte], rtol=1e-13)
    np.testing.assert_allclose(cost.compute_seconds, 50 * per_sample, rtol=1e-13)
    np.testing.assert_allclose(cost.compute_joules, 50 * 0.01354752, rtol=1e-13)
    # device 2 is silent (no upload) but works four times as long
    np.testing.assert_allclose(cost.round_seconds, 1000 * per_byte + 40 * per_sample, rtol=1e-13)


# One second per MB below the cloud at distance 50 (8e6 bit / 8e6 Hz), and per MB to the cloud at mean distance 20
# (signal p g = noise on both floors, factor 2.5 * 20 / 50 = 1); one second per sample of 1000 bit, 3 J for it.
UNIT = CostSettings(
    bandwidth_hz=8e6,
    noise_w=1e-10,
    transmit_power_w=0.5,
    min_gain_cloud=2e-10,
    cloud_multiplier=2.5,
    cycles_per_bit=1e6,
    cpu_hz=1e9,
    capacitance=3e-27,
)
MB = 1_000_000


def two_fogs(colocated: tuple[bool, bool] = (False, False), *, split: bool = False) -> RoundCost:
    """Cloud 0, fogs 0 and 1, devices 0, 1 (fog 0) and 2 (fog 1); one cloud round with two fog bursts."""
    low = [
        [(0, 0, 1 * MB, 1 * MB), (0, 1, 1 * MB, 2 * MB), (1, 2, 4 * MB, 0)],
        [(0, 1, 2 * MB, 2 * MB), (1, 2, 1 * MB, 1 * MB)],
    ]
    bursts = [burst(0, 0, (0, 0, 2 * MB, 3 * MB), (0, 1, 2 * MB, 1 * MB))]
    for tick, links in enumerate(low):
        bursts += [burst(1, tick, link) for link in reversed(links)] if split else [burst(1, tick, *links)]
    visits = [
        Visit(tick=0, devices=ids(0, 1, 2), samples=ids(7, 5, 2)),
        Visit(tick=1, devices=ids(1, 2), samples=ids(1, 20)),
    ]
    return clock(
        bursts[::-1] if split else bursts, visits, 2, (1, 2), UNIT, (at(15, 25), at(50, 50, 50)), 1e3, colocated
    )


def test_two_level_round_by_hand() -> None:
    cost = two_fogs()
    assert cost.down_bytes == (4 * MB, 9 * MB)
    assert cost.up_bytes == (4 * MB, 6 * MB)
    np.testing.assert_allclose(cost.link_seconds, [8, 15], rtol=1e-13)
    np.testing.assert_allclose(cost.link_joules, [4, 7.5], rtol=1e-13)
    np.testing.assert_allclose([cost.compute_seconds, cost.compute_joules], [35, 105], rtol=1e-13)
    # fog 0: burst 0 max(1+7+1, 1+5+2) = 9, burst 1 2+1+2 = 5, together 14; fog 1: 4+2+0 = 6, 1+20+1 = 22, together 28.
    # Cloud: max(2+14+3, 2+28+1) = 31. (Were all fogs to wait in each burst, it would be 9 + 22 + links.)
    np.testing.assert_allclose(cost.round_seconds, 31, rtol=1e-13)


def test_the_order_and_grouping_of_the_trace_do_not_matter() -> None:
    whole, split = two_fogs(), two_fogs(split=True)
    assert (whole.down_bytes, whole.up_bytes) == (split.down_bytes, split.up_bytes)
    for field in ("link_seconds", "link_joules", "compute_seconds", "round_seconds"):
        np.testing.assert_allclose(getattr(split, field), getattr(whole, field), rtol=1e-14)


@pytest.mark.parametrize(
    ("colocated", "down", "seconds", "round_seconds"),
    [
        # fogs inside the cloud's machine: max(14, 28)
        ((True, False), (0, 9 * MB), (0, 15), 28),
        # devices inside their fog's: fog 0 max(7, 5) + 1 = 8, fog 1 2 + 20 = 22; max(2+8+3, 2+22+1)
        ((False, True), (4 * MB, 0), (8, 0), 25),
        ((True, True), (0, 0), (0, 0), 22),
    ],
)
def test_a_link_inside_one_machine_is_free(
    colocated: tuple[bool, bool], down: tuple[int, int], seconds: tuple[int, int], round_seconds: float
) -> None:
    cost = two_fogs(colocated)
    assert cost.down_bytes == down
    np.testing.assert_allclose(cost.link_seconds, seconds, rtol=1e-13)
    np.testing.assert_allclose(cost.link_joules, np.array(seconds) / 2, rtol=1e-13)
    np.testing.assert_allclose(cost.round_seconds, round_seconds, rtol=1e-13)
    assert cost.compute_joules == two_fogs().compute_joules


def test_cloud_bursts_follow_each_other_and_fogs_tick_in_mixed_radix() -> None:
    # two cloud bursts, two fog bursts in each: fog ticks 0, 1 belong to cloud tick 0 and 2, 3 to cloud tick 1
    bursts = [burst(0, t, (0, 0, MB, MB)) for t in range(2)] + [burst(1, t, (0, 0, MB, MB)) for t in range(4)]
    visits = [Visit(tick=t, devices=ids(0), samples=ids(10**t)) for t in range(4)]
    cost = clock(bursts, visits, 2, (2, 2), UNIT, (at(20), at(50)), 1e3, (False, False))
    np.testing.assert_allclose(cost.round_seconds, 2 * 2 + 4 * 2 + 1111, rtol=1e-13)
    # a second fog, polled in cloud tick 1 only, with 5000 s in its second burst: 11+4 in cloud tick 0, then it decides
    bursts += [burst(0, 1, (0, 1, MB, MB)), burst(1, 3, (1, 1, MB, MB))]
    visits += [Visit(tick=3, devices=ids(1), samples=ids(5000))]
    cost = clock(bursts, visits, 2, (2, 2), UNIT, (at(20, 20), at(50, 50)), 1e3, (False, False))
    np.testing.assert_allclose(cost.round_seconds, (1 + 15 + 1) + (1 + 5002 + 1), rtol=1e-13)


def test_middle_links_use_their_own_distance() -> None:
    # cloud - fog 0 - fog 0 - device 0: distance 50 gives 8e6 bit/s, distance 100 8e6 log2(1.5)
    bursts = [burst(d, 0, (0, 0, MB, 0)) for d in range(3)]
    cost = clock(bursts, [], 3, (1, 1, 1), UNIT, (at(20), at(100), at(50)), 1e3, (False,) * 3)
    np.testing.assert_allclose(cost.link_seconds, [1, 1 / math.log2(1.5), 1], rtol=1e-13)
    np.testing.assert_allclose(cost.round_seconds, 2 + 1 / math.log2(1.5), rtol=1e-13)


def test_a_round_without_traffic_costs_nothing() -> None:
    cost = clock([], [], 2, (1, 1), EPFLU, (at(), at()), 1e3, (False, False))
    assert cost == RoundCost(
        down_bytes=(0, 0),
        up_bytes=(0, 0),
        link_seconds=(0.0, 0.0),
        link_joules=(0.0, 0.0),
        compute_seconds=0.0,
        compute_joules=0.0,
        round_seconds=0.0,
    )


def test_a_trace_that_is_not_of_this_tree_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got \[1, 2\] entries for 2 link levels"):
        clock([], [], 2, (1,), EPFLU, (at(), at()), 1e3, (False, False))
    with pytest.raises(ValueError, match=r"bursts at depths \[1\], wanted 0 to 0"):
        clock([burst(1, 0, (0, 0, 1, 1))], [], 1, (1,), EPFLU, (at(1),), 1e3, (False,))


def along(tick: int, node: int, devices: tuple[int, ...], distances: tuple[float, ...], depth: int = 0) -> Chain:
    """A path with a model of 2 MB and a sum of 1 MB."""
    return Chain(
        depth=depth,
        tick=tick,
        node=node,
        devices=ids(*devices),
        distances=at(*distances),
        down_bytes=2 * MB,
        up_bytes=MB,
    )


def flat_chain(*distances: float, deadline: float = math.inf) -> RoundCost:
    """The cloud, 1 s per MB away, over devices 2, 0, 1 along a path; they train 3, 10 and 1 s."""
    last = 2 if len(distances) == 3 else 1
    ends = burst(0, 0, (0, 0, 0, 0), *((0, i, 2 * MB * (i == 2), MB * (i == last)) for i in (1, 2)))
    work = Visit(tick=0, devices=ids(0, 1, 2), samples=ids(10, 1, 3))
    path = along(0, 0, (2, 0, 1), distances)
    return clock([ends], [work], 1, (1,), UNIT, (at(10, 20, 30),), 1e3, (False,), deadline, [path])


def test_a_sum_along_a_path_by_hand() -> None:
    cost = flat_chain(50, 50)
    assert (cost.down_bytes, cost.up_bytes) == ((2 * MB, 4 * MB), (MB, 2 * MB))
    np.testing.assert_allclose(cost.link_seconds, [3, 6], rtol=1e-13)
    np.testing.assert_allclose(cost.link_joules, [1.5, 3], rtol=1e-13)
    # the model is at device 2, 0, 1 after 2, 4, 6 s, they are ready after 5, 14, 7 s; the sum is at device 0 after 6 s,
    # waits there until 14, is at device 1 after 15 s and at the cloud after 16
    np.testing.assert_allclose(cost.round_seconds, 16, rtol=1e-13)
    np.testing.assert_allclose([cost.compute_seconds, cost.compute_joules], [14, 42], rtol=1e-13)


def test_a_sum_that_goes_back_takes_one_hop_more() -> None:
    cost = flat_chain(50, 50, 50)
    assert (cost.down_bytes, cost.up_bytes) == ((2 * MB, 4 * MB), (MB, 3 * MB))
    np.testing.assert_allclose(cost.link_seconds, [3, 7], rtol=1e-13)
    np.testing.assert_allclose(cost.round_seconds, 17, rtol=1e-13)


def test_a_sum_waits_for_a_device_until_the_deadline() -> None:
    # device 0 is given up at 4 + 6 = 10 s: 11 s at device 1, 12 s at the cloud
    np.testing.assert_allclose(flat_chain(50, 50, deadline=6).round_seconds, 12, rtol=1e-13)


def test_a_hop_has_the_distance_of_its_two_devices() -> None:
    # at distance 100 a MB takes h = 1 / log2(1.5) s = 1.71 s. Model: 2, 4, 4 + 2 h; ready: 5, 14, 5 + 2 h = 8.42.
    # Sum: at device 0 after 6 s, sent on after 14, at device 1 after 14 + h
    h = 1 / math.log2(1.5)
    cost = flat_chain(50, 100)
    np.testing.assert_allclose(cost.round_seconds, 15 + h, rtol=1e-13)
    np.testing.assert_allclose(cost.link_seconds[-1], 3 + 3 * h, rtol=1e-13)


def test_paths_below_fogs_by_hand() -> None:
    """Two fogs with two bursts; fog 1 has one device, whose path has no hop."""
    low = [
        burst(1, 0, (0, 0, 2 * MB, 0), (0, 1, 0, MB), (1, 2, 2 * MB, MB)),
        burst(1, 1, (0, 0, 0, MB), (0, 1, 2 * MB, 0)),
    ]
    paths = [along(0, 0, (0, 1), (50,), 1), along(0, 1, (2,), (), 1), along(1, 0, (1, 0), (50,), 1)]
    visits = [
        Visit(tick=0, devices=ids(0, 1, 2), samples=ids(1, 4, 30)),
        Visit(tick=1, devices=ids(0, 1), samples=ids(2, 9)),
    ]
    high = burst(0, 0, (0, 0, 2 * MB, MB), (0, 1, 2 * MB, MB))
    world = (2, (1, 2), UNIT, (at(15, 25), at(50, 50, 50)), 1e3, (False, False))
    cost = clock([high, *low], visits, *world, chains=paths)
    assert cost.down_bytes == (4 * MB, 6 * MB, 4 * MB)
    assert cost.up_bytes == (2 * MB, 3 * MB, 2 * MB)
    # fog 0, burst 0: ready after 2 + 1 and 4 + 4, up: 9; burst 1: ready after 2 + 9, at device 0 after 12, up: 13.
    # Fog 1: 2 + 30 + 1 = 33. Cloud: 2 + max(9 + 13, 33) + 1
    np.testing.assert_allclose(cost.round_seconds, 36, rtol=1e-13)
    short = [Visit(tick=0, devices=ids(0, 1, 2), samples=ids(1, 4, 3)), visits[1]]
    np.testing.assert_allclose(clock([high, *low], short, *world, chains=paths).round_seconds, 25, rtol=1e-13)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.booleans(), st.integers(0, 2**32))
def test_the_clock_walks_along_a_path(devices: int, returns: bool, seed: int) -> None:
    """Against the definition, written out device by device."""
    rng = np.random.default_rng(seed)
    order, work = rng.permutation(devices), rng.integers(0, 9, devices)
    hops = devices if returns and devices > 1 else devices - 1
    distances = rng.uniform(1, 100, hops)
    per_mb = transfer(np.full(hops, 8.0 * MB), distances, UNIT)[0]
    model = 2.0
    ready = model + float(work[order[0]])
    for j in range(1, devices):
        model += 2 * per_mb[j - 1]
        ready = max(ready + per_mb[j - 1], model + work[order[j]])
    wanted = ready + sum(per_mb[devices - 1 :]) + 1.0
    path = along(0, 0, tuple(order.tolist()), tuple(distances.tolist()))
    ends = np.zeros((devices, 2), np.int64)
    ends[path.ends[0], 0], ends[path.ends[1], 1] = 2 * MB, MB
    trace = burst(0, 0, *((0, i, int(ends[i, 0]), int(ends[i, 1])) for i in range(devices)))
    visit = Visit(tick=0, devices=np.arange(devices), samples=work)
    cost = clock([trace], [visit], 1, (1,), UNIT, (np.full(devices, 20.0),), 1e3, (False,), chains=[path])
    np.testing.assert_allclose(cost.round_seconds, wanted, rtol=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 30))
def test_peer_distances_depend_on_the_seed_and_the_pair_alone(seed: int, devices: int) -> None:
    every, some = np.arange(40), np.arange(devices)
    many = peer_distances(seed, every[:, None], every)
    np.testing.assert_array_equal(many, many.T)
    np.testing.assert_array_equal(peer_distances(seed, some[:, None], some), many[:devices, :devices])
    np.testing.assert_array_equal(np.diag(many), 0.0)
    apart = many[~np.eye(40, dtype=bool)]
    assert ((apart >= 1) & (apart <= 100)).all()
    assert abs(apart.mean() - 50.5) < 6 * 28.6 / math.sqrt(780)
    assert not np.array_equal(many, peer_distances(seed + 1, every[:, None], every))


LINKS = st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(LINKS, unique_by=lambda link: link[:2], max_size=6), min_size=4, max_size=4))
def test_the_clock_is_the_recursion(polls: list[list[tuple[int, int, int, int, int]]]) -> None:
    """Against the recursion of the definition, written out node by node: two cloud bursts of two fog bursts each."""
    bursts, visits = [], []
    work: dict[tuple[int, int], float] = defaultdict(float)
    kids: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for tick, links in enumerate(polls):
        # device ids are those of their fog, so that no device has two parents
        rows = [(fog, 4 * fog + k, down * MB, up * MB) for fog, k, down, up, _ in links]
        if rows:
            bursts.append(burst(1, tick, *rows))
            devices, samples = ids(*(r[1] for r in rows)), ids(*(link[4] for link in links))
            visits.append(Visit(tick=tick, devices=devices, samples=samples))
        for (fog, device, down, up), link in zip(rows, links, strict=True):
            kids[fog, tick].append((device, down // MB + up // MB))
            work[device, tick] += link[4]
    bursts += [burst(0, t, *((0, fog, 3 * MB, MB) for fog in range(3))) for t in range(2)]

    def fog_time(fog: int, tick: int) -> float:
        return sum(max((path + work[k, t] for k, path in kids[fog, t]), default=0) for t in (2 * tick, 2 * tick + 1))

    wanted = sum(max(4 + fog_time(fog, t) for fog in range(3)) for t in range(2))
    cost = clock(bursts, visits, 2, (2, 2), UNIT, (np.full(3, 20.0), np.full(12, 50.0)), 1e3, (False, False))
    np.testing.assert_allclose(cost.round_seconds, wanted, rtol=1e-12)
    np.testing.assert_allclose(cost.compute_seconds, sum(work.values()), rtol=1e-12, atol=1e-12)
