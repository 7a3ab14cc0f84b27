"""The virtual clock of a run: what its rounds cost on the links and processors of `tierfed.cost`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tierfed.cost import (
    Burst,
    CostSettings,
    Offloaded,
    RoundCost,
    Visit,
    clock,
    cloud_transfer,
    computing,
    link_distances,
    transfer,
)
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
        self,
        topology: Topology,
        devices: Ints,
        down: Ints,
        up: Ints,
        samples: Ints,
        slow: Floats,
        offloaded: Offloaded | None = None,
    ) -> Floats:
        """How long the visits of devices take: download, computing and what is exchanged meanwhile, upload. Arrays [H];
        bytes, samples, seconds.
        """
        visit = Visit(tick=0, devices=devices, samples=samples, slowdown=slow, offloaded=offloaded)
        own, _, at_edge = computing(visit, self.bits_per_sample, self.settings)
        if offloaded is not None:
            down, up = down + offloaded.down_bytes, up + offloaded.up_bytes
        return self.moving(topology, devices, down + up)[0] + own + at_edge

    def moving(self, topology: Topology, devices: Ints, size: Ints) -> tuple[Floats, Floats]:
        """Seconds and the sender's joules of bytes on the links of devices. Arrays [H]"""
        distances, bits = self.distances[-1], 8 * size.astype(np.float64)
        if topology.colocated and topology.colocated[-1]:
            return 0 * bits, 0 * bits
        if topology.depth == 1:
            return cloud_transfer(bits, np.full(len(devices), distances.mean()), self.settings)
        return transfer(bits, distances[devices], self.settings)
