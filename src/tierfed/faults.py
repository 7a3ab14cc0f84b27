"""Faults of a run as pure functions of (seed, round, node): silent nodes, lost replies, slow devices."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Le

from tierfed.rng import Purpose, normal, uniform
from tierfed.settings import NonNegative, Positive

Probability = Annotated[float, Ge(0), Le(1)]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong. A pair of lists or one number: per link level from the cloud down, or the same for all."""

    dropout: Probability | tuple[Probability, ...] = 0.0
    """A polled child is away: it never hears its parent, nothing below it moves."""
    loss: Probability | tuple[Probability, ...] = 0.0
    """A child's reply is lost on its link: the child has moved, the parent does not know."""
    deadline_seconds: Positive | None = None
    """A device whose visit (transfers and computing on the virtual clock) takes longer replies too late: as if lost."""
    slowdown: NonNegative = 0.0
    """Spread of the devices' speed in a round: computing takes exp(slowdown * normal) times as long."""

    def silent(self, seed: int, level: int, ids: Ids, round_: int, tick: int) -> npt.NDArray[np.bool_]:
        """Which nodes `ids` of `level` (1 below the cloud) are away at this tick."""
        return _happens(self.dropout, Purpose.SILENT, seed, level, ids, round_, tick)

    def lost(self, seed: int, level: int, ids: Ids, round_: int, tick: int) -> npt.NDArray[np.bool_]:
        """Whose reply does not arrive on the link above `level`."""
        return _happens(self.loss, Purpose.LOST, seed, level, ids, round_, tick)

    def slow(self, seed: int, ids: Ids, round_: int) -> npt.NDArray[np.float64]:
        """Factor on the computing time of devices in this round [n]."""
        if not self.slowdown:
            return np.ones(len(ids))
        return np.exp(self.slowdown * normal(seed, Purpose.SLOW, ids, round_))


def at(value: float | tuple[float, ...], link: int) -> float:
    """The value for a link level, 0 = below the cloud; the last one of a list holds for all deeper links."""
    return value[min(link, len(value) - 1)] if isinstance(value, tuple) else value


def _happens(
    p: float | tuple[float, ...], purpose: Purpose, seed: int, level: int, ids: Ids, round_: int, tick: int
) -> npt.NDArray[np.bool_]:
    probability = at(p, level - 1)
    if not probability or not len(ids):
        return np.zeros(len(ids), bool)
    return uniform(seed, purpose, level, ids, round_, tick) < probability
