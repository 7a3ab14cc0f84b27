"""FedAvg (McMahan et al. 2017, Algorithm 1), HierFAVG (Liu et al. 2020), h-SGD and FedProx (Li et al. 2020, Eq. 2).

Device: theta_i <- x, E epochs of SGD on f_i(theta) + mu/2 |theta - x|^2. Cloud: x <- sum_i p_i theta_i, p_i = n_i /
sum n_j. HierFAVG (edge): every fog averages its devices in each of its K team rounds, the cloud averages the fogs.
h-SGD (uniform): the same with equal weights p_i.
"""

from dataclasses import dataclass

from tierfed.algorithm import Algorithm, Average, Data, Tier
from tierfed.algorithms.means import Uniform
from tierfed.settings import NonNegative
from tierfed.task import Task
from tierfed.tree import Tree


@dataclass(frozen=True, kw_only=True)
class FedAvg(Algorithm):
    edge: bool = False
    """Fogs average (HierFAVG); else they relay, and the tree behaves as if it were flat."""
    uniform: bool = False
    """Every mean counts its children alike (h-SGD), however many samples they have."""
    mu: NonNegative = 0.0
    """Weight of FedProx's proximal term."""
    server_lr: NonNegative = 1.0
    """Step of the cloud towards the mean: x <- (1 - server_lr) x + server_lr mean."""

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        fogs = super().tiers(task, shape)[1:]
        mean = Uniform if self.uniform else Average
        return (mean(rate=self.server_lr), *(mean() if self.edge else fog for fog in fogs))

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        x = msg["params"]
        return {"params": task.train(x, data, self.lr, pull=(self.mu, x) if self.mu else None)}, state
