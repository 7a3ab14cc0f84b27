"""EPFLU (ICWE 2024): devices average along a path among themselves, and keep their batch norms.

Device i: the consensus part NP goes along the path and is combined with its private part, E epochs of SGD on f_i; the
sum comes from its predecessor, TCM_j = (s + n_j NP_j, n + n_j), and goes on to the next. The last device's s / n is the
consensus of the group. Every lowest fog has a group and sends its consensus up once, the cloud averages the groups, n_j
their weights; without fogs there is one group. Reconstructed: the order of the path (nearest neighbor from a random
device), and that the model comes down along the path of the round in which it is trained.
"""

from dataclasses import dataclass
from typing import Literal

from tierfed.algorithm import Tier
from tierfed.algorithms.chain import Group, grouped
from tierfed.algorithms.keep_local import Split
from tierfed.task import Task


@dataclass(frozen=True, kw_only=True)
class EPFLU(Split):
    path: Literal["nearest", "random", "2opt"] = "nearest"
    """Order of a group: always on to the nearest device, any order, or the first one shortened by reversals."""

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        return grouped(Group(kind=self.path), shape)
