"""FedAvg + fine-tuning (federated transfer learning; PerFit, Wu et al. 2020; FedHealth, Chen et al. 2020).

The cloud and the devices run FedAvg. The personal model of device i is the received x after `tune_epochs` of SGD on
its own data over the layers that `tune` chooses (layers.py). What is not tuned stays bit-identical; the statistics of a
batch norm follow its parameters.
"""

from dataclasses import dataclass

from tierfed.algorithm import Data, Tier
from tierfed.algorithms.layers import Tuning
from tierfed.settings import Natural, Positive
from tierfed.task import Task
from tierfed.tree import Params, Tree


@dataclass(frozen=True, kw_only=True)
class FineTune(Tuning):
    tune_epochs: Natural = 5
    tune_lr: Positive | None = None
    """Learning rate of the fine-tuning; the same as lr by default."""

    @property
    def passes(self) -> int:
        return self.epochs + self.tune_epochs

    @property
    def gradients(self) -> float:
        return self.epochs / self.passes  # a visit does not tune

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        self.tuned(task)  # an impossible choice is found before the first round
        return super().tiers(task, shape)

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        return {"params": task.train(msg["params"], data.passes(0, self.epochs), self.lr)}, state

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        lr = self.lr if self.tune_lr is None else self.tune_lr
        return task.train(msg["params"], data.passes(self.epochs), lr, keys=self.tuned(task))
