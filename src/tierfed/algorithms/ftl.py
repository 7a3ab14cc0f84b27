"""FTL: federated transfer learning as a stage of its own (PerFit, Wu, He, Chen 2020, personalization stage).

Device i begins with the model that it is given, theta_i = x, and trains the layers that `tune` chooses (layers.py) on
its own data, `epochs` passes per round. Nothing is sent. On f_i = 1/2 |theta - a_i|^2 the personal model after F full
steps of size s is a_i + (1 - s)^F (x - a_i).
"""

from dataclasses import dataclass

from tierfed.algorithm import Data, Tier
from tierfed.algorithms.layers import Tuning
from tierfed.task import Task
from tierfed.tree import Params, Tree


@dataclass(frozen=True, kw_only=True)
class FTL(Tuning):
    mixed_models = True

    def shared(self, task: Task) -> list[str]:
        return []

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        self.tuned(task)  # an impossible choice is found before the first round
        return super().tiers(task, shape)

    def init(self, task: Task, params: Params) -> Tree:
        return {"own": params}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        keys = self.tuned(task)
        own = task.train(state["own"], data, self.lr, keys=keys) if keys else state["own"]
        return {"params": {}}, {"own": own}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return state["own"]  # type: ignore[no-any-return]
