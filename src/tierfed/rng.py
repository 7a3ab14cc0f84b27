"""Counter-based randomness: every number is a pure function of (seed, purpose, round, node, ...); there is no stream
to keep.

A whole cohort is drawn in one call, because keys broadcast like arrays: an engine gets the same numbers one device at a
time, all at once, or on another machine.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint64]


class Purpose(IntEnum):
    """What a number is drawn for; two purposes never share a key. New ones go to the end: the order is part of every
    result.
    """

    POLL = 0
    BATCH = 1
    LOST = 2
    SILENT = 3
    SLOW = 4
    DROPOUT = 5
    INIT = 6
    TEAMS = 7
    CLUSTERS = 8
    SAMPLE = 9
    FORMATION = 10
    PEERS = 11
    PATH = 12
    MASK = 13
    KINDS = 14
    EVALUATION = 15
    VALIDATION = 16
    ATTACK = 17
    COMPRESS = 18
    NOISE = 19


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def bits(*key: int | Ints) -> Words:
    """64 random bits for each key; the parts of a key broadcast against each other.

    SplitMix64 (Steele, Lea, Flood 2014) absorbs the key part by part: its finalizer is a bijection, so two keys of one
    length that differ in the last part only never collide.
    """
    h = np.zeros(1, np.uint64)
    for part in key:
        h = (h ^ np.atleast_1d(np.asarray(part, np.int64)).view(np.uint64)) + _GOLDEN
        h = (h ^ (h >> np.uint64(30))) * _MIX1
        h = (h ^ (h >> np.uint64(27))) * _MIX2
        h = h ^ (h >> np.uint64(31))
    return h


def uniform(*key: int | Ints) -> Floats:
    """Numbers in [0, 1), one for each key."""
    return (bits(*key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def normal(*key: int | Ints) -> Floats:
    """Standard normal numbers, one for each key (Box-Muller)."""
    u, v = uniform(*key, 0), uniform(*key, 1)
    return np.asarray(np.sqrt(-2.0 * np.log1p(-u)) * np.cos(2.0 * np.pi * v))


def permutation(n: int, *key: int) -> Ints:
    """A random order of range(n)."""
    return np.argsort(bits(*key, np.arange(n)), kind="stable")


def sample(n: int, population: int, *key: int) -> Ints:
    """[n] different numbers of range(population), ascending; every subset is as likely as any other (Floyd's
    algorithm: the work grows with n alone).
    """
    last = np.arange(population - n, population)
    drawn: set[int] = set()
    for top, at in zip(
        last.tolist(), np.floor(uniform(*key, last) * (last + 1)).astype(np.int64).tolist(), strict=True
    ):
        drawn.add(top if at in drawn else at)
    return np.array(sorted(drawn), np.int64)


def generator(*key: int) -> np.random.Generator:
    """A NumPy generator of its own for this key, for whatever is not drawn number by number."""
    return np.random.Generator(np.random.Philox(key=int(bits(*key)[0])))
