"""MOCHA (Smith, Chiang, Sanjabi, Talwalkar; NeurIPS 2017, Algorithm 1) for linear models: W on the devices by its dual.

min_W sum_t 1/n_t sum_i l(<w_t, x_ti>) + 1/2 sum_rt P_rt <w_r, w_t>,  P = lam Omega + ridge I, Omega as in fmtl.py.
With K = P^-1, v_t = 1/n_t sum_i alpha_ti x_ti, l*(-a) the conjugate of the loss, its dual and the way back are
  max_alpha - sum_t 1/n_t sum_i l*(-alpha_ti) - 1/2 sum_rt K_rt <v_r, v_t>,  w_t = sum_r K_tr v_r.
As sum_rt K_rt <d_r, d_t> <= sum_t q_t |d_t|^2, q_t = sum_r |K_tr| (the paper's sigma' K_tt, by task), all devices may
at once improve their own - 1/n sum_i l*(-alpha_i - da_i) - <w_t, d> - q_t/2 |d|^2 over da, d = 1/n sum_i da_i x_i, as
well as they can: `epochs` passes, fewer steps for fewer samples, none for who is away (theta_t^h). SDCA at u = w + q d:
  da_i = (y_i - <u, x_i> - g alpha_i) / (g + q_t |x_i|^2 / n); hinged: y_i alpha_i is then clipped to [0, top]
  squared 1/2 (z - y)^2: g = 1;  squared_hinge 1/2 [1 - y z]_+^2: g = 1, top = inf;  hinge [1 - y z]_+: g = 0, top = 1
for every output by itself: classes are one against the rest, y = 1 or -1. A bias is the weight of a feature that is 1.
A device keeps alpha_t and v_t, sends v_t, gets c_t = sum_{r != t} K_tr v_r, K_tt and q_t: w_t = c_t + K_tt v_t. Means
over n_t in place of the paper's sums; alpha starts at 0, so all models do. There is no learning rate (lr is not used),
and the model's own loss only evaluates.
"""

from dataclasses import dataclass
from typing import Literal

from tierfed.algorithm import Algorithm, Data, Tier
from tierfed.algorithms.mocha_dual import ascend, check_linear
from tierfed.algorithms.mocha_server import Duals
from tierfed.algorithms.relationship import Relationship
from tierfed.errors import InputError
from tierfed.servers import server_at
from tierfed.settings import Count, Natural, NonNegative, Positive, Share, part
from tierfed.task import Task
from tierfed.tree import Params, Tree, add, zeros


@dataclass(frozen=True, kw_only=True)
class MOCHA(Algorithm):
    goes_on = False  # a model is made of dual variables, which begin at 0

    loss: Literal["squared_hinge", "hinge", "squared"] = "squared_hinge"
    """Loss of every output; for a regression: squared."""
    lam: NonNegative = 0.1
    """Weight of the relationship between the tasks."""
    ridge: Positive = 0.01
    """Weight of |w_t|^2 / 2; it takes the place of the model's weight decay."""
    omega: Literal["fixed_mean", "learned", "graph", "cluster"] = "learned"
    """Who is related to whom: all to their mean, as the models say, by `edges`, or inside clusters."""
    omega_every: Count = 1
    """Rounds between two steps of an Omega that follows the models."""
    eps: Positive = 1e-6
    """Ridge of a learned Omega, relative to the mean square norm of the models."""
    scale: Literal["largest", "trace"] = "largest"
    """Size of a learned Omega: its largest eigenvalue is 1, or its inverse has the trace 1 (the paper's)."""
    clusters: Count = 2
    """Clusters of models, at most."""
    between: Share = 0.0
    """Weight of the pull between the means of clusters, relative to the one inside."""
    edges: tuple[tuple[Natural, Natural] | tuple[Natural, Natural, Positive], ...] = ()
    """Of omega = "graph": pairs of device numbers, each with a weight (1 by default)."""
    samples: Count = 1024
    """Dual variables that a device has room for: its training samples, rounded up to whole batches."""
    server_at: Literal["cloud", "fog"] = "cloud"
    """Who relates the devices: the cloud over relays, or every lowest fog its own."""

    @property
    def most_samples(self) -> int | None:
        return self.samples

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        check_linear(task)
        if self.steps is not None or task.weight_decay:
            raise InputError(
                f"algorithm.steps = {self.steps}, model.weight_decay = {task.weight_decay:g}: MOCHA needs whole passes "
                "over the samples (leave steps out, set epochs) and has algorithm.ridge for the weight decay (set 0)"
            )
        relation = part(Relationship, self)
        relation.check(shape[-1])
        server = Duals(relation=relation, lam=self.lam, ridge=self.ridge, devices=shape[-1])
        return server_at(self.server_at, server, shape)

    def init(self, task: Task, params: Params) -> Tree:
        first = next(iter(params.values()))  # [C, ...]
        return {"alpha": first.new_zeros(self.samples, len(first)), "v": zeros(params)}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        w = self.personal(task, msg, state, data)
        alpha, v = ascend(state["alpha"], state["v"], w, msg["q"], data, self.loss)
        return {"v": v}, {"alpha": alpha, "v": v}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        """w_t = c_t + K_tt v_t with what the device itself knows of v_t"""
        return add(msg["c"], state["v"], msg["own"])  # type: ignore[no-any-return]
