"""Which relationship of tasks (omega.py) a server of multi-task learning uses, and what it remembers of it."""

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from tierfed.algorithms.omega import Edge, clustered, gram, laplacian, learned, ward
from tierfed.errors import InputError
from tierfed.tree import Params, Tree


@dataclass(frozen=True, kw_only=True)
class Relationship:
    """Which Omega a server uses, and when it is renewed."""

    omega: str
    omega_every: int
    eps: float
    scale: str
    clusters: int
    between: float
    edges: tuple[Edge, ...]

    def check(self, devices: int) -> float:
        """The largest Omega_tt; of scale = "trace" nothing is known.

        :raises InputError: edges that are missing, in vain, or between devices that are not there
        """
        if (self.omega == "graph") != bool(self.edges):
            raise InputError(
                f"algorithm.omega = {self.omega!r} with {len(self.edges)} edges: edges are for omega = 'graph', which "
                "needs them; set algorithm.edges = [[0, 1], [1, 2, 0.5]] (device, device, weight), or another omega"
            )
        pairs = Counter(tuple(sorted(e[:2])) for e in self.edges)
        for (i, j), times in pairs.items():
            if j >= devices or i == j or times > 1:
                raise InputError(
                    f"algorithm.edges has [{i}, {j}] {times}x; wanted every pair of two different devices once, "
                    f"numbered 0 to {devices - 1}"
                )
        if self.edges:
            return float(laplacian(self.edges, torch.arange(devices)).diag().max())
        return 0.0 if self.omega == "learned" and self.scale == "trace" else 1.0

    @property
    def steps(self) -> bool:
        """Whether Omega follows the models."""
        return self.omega == "learned" or (self.omega == "cluster" and self.clusters > 0)

    def row(self, devices: int, like: Tensor) -> Tree:
        """What a server remembers of Omega about a device, by id: its row [N], and whom that covers [N]."""
        none = torch.zeros(devices, dtype=torch.bool, device=like.device)
        return {"omega": like.new_zeros(devices), "peers": none} if self.steps else {}

    def now(self, rows: Tree, ids: Tensor, like: Tensor) -> Tensor:
        """Omega [R, R] of the members `ids` [R]; before the first step, and while devices have come or gone since the
        last one, that of fixed_mean."""
        n = len(ids)
        first = laplacian(self.edges, ids) if self.edges else clustered(torch.zeros(n), 0.0)
        if not self.steps:
            return first.to(like)
        at = ids.to(like.device)
        peers = rows["peers"]
        same = peers[:, at].all() & (peers.sum(1) == n).all()
        return torch.where(same, rows["omega"][:, at], first.to(like))

    def step(self, w: Params, ids: Tensor, rows: Tree, round_: Tensor) -> Tree:
        """The rows after a round that the models w {key: [R, ...]} end: with a new Omega if it is due."""
        if not self.steps or (int(round_) + 1) % self.omega_every:
            return rows
        n, at, old = len(ids), ids.to(rows["omega"].device), rows["omega"]
        new = clustered(ward(w, self.clusters), self.between) if self.omega == "cluster" else None
        if new is None:  # one task alone has nobody to relate to
            new = learned(gram(w), self.eps, self.scale) if n > 1 else torch.zeros(1, 1)
        omega = torch.zeros_like(old).index_copy(1, at, new.to(old))
        peers = torch.zeros_like(rows["peers"]).index_fill(1, at, True)
        return {**rows, "omega": omega, "peers": peers}
