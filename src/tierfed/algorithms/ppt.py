"""PPT (Chen et al. 2022): FedAvg by a sum that goes from device to device, under a mask of the first one.

s_1 = r + n_1 theta_1, s_j = s_{j-1} + n_j theta_j; s_L goes back to the first device, which knows r, and x <- (s_L - r)
/ sum n_j. r ~ N(0, (noise n_1)^2) is drawn from the first device's own random number, another one in every round.

Simulated: every sum on the way is masked, and the path avoids neighbors without a common key. Keys are pre-distributed
(Eschenauer, Gligor 2002): every device has a ring of `ring_size` keys of a pool of `pool_size`. Neighbors without a
common one, where no other device is left to go to, are taken to have agreed on a key through others before training
(the path keys of that paper). Not simulated and not priced: this agreement, and encryption with the keys. A mask hides
no device from two neighbors that compare what they saw.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from tierfed.algorithm import Algorithm, Data, Tier
from tierfed.algorithms.chain import Flags, Floats, Group, Ids, grouped, tour
from tierfed.errors import InputError
from tierfed.rng import generator
from tierfed.settings import Count, Natural, Positive
from tierfed.task import Task
from tierfed.tree import Tree, tmap


def rings(devices: Ids, ring_size: int, pool_size: int, seed: int) -> npt.NDArray[np.int64]:
    """Keys of devices [H, ring_size], without repetition in a ring; of one device a function of its id and the seed."""
    drawn = [generator(seed, int(i)).choice(pool_size, ring_size, replace=False) for i in devices]
    return np.array(drawn, np.int64)


def strangers(keys: npt.NDArray[np.int64], pool_size: int) -> Flags:
    """Which of H devices with rings [H, ring_size] have no key in common [H, H]."""
    held = np.zeros((len(keys), pool_size), np.float32)
    np.put_along_axis(held, keys, 1.0, axis=1)
    apart: Flags = held @ held.T == 0
    return apart


@dataclass(frozen=True, kw_only=True)
class MaskedGroup(Group):
    """A group whose sum begins with a mask, which the first device takes out when the sum is back."""

    noise: float
    ring_size: int
    pool_size: int
    seed: int
    returns = True

    def path(self, ids: Ids, distances: Floats, rng: np.random.Generator) -> Ids:
        keys = rings(ids, self.ring_size, self.pool_size, self.seed)
        return tour(self.kind, distances, rng, strangers(keys, self.pool_size))

    def mask(self, up: Tree, weight: float, key: int) -> Tree:
        rng, size = generator(key), self.noise * weight
        return tmap(lambda t: torch.as_tensor(size * rng.normal(size=tuple(t.shape))).to(t), up)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class PPT(Algorithm):
    path: Literal["nearest", "random", "2opt"] = "nearest"
    """Order of a group: always on to the nearest device, any order, or the first one shortened by reversals."""
    noise: Positive = 1.0
    """Standard deviation of the mask, in the unit of a parameter of the first device."""
    ring_size: Count = 50
    """Keys that a device holds."""
    pool_size: Count = 1000
    """Keys that there are."""
    seed: Natural = 0
    """Of the key rings."""

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        if self.ring_size > self.pool_size:
            raise InputError(
                f"a ring of {self.ring_size} keys out of {self.pool_size}; "
                "take algorithm.ring_size at most algorithm.pool_size"
            )
        group = MaskedGroup(
            kind=self.path, noise=self.noise, ring_size=self.ring_size, pool_size=self.pool_size, seed=self.seed
        )
        return grouped(group, shape)

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        return {"params": task.train(msg["params"], data, self.lr)}, state
