"""Counter-based random numbers: pure, independent of order and batch, uniform, without collisions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tierfed.rng import Purpose, bits, generator, normal, permutation, uniform

WORD = 2**64
KEYS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5)


def mixed(*key: int) -> int:
    """SplitMix64 absorbing a key, in Python's integers."""
    h = 0
    for part in key:
        h = ((h ^ (part % WORD)) + 0x9E3779B97F4A7C15) % WORD
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) % WORD
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) % WORD
        h ^= h >> 31
    return h


@given(KEYS)
@settings(max_examples=50, deadline=None)
def test_bits_are_splitmix64(key: list[int]) -> None:
    assert int(bits(*key)[0]) == mixed(*key)


def test_splitmix64_reference() -> None:
    """First output of the published SplitMix64 generator with seed 0."""
    assert int(bits(0)[0]) == 0xE220A8397B1DCDAF


@given(st.permutations(range(8)), st.integers(0, 2**40), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_order_and_batch_do_not_matter(order: list[int], seed: int, round_: int) -> None:
    whole = uniform(seed, Purpose.LOST, np.arange(8), round_)
    assert np.array_equal(uniform(seed, Purpose.LOST, np.array(order), round_), whole[order])
    assert [float(uniform(seed, Purpose.LOST, i, round_)[0]) for i in range(8)] == whole.tolist()


def test_keys_broadcast() -> None:
    grid = bits(3, np.arange(4)[:, None], np.arange(5))
    assert grid.shape == (4, 5)
    assert int(grid[2, 3]) == mixed(3, 2, 3)


def test_keys_do_not_collide() -> None:
    """Half a million keys of one length (nodes, rounds, ticks, purposes), and their prefixes, share no word."""
    words = bits(
        0, np.arange(10)[:, None, None, None], np.arange(500)[:, None, None], np.arange(50)[:, None], np.arange(2)
    )
    shorter = bits(0, np.arange(10)[:, None], np.arange(500))
    every = np.concatenate([words.ravel(), shorter.ravel()])
    assert len(np.unique(every)) == every.size == 505_000


def test_seeds_that_are_near_are_unrelated() -> None:
    """Each of the 64 bits flips in half of the pairs (seed, seed + 1): five standard deviations are 0.025."""
    flips = bits(np.arange(10_000), 7) ^ bits(np.arange(1, 10_001), 7)
    share = [float(((flips >> np.uint64(b)) & np.uint64(1)).mean()) for b in range(64)]
    assert max(abs(s - 0.5) for s in share) < 0.025


@pytest.mark.parametrize("varied", range(4))
def test_uniform_in_every_part_of_the_key(varied: int) -> None:
    """Chi-square over 64 bins, whichever part of the key counts up; the critical value is that of 1e-6."""
    key: list[int | np.ndarray[tuple[int], np.dtype[np.int64]]] = [0, int(Purpose.POLL), 5, 9]
    key[varied] = np.arange(64_000)
    u = uniform(*key)
    assert u.min() >= 0.0
    assert u.max() < 1.0
    counts = np.bincount((u * 64).astype(int), minlength=64)
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < stats.chi2.ppf(1 - 1e-6, 63)


def test_neighbors_are_independent() -> None:
    """Pairs (u of node i, u of node i + 1) over a grid of 8 x 8."""
    u = uniform(1, Purpose.SILENT, np.arange(64_001))
    pair = (u[:-1] * 8).astype(int) * 8 + (u[1:] * 8).astype(int)
    counts = np.bincount(pair, minlength=64)
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < stats.chi2.ppf(1 - 1e-6, 63)


def test_normal_is_normal() -> None:
    z = normal(2, Purpose.SLOW, np.arange(20_000))
    assert stats.kstest(z, "norm").pvalue > 1e-6
    assert np.isfinite(z).all()


@given(st.integers(0, 60), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_permutation_permutes(n: int, seed: int) -> None:
    order = permutation(n, seed, Purpose.BATCH)
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, permutation(n, seed, Purpose.BATCH))


def test_every_order_of_three_is_as_likely() -> None:
    seen = [tuple(permutation(3, s, Purpose.BATCH).tolist()) for s in range(6000)]
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < stats.chi2.ppf(1 - 1e-6, 5)


def test_generators_of_two_keys_differ() -> None:
    a, b, again = (generator(0, p).random(4).tolist() for p in (Purpose.TEAMS, Purpose.CLUSTERS, Purpose.TEAMS))
    assert a == again
    assert a != b


def test_purposes_keep_their_numbers() -> None:
    """They are part of every result: a new one goes to the end."""
    first = ["POLL", "BATCH", "LOST", "SILENT", "SLOW", "DROPOUT", "INIT", "TEAMS", "CLUSTERS", "SAMPLE"]
    assert [p.name for p in Purpose][:10] == first
    assert [int(p) for p in Purpose] == list(range(len(Purpose)))
