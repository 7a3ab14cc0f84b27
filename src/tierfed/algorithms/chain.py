"""Groups of devices along a path: in what order a travelling sum goes through them, and the node that averages so.

A tour is open: it begins at a random device and ends where all have been. "nearest" goes on to the nearest device that
is left; "2opt" (Croes 1958) reverses parts of that tour as long as this makes it shorter; "random" is any order.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tierfed.algorithm import Average, Relay, Tier

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Kind = Literal["nearest", "random", "2opt"]


def length(cost: Floats, order: Ids) -> float:
    """Of an open tour [H] through points with costs [H, H]."""
    return float(cost[order[:-1], order[1:]].sum())


def nearest(cost: Floats, start: int) -> Ids:
    """The greedy tour [H] from `start`; cost [H, H] from row to column."""
    left, order = np.ones(len(cost), bool), [start]
    left[start] = False
    while left.any():
        order.append(int(np.argmin(np.where(left, cost[order[-1]], np.inf))))
        left[order[-1]] = False
    return np.array(order)


def two_opt(cost: Floats, order: Ids) -> Ids:
    """A tour [H] that no reversal of a part makes shorter, from a given one; cost [H, H] symmetric."""
    order, better = order.copy(), True
    while better:
        better = False
        for i in range(len(order) - 1):
            here, ends = order[i], order[i + 1 :]  # parts order[i : j + 1] for every j > i
            gain = np.append(cost[ends[:-1], ends[1:]] - cost[here, ends[1:]], 0.0)
            if i:
                gain += cost[order[i - 1], here] - cost[order[i - 1], ends]
            j = int(np.argmax(gain))
            if gain[j] > 1e-9:
                order[i : i + j + 2] = order[i : i + j + 2][::-1]
                better = True
    return order


def tour(kind: Kind, distances: Floats, rng: np.random.Generator, avoid: Flags | None = None) -> Ids:
    """The order [H], H > 0, in which points that are `distances` [H, H] apart are gone through.

    :param avoid: [H, H] symmetric, pairs that follow each other only where the rest of the tour leaves no other way
    """
    draws = rng.random(distances.shape) if kind == "random" else distances  # the nearest of random ones is any one
    cost = draws if avoid is None else draws + (1.0 + draws.max() * len(draws)) * avoid
    order = nearest(cost, int(rng.integers(len(cost))))
    return two_opt(cost, order) if kind == "2opt" else order


@dataclass(frozen=True, kw_only=True)
class Group(Average):
    """Averages its devices by a sum that travels along their path: TCM_j = (s + n_j w_j, n + n_j), mean s / n."""

    kind: Kind = "nearest"
    reduce = "chain"

    def path(self, ids: Ids, distances: Floats, rng: np.random.Generator) -> Ids:
        return tour(self.kind, distances, rng)


def grouped(group: Tier, shape: tuple[int, ...]) -> tuple[Tier, ...]:
    """A group below every lowest fog, whose consensus goes up once and is averaged by the cloud; flat: one group."""
    return (Average(), *(Relay() for _ in shape[3:]), group) if len(shape) > 2 else (group,)
