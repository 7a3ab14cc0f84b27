"""pFedLA and HeurpFedLA (Ma, Zhang, Guo, Xu; CVPR 2022): the server learns for every device how to mix all devices'
layers.

Server, for device i: alpha_i [L, R] = HN_i(v_i; psi_i) over the R devices it sees, rows sum to one;
  theta_bar_i^l = sum_j alpha_i^{l,j} theta_j^l  (Eq. 6, all from the same theta_j);  the device trains it to theta_i;
  delta_i = theta_i - theta_bar_i;  (psi_i, v_i) <- (psi_i, v_i) + lr_hn J^T delta_i  (Eq. 10, 11), J = d theta_bar_i.
The sign is a plus: delta_i points downhill. J^T delta_i goes through S^{l,j} = <theta_j^l, delta_i^l> [L, R] and then
through the small network only, since theta_bar is linear in alpha. HeurpFedLA: the `retain` layers with the largest
self weights stay on the device and are not sent. A layer is a module with its weight and bias; batch-norm statistics
never leave a device.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from tierfed.algorithm import Algorithm, Data, Tier
from tierfed.algorithms.pfedla_mixer import LayerMixer
from tierfed.errors import InputError
from tierfed.servers import server_at
from tierfed.settings import Count, Natural, NonNegative
from tierfed.task import Task
from tierfed.tree import Params, Tree, take

MANY = 1000  # devices; hypernetworks of all of them grow with the square of their number


@dataclass(frozen=True, kw_only=True)
class PFedLA(Algorithm):
    server_at: Literal["cloud", "fog"] = "cloud"
    """Who mixes: the cloud over relays, or every lowest fog for its own devices."""
    lr_hn: NonNegative = 5e-3
    """Step of the hypernetworks and embeddings."""
    dim: Count = 100
    """Length of an embedding."""
    width: Count = 100
    """Units of a hidden layer of a hypernetwork."""
    hidden: Natural = 3
    """Hidden layers of a hypernetwork."""
    head: Literal["softmax", "relu_norm"] = "softmax"
    """How outputs become weights; relu_norm: ReLU, then divided by the sum, and the device itself where that is 0."""
    first: Literal["uniform", "self"] = "uniform"
    """First weights: equal, or leaning to the device itself (2 more on its output)."""
    retain: Natural = 0
    """Layers k that a device retains (HeurpFedLA)."""
    top_m: Natural = 0
    """Candidates per device, itself and others drawn once; 0: all devices."""
    seed: Natural = 0
    """Of the first hypernetworks, embeddings and candidates."""

    def shared(self, task: Task) -> list[str]:
        return task.trainable

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        if self.retain > len(task.layers):
            raise InputError(
                f"retain = {self.retain} layers, but the model has {len(task.layers)} ({', '.join(task.layers)}); "
                f"wanted at most {len(task.layers)}"
            )
        at_cloud = self.server_at == "cloud" or len(shape) == 2
        if shape[-1] > MANY and at_cloud and not self.top_m:
            raise InputError(
                f"pFedLA has one hypernetwork per device with an output for every device, too many for {shape[-1]}; "
                "set algorithm.top_m (candidates per device), or algorithm.server_at = 'fog' with topology.fogs"
            )
        mixer = LayerMixer(
            devices=shape[-1],
            layers=tuple(task.layers),
            lr_hn=self.lr_hn,
            dim=self.dim,
            width=self.width,
            hidden=self.hidden,
            softmax=self.head == "softmax",
            own_bias=2.0 if self.first == "self" else 0.0,
            retain=self.retain,
            top_m=min(self.top_m, shape[-1]),
            seed=self.seed,
        )
        return server_at(self.server_at, mixer, shape)

    def init(self, task: Task, params: Params) -> Tree:
        return {"own": params if self.retain else take(params, task.buffers)}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        w = task.train(self.personal(task, msg, state, data), data, self.lr)
        return {"params": take(w, task.trainable)}, {"own": take(w, state["own"])}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        """(theta_bar_i, retained layers and batch-norm statistics of the device)"""
        got, own = msg["params"], state["own"]
        if "mask" in msg:
            got = {k: torch.where(msg["mask"][k], v, own[k]) for k, v in got.items()}
        return {**own, **got}
