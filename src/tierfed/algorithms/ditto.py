"""Ditto (Li, Hu, Beirami, Smith 2021, Algorithm 1): FedAvg, and beside it a personal model pulled to the global one.

Device: w_i <- x, E epochs of SGD on f_i, sent and averaged as in FedAvg. Beside it, over `personal_epochs`,
v_i <- v_i - lr (grad f_i(v_i) + lam (v_i - x)), x the RECEIVED global model. v_i never leaves the device, and
the global model does not depend on it.
"""

from dataclasses import dataclass

from tierfed.algorithm import Algorithm, Data
from tierfed.settings import Natural, NonNegative
from tierfed.task import Task
from tierfed.tree import Params, Tree


@dataclass(frozen=True, kw_only=True)
class Ditto(Algorithm):
    lam: NonNegative = 1.0
    """Weight of the pull of the personal model to the global one."""
    personal_epochs: Natural = 1
    """Passes of the personal model."""

    @property
    def passes(self) -> int:
        return self.epochs + self.personal_epochs

    def init(self, task: Task, params: Params) -> Tree:
        return {"v": params}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        x = msg["params"]
        w = task.train(x, data.passes(0, self.epochs), self.lr)
        v = task.train(state["v"], data.passes(self.epochs), self.lr, pull=(self.lam, x))
        return {"params": w}, {"v": v}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return state["v"]  # type: ignore[no-any-return]
