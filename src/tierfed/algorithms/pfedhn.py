"""pFedHN and pFedHN-PC (Shamsian, Navon, Fetaya, Chechik; ICML 2021): a hypernetwork at the server writes all models.

Server: theta_i = h(v_i; phi), dense layers on an embedding v_i [D] and one linear head per tensor, theta = W z + b.
Device: E epochs of SGD from theta_i to theta~;  Delta_i = theta_i - theta~.
Server: phi by SGD with momentum on mean_i (d theta_i / d phi)^T Delta_i, v_i alike on its own (d theta_i / d v_i)^T
Delta_i; gradients are clipped together, weight decay is added, as PyTorch does. b starts at the initial model and W at
zero, so that every device begins with the initial model. Batch norms stay on the device; so do, in pFedHN-PC, the last
`depth` layers.
"""

from dataclasses import dataclass
from typing import Literal

from tierfed.algorithm import Algorithm, Data, Tier
from tierfed.algorithms.pfedhn_server import HyperNetwork
from tierfed.servers import server_at
from tierfed.settings import Count, Fraction, Natural, NonNegative, Positive
from tierfed.task import Task
from tierfed.tree import Params, Tree, take


@dataclass(frozen=True, kw_only=True)
class PFedHN(Algorithm):
    server_at: Literal["cloud", "fog"] = "cloud"
    """Who has the hypernetwork: the cloud over relays, or every lowest fog one of its own."""
    lr_hn: Positive = 1e-2
    """Step of the hypernetwork and the embeddings."""
    momentum: Fraction = 0.9
    """Momentum of the hypernetwork and the embeddings."""
    decay: NonNegative = 1e-3
    """Weight decay of the hypernetwork and the embeddings."""
    clip: Positive = 50.0
    """Longest gradient of the hypernetwork."""
    dim: Natural = 0
    """Length of an embedding; 0: 1 + a quarter of the devices."""
    width: Count = 100
    """Units of a hidden layer."""
    hidden: Natural = 3
    """Hidden layers."""
    depth: Natural = 0
    """Layers that stay on the device, from the last (pFedHN-PC: 1)."""
    seed: Natural = 0
    """Of the first hypernetwork and embeddings."""

    def shared(self, task: Task) -> list[str]:
        private = {*task.norm_keys(), *task.head_keys(self.depth)}
        return [k for k in task.keys if k not in private]

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        server = HyperNetwork(
            dim=self.dim or 1 + shape[-1] // 4,
            width=self.width,
            hidden=self.hidden,
            lr_hn=self.lr_hn,
            momentum=self.momentum,
            weight_decay=self.decay,
            clip=self.clip,
            seed=self.seed,
        )
        return server_at(self.server_at, server, shape)

    def init(self, task: Task, params: Params) -> Tree:
        common = set(self.shared(task))
        return {"own": {k: t for k, t in params.items() if k not in common}}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        w = task.train(self.personal(task, msg, state, data), data, self.lr)
        return {"params": take(w, self.shared(task))}, {"own": take(w, state["own"])}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return {**msg["params"], **state["own"]}
