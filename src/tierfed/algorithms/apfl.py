"""APFL (Deng, Kamani, Mahdavi 2020, Algorithm 1): every device predicts with a mixture of the shared and its own model.

vbar_i = alpha_i v_i + (1 - alpha_i) w_i. Per batch, all gradients at the old values:
  w_i <- w_i - lr grad f_i(w_i);   v_i <- v_i - lr alpha_i grad f_i(vbar_i)
  alpha_i <- clip(alpha_i - alpha_lr <v_i - w_i, grad f_i(vbar_i)>, 0, 1)     with the first batch of a visit
w_i is sent and averaged uniformly; v_i and alpha_i are private. The statistics of a batch norm that v_i keeps are those
that vbar_i has seen.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tierfed.algorithm import Algorithm, Batch, Data, Tier
from tierfed.algorithms.means import Uniform
from tierfed.settings import NonNegative, Share
from tierfed.task import Task
from tierfed.tree import Params, Tree, dot, mix, scalar, sub, take


@dataclass(frozen=True, kw_only=True)
class APFL(Algorithm):
    alpha: Share = 0.5
    """First weight of the device's own model."""
    adapt: Literal["round", "batch", "never"] = "round"
    """When alpha follows its gradient: with the first batch of a visit, with every batch, or not at all."""
    alpha_lr: NonNegative | None = None
    """Learning rate of alpha; the same as lr by default."""

    @property
    def gradients(self) -> float:
        return 2.0

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        return (Uniform(), *super().tiers(task, shape)[1:])

    def init(self, task: Task, params: Params) -> Tree:
        return {"v": params, "alpha": scalar(self.alpha, params)}

    def rate(self, first: Tensor) -> Tensor | float:
        """Step of alpha in this batch []; first: 1 in the first batch of the visit, else 0."""
        lr = self.lr if self.alpha_lr is None else self.alpha_lr
        match self.adapt:
            case "round":
                return lr * first
            case "batch":
                return lr
            case "never":
                return 0.0

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        def step(carry: Tree, batch: Batch) -> Tree:
            w, v, alpha = carry["w"], carry["v"], carry["alpha"]
            g, _, stats = task.grad(mix(w, v, alpha), batch)
            slope = dot(sub(take(v, g), take(w, g)), g)
            return {
                "w": task.step(w, batch, self.lr),
                "v": {**v, **stats, **{k: v[k] - self.lr * alpha * g[k] for k in g}},
                "alpha": (alpha - self.rate(carry["first"]) * slope).clamp(0.0, 1.0),
                "first": torch.zeros_like(carry["first"]),
            }

        first = torch.ones_like(state["alpha"])
        out = data.fold(step, {"w": msg["params"], **state, "first": first})
        return {"params": out["w"]}, take(out, ("v", "alpha"))

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return mix(msg["params"], state["v"], state["alpha"])  # type: ignore[no-any-return]
