"""The virtual clock of a run: what its rounds cost on the links and processors of `tierfed.cost`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tierfed.cost import Burst, CostSettings, RoundCost, Visit, clock, cloud_transfer, compute, link_distances, transfer
from tierfed.peers import Chain
from tierfed.topology import Topology

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Clock:
    """Prices the trace of a round; distances are a pure function of the seed and stay with a device that changes
    team.
    """

    settings: CostSettings
    distances: tuple[Floats, ...]  # per link level: of each child to its parent
    bits_per_sample: float
    deadline_seconds: float = np.inf

    @classmethod
    def of(
        cls, topology: Topology, settings: CostSettings, bits_per_sample: float, deadline_seconds: float | None
    ) -> "Clock":
        sizes = topology.shape[1:]
        distances = tuple(link_distances(topology.seed, level, n) for level, n in enumerate(sizes))
        deadline = np.inf if deadline_seconds is None else deadline_seconds
        return cls(settings=settings, distances=distances, bits_per_sample=bits_per_sample, deadline_seconds=deadline)

    def price(
        self,
        topology: Topology,
        ticks: Sequence[int],
        bursts: Sequence[Burst],
        visits: Sequence[Visit],
        chains: Sequence[Chain] = (),
    ) -> RoundCost:
        """The cost of one round. :param ticks: bursts per visit of the nodes of each inner level"""
        colocated = topology.colocated or (False,) * topology.depth
        arguments = (topology.depth, ticks, self.settings, self.distances, self.bits_per_sample, colocated)
        return clock(bursts, visits, *arguments, deadline_seconds=self.deadline_seconds, chains=chains)

    def visit_seconds(
        self, topology: Topology, devices: Ints, down: Ints, up: Ints, samples: Ints, slow: Floats
    ) -> Floats:
        """How long the visits of devices take: download, computing, upload. Arrays [H]; bytes, samples, seconds."""
        distances, bits = self.distances[-1], (8 * (down + up)).astype(np.float64)
        if topology.depth == 1:
            mean = np.full(len(devices), distances.mean())
            moving = cloud_transfer(bits, mean, self.settings)[0]
        else:
            moving = transfer(bits, distances[devices], self.settings)[0]
        return moving + slow * compute(self.bits_per_sample, samples.astype(np.float64), self.settings)[0]
