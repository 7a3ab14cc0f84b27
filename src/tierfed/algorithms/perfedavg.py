"""Per-FedAvg (Fallah, Mokhtari, Ozdaglar 2020, Algorithm 1): MAML, a model that is good after one step on own data.

F_i(w) = f_i(w - alpha grad f_i(w)). One local step with independent batches D, D', D'':
  u = w - alpha grad f(w; D),  g = grad f(u; D')
  "fo"     w <- w - lr g
  "hf"     w <- w - lr (g - alpha [grad f(w + delta g; D'') - grad f(w - delta g; D'')] / (2 delta))
  "exact"  w <- w - lr (g - alpha H(w; D'') g), the Hessian-vector product by double backward
Cloud: uniform mean. The personal model is the received w after `adapt_steps` steps of size alpha on training batches.
Each local step takes two ("fo") or three batches; the dropout masks of a step are common to its batches.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tierfed.algorithm import Algorithm, Batch, Data, Tier
from tierfed.algorithms.means import Uniform
from tierfed.settings import Natural, NonNegative, Positive
from tierfed.task import Task
from tierfed.tree import Params, Tree, add, take


def moved(w: Params, g: Params, by: float) -> Params:
    """w + by g, in the entries of g."""
    return {**w, **add(take(w, g), g, by)}


@dataclass(frozen=True, kw_only=True)
class PerFedAvg(Algorithm):
    """`lr`: step beta of the meta-gradient."""

    alpha: NonNegative = 0.1
    """Step of the adaptation."""
    order: Literal["fo", "hf", "exact"] = "fo"
    """What becomes of the Hessian: ignored, by finite differences of gradients, or exact."""
    delta: Positive = 1e-3
    """Step of the finite differences."""
    adapt_steps: Natural = 1
    """Steps from the received to the personal model."""

    @property
    def batches(self) -> int:
        """Batches per local step."""
        return 2 if self.order == "fo" else 3

    @property
    def passes(self) -> int:
        return self.epochs * self.batches

    @property
    def gradients(self) -> float:
        return 1.0 if self.order == "fo" else 4 / 3  # two on the third batch

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        return (Uniform(), *super().tiers(task, shape)[1:])

    def curvature(self, task: Task, w: Params, g: Params, batch: Batch) -> Params:
        """H(w) g on a batch."""
        if self.order == "hf":
            up, down = (task.grad(moved(w, g, by), batch)[0] for by in (self.delta, -self.delta))
            return {k: (up[k] - down[k]) / (2 * self.delta) for k in g}

        def grad(trained: Params) -> Params:
            return task.grad({**w, **trained}, batch)[0]

        back = torch.func.vjp(grad, take(w, g))[1]
        return back(g)[0]  # type: ignore[no-any-return]

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        def step(w: Params, batch: Batch) -> Params:
            d = [Batch(batch.x[i], batch.y[i], batch.live, batch.seed) for i in range(self.batches)]
            u = moved(w, task.grad(w, d[0])[0], -self.alpha)
            g, _, stats = task.grad(u, d[1])
            if self.order != "fo":
                g = add(g, self.curvature(task, w, g, d[2]), -self.alpha)
            return {**moved(w, g, -self.lr), **stats}

        return {"params": data.zipped(self.batches).fold(step, msg["params"])}, state

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        rows: Tensor = data.rows.flatten(0, 1)
        seeds, w = data.seed.flatten(), msg["params"]
        for j in range(self.adapt_steps):
            at = j % len(rows)
            w = task.step(w, Batch(data.x[rows[at]], data.y[rows[at]], data.live[0, 0], seeds[at]), self.alpha)
        return w  # type: ignore[no-any-return]
