"""Federated multi-task learning (MOCHA's objective, Smith, Chiang, Sanjabi, Talwalkar, NeurIPS 2017) for deep models.

min_W sum_t f_t(w_t) + lam/2 sum_rt Omega_rt <w_r, w_t>, Omega [m, m] by `omega`, see omega.py. Device t:
  w_t <- w_t - lr (grad f_t(w_t) + lam (Omega_tt w_t + c_t)),  c_t = sum_{r != t} Omega_tr w_r
with all others as they were heard last. It gets c_t and the number Omega_tt and sends w_t; every `omega_every` rounds
the server takes Omega from the models W [m, d] that it remembers, through W W^T [m, m]. Where means are enough,
Omega = I - 11'/m (fixed_mean) and clusters that are the teams of the tree (`clusters` = 0; a flat tree is one team),
increments of w_t go up and a mean down: c_t = w_t' / m - mean_r w_r with w_t' its model at the start of the visit.
lr lam Omega_tt must stay below 2; lam means the same in all modes but "graph" (degrees) and scale = "trace". All
devices move at once: where Omega has large entries beside the diagonal, many local steps need a smaller lam than one.
Batch-norm statistics are no part of W: they stay on the device, and are averaged into the global model only. The ridge
lam_2 |w_t|^2 of the paper is the weight decay of the model.
"""

from dataclasses import dataclass
from typing import Literal

from tierfed.algorithm import Algorithm, Data, Relay, Tier
from tierfed.algorithms.fmtl_server import Relation, Tasks, Team
from tierfed.algorithms.relationship import Relationship
from tierfed.errors import InputError
from tierfed.servers import server_at
from tierfed.settings import Count, Natural, NonNegative, Positive, Share, part
from tierfed.task import Task
from tierfed.tree import Params, Tree, scale, sub, zeros


@dataclass(frozen=True, kw_only=True)
class FMTL(Algorithm):
    lam: NonNegative = 0.1
    """Weight of the relationship between the tasks."""
    omega: Literal["fixed_mean", "learned", "graph", "cluster"] = "fixed_mean"
    """Who is related to whom: all to their mean, as the models say, by `edges`, or inside clusters."""
    omega_every: Count = 1
    """Rounds between two steps of an Omega that follows the models."""
    eps: Positive = 1e-6
    """Ridge of a learned Omega, relative to the mean square norm of the models."""
    scale: Literal["largest", "trace"] = "largest"
    """Size of a learned Omega: its largest eigenvalue is 1, or its inverse has the trace 1 (the paper's; lam then has
    to shrink with the number of devices and more)."""
    clusters: Natural = 0
    """Clusters of models, at most; 0: the teams of the tree."""
    between: Share = 0.0
    """Weight of the pull between the means of clusters, relative to the one inside; 1: fixed_mean."""
    edges: tuple[tuple[Natural, Natural] | tuple[Natural, Natural, Positive], ...] = ()
    """Of omega = "graph": pairs of device numbers, each with a weight (1 by default)."""
    server_at: Literal["cloud", "fog"] = "cloud"
    """Who keeps the models: the cloud over relays, or every lowest fog for its own devices (edges to others do not
    count). Not for the modes that need means only."""
    stale: bool = True
    """Devices that do not take part count as they were heard last; false: all must take part."""

    @property
    def needs_full(self) -> bool:
        """Whether every device has to take part in every round."""
        return not self.stale

    @property
    def means(self) -> bool:
        """Whether means are all that the devices need to hear."""
        return self.omega == "fixed_mean" or (self.omega == "cluster" and not self.clusters)

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        relation, keys = part(Relationship, self), tuple(task.trainable)
        most = self.lam * relation.check(shape[-1])
        if self.lr * most > 2:
            raise InputError(
                f"lr = {self.lr:g} with lam = {self.lam:g} throws devices beyond those that they are related to; "
                f"wanted lr <= {2 / most:g}"
            )
        if not self.means:
            return server_at(self.server_at, Tasks(relation=relation, keys=keys, devices=shape[-1]), shape)
        team = Team(between=self.between, size=shape[-1] / shape[-2])
        below = [Relay() for _ in shape[2:]] if self.omega == "fixed_mean" else [*(Relay() for _ in shape[3:]), team]
        return (Relation(keys=keys, devices=shape[-1]), *below)[: len(shape) - 1]

    def init(self, task: Task, params: Params) -> Tree:
        return {"w": params}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        w = state["w"]
        if self.means:
            c, own = {k: msg["part"] * w[k] - mean for k, mean in msg["params"].items()}, 1 - msg["part"]
        else:
            c, own = msg["c"], msg["own"]
        new = task.train(w, data, self.lr, drift=scale(c, self.lam), pull=(self.lam * own, zeros(c)))
        return ({"owed": {"moved": sub(new, w)}} if self.means else {"params": new}), {"w": new}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return state["w"]  # type: ignore[no-any-return]
