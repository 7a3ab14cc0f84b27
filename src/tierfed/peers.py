"""Links between devices: how far two are apart, and the way of a sum from one to the next."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tierfed.rng import Purpose, uniform

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PEER_LINK = "device-device"
_NEAREST, _FARTHEST = 1.0, 100.0


def peer_distances(seed: int, a: Ints, b: Ints) -> Floats:
    """Distances between devices a and b, uniform in 1…100, 0 to itself; the ids broadcast.

    A function of the seed and the two ids alone: other devices, more of them, and teams do not matter.
    """
    drawn = uniform(seed, Purpose.PEERS, np.minimum(a, b), np.maximum(a, b))
    return np.where(a == b, 0.0, _NEAREST + (_FARTHEST - _NEAREST) * drawn)


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The way of a sum along the devices of one lowest node in one burst; the node's two links are in its `Burst`.

    :param tick: of the burst
    :param devices: [H] those that were not away, in the order of the path, at least one
    :param distances: [H - 1] from each to the next; [H] where the sum goes back to the first at last
    :param down_bytes: the model, which the node gives to the first and each hands on to the next
    :param up_bytes: the sum, which each hands on to the next, and the last (or, gone back to, the first) to the node
    """

    depth: int
    tick: int
    node: int
    devices: Ints
    distances: Floats
    down_bytes: int
    up_bytes: int

    @property
    def peer_bytes(self) -> tuple[int, int]:
        """What all links between devices carried, down and up."""
        return (len(self.devices) - 1) * self.down_bytes, len(self.distances) * self.up_bytes

    @property
    def ends(self) -> tuple[int, int]:
        """The device that hears from the node, and the one that answers."""
        back = len(self.distances) == len(self.devices)
        return int(self.devices[0]), int(self.devices[0 if back else -1])
