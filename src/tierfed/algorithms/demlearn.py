"""DemLearn and, with mu > 0, DemLearn-P (Nguyen, Pandey, Tri Dang, Huh, Tran, Saad, Hong; IEEE TNNLS 2022).

Down the tree every node moves towards its parent, w <- (1 - a) w + a w_parent, and so does a device; it then trains
f_i(w) + mu / 2 |w - w_parent|^2. Up the tree every node becomes the mean of its children, weighted by the devices
below. Every `rebuild` rounds the tree is clustered anew, level by level from the devices up, by the cosine of updates
or of centered weights: of devices into the lowest fogs, of these into the nodes above, by what each last reported. The
first tree and the number of nodes per level are those of the topology; the paper cuts one dendrogram of the devices
instead. `amplify`: nodes grow by this factor in the first rounds. As in the released code only the parent pulls, not
all ancestors (the paper's sum of mu / 2N_g |w - w_g|^2).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tierfed.algorithm import Algorithm, Average, Data, Info, Tier
from tierfed.clustering import Ids, recluster
from tierfed.settings import Count, Natural, NonNegative, Positive, Share
from tierfed.task import Task
from tierfed.tree import Params, Tree, mix, take, vector

TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Node(Average):
    """A node of the tree; `keys` are the trainable entries."""

    a: float
    keys: tuple[str, ...]
    amplify: float
    amplify_rounds: int
    weight = "devices"

    def enter(self, kept: Tree, msg: Tree) -> Tree:
        return {"params": mix(kept["params"], msg["params"], self.a)}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        new = super().absorb(state, up, info)
        if self.amplify == 1.0:
            return new
        early = info.round < self.amplify_rounds
        grown = {k: torch.where(early, self.amplify * new["params"][k], new["params"][k]) for k in self.keys}
        return {**new, "params": {**new["params"], **grown}}


@dataclass(frozen=True, kw_only=True)
class Group(Node):
    """A node that remembers of every child its last update, or its weights [d]; `kind` of child: device or node."""

    updates: bool
    kind: str
    watches = True

    def child(self, params: Params, ident: int) -> Tree:
        return {self.kind: torch.zeros_like(vector(take(params, self.keys)))}

    def watch(self, state: Tree, row: Tree, up: Tree, info: Info) -> Tree:
        def of(params: Params) -> Tensor:
            return vector(take(params, self.keys))

        return {self.kind: of(up["params"]) - of(state["params"]) if self.updates else of(up["params"])}


@dataclass(frozen=True, kw_only=True)
class DemLearn(Algorithm):
    a: Share = 0.6
    """How far every node and device moves towards its parent."""
    mu: NonNegative = 0.002
    """Weight of the pull to the parent during training."""
    rebuild: Natural = 2
    """Rounds between two clusterings of the tree; 0: never."""
    similarity: Literal["updates", "weights"] = "weights"
    """What devices and fogs are clustered by."""
    clustering: Literal["average_linkage", "spherical_kmeans"] = "average_linkage"
    """How they are clustered."""
    min_team_size: Count = 1
    """Devices that a team has at least."""
    amplify: Positive = 1.0
    """Factor of the nodes in the first rounds; the released code has 1.15."""
    amplify_rounds: Natural = 5
    """How many rounds these are."""

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        node = Node(a=self.a, keys=tuple(task.trainable), amplify=self.amplify, amplify_rounds=self.amplify_rounds)
        of_devices, of_nodes = (
            Group(**vars(node), updates=self.similarity == "updates", kind=kind) if self.rebuild else node
            for kind in ("device", "node")
        )
        return (node, *(of_nodes for _ in shape[3:]), of_devices)[: len(shape) - 1]

    def init(self, task: Task, params: Params) -> Tree:
        return {"w": params}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        pull = (self.mu, take(msg["params"], task.trainable)) if self.mu else None
        w = task.train(self.personal(task, msg, state, data), data, self.lr, pull=pull)
        return {"params": w}, {"w": w}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return mix(state["w"], msg["params"], self.a)  # type: ignore[no-any-return]

    def regroup_scope(self, round_: int) -> str:
        return "tree" if self.rebuild and (round_ + 1) % self.rebuild == 0 else ""

    def regroup(self, rows: Tree, teams: Ids, groups: int, round_: int) -> Ids:
        ((kind, vectors),) = rows.items()
        at = vectors.double().cpu().numpy()
        if self.similarity == "weights":
            heard = np.linalg.norm(at, axis=1) > TINY
            at[heard] -= at[heard].mean(0)
        return recluster(at, teams, groups, self.clustering, self.min_team_size if kind == "device" else 1)
