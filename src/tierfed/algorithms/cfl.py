"""CFL (Sattler, Mueller, Samek; IEEE TNNLS 2021, Algorithms 1-3): FedAvg whose devices part by their directions.

Device i of cluster c: Delta_i = theta_i - theta_c, E epochs of SGD. Server: theta_c <- theta_c + mean Delta_i, all
devices alike. Cluster c is split where |mean Delta_i| < eps1 and max |Delta_i| > eps2: its devices have come to rest
together, but not each alone. It parts in two by the cosine of the Delta_i: `partition` "complete" linkage, or
"optimal", the split whose largest cosine across is smallest (single linkage). eps1 is in units of max |Delta_i| of the
cluster, or absolute. Only a cluster whose every device was heard is split, into at most `max_clusters` in all.
"""

from dataclasses import dataclass
from typing import Literal

from tierfed.algorithm import Algorithm, Data, Tier
from tierfed.algorithms.cfl_splitter import Splitter
from tierfed.servers import server_at
from tierfed.settings import Count, NonNegative
from tierfed.task import Task
from tierfed.tree import Tree


@dataclass(frozen=True, kw_only=True)
class CFL(Algorithm):
    server_at: Literal["cloud", "fog"] = "cloud"
    """Who keeps the clusters: the cloud over relays, or every lowest fog for its own devices."""
    eps1: NonNegative = 0.4
    """The mean update of a cluster at rest is shorter than this."""
    eps2: NonNegative = 0.0
    """The longest update of a cluster that is split is longer than this."""
    units: Literal["relative", "absolute"] = "relative"
    """Of eps1: the longest update of the cluster, or 1."""
    start: Count = 20
    """Rounds before the first split."""
    min_size: Count = 2
    """Devices that a cluster needs."""
    max_clusters: Count = 8
    """Models that there may be."""
    partition: Literal["complete", "optimal"] = "complete"
    """How a cluster parts."""

    needs_full = True

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        server = Splitter(
            keys=tuple(task.trainable),
            eps1=self.eps1,
            eps2=self.eps2,
            relative=self.units == "relative",
            start=self.start,
            min_size=self.min_size,
            max_clusters=self.max_clusters,
            partition=self.partition,
        )
        return server_at(self.server_at, server, shape)

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        return {"params": task.train(msg["params"], data, self.lr)}, state
