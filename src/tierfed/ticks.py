"""Seconds of nodes in the ticks of a round: sums, maxima and look-ups over (tick, node) pairs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of a node in a tick, one entry for each pair. each [n]"""

    tick: Ints
    node: Ints
    seconds: Floats


def sums(tick: Ints, node: Ints, seconds: Floats) -> Times:
    """The sum of the entries of each pair."""
    pairs, place = _pairs(tick, node)
    total: Floats = np.zeros(pairs.shape[1])
    np.add.at(total, place, seconds)
    return Times(tick=pairs[0], node=pairs[1], seconds=total)


def longest(tick: Ints, node: Ints, seconds: Floats) -> Times:
    """The longest entry of each pair."""
    pairs, place = _pairs(tick, node)
    most: Floats = np.zeros(pairs.shape[1])
    np.maximum.at(most, place, seconds)
    return Times(tick=pairs[0], node=pairs[1], seconds=most)


def lookup(times: Times, tick: Ints, node: Ints) -> Floats:
    """The seconds of each pair, 0 where there is no entry. Same shape as `tick`."""
    pairs, place = _pairs(np.concatenate([times.tick, tick]), np.concatenate([times.node, node]))
    known: Floats = np.zeros(pairs.shape[1])
    known[place[: times.tick.size]] = times.seconds
    return known[place[times.tick.size :]]


def _pairs(tick: Ints, node: Ints) -> tuple[Ints, Ints]:
    """The different (tick, node) pairs [2, n] and the place of each given one among them."""
    span = int(node.max(initial=0)) + 1  # one integer sorts several times faster than a row of two
    keys, place = np.unique(tick * span + node, return_inverse=True)
    return np.stack([keys // span, keys % span]), place
