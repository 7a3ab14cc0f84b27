"""pFedMe (Dinh, Tran, Nguyen 2020, Algorithm 1): the server learns the Moreau envelope of the devices' losses.

F_i(w) = min_theta f_i(theta) + lam/2 |theta - w|^2. Device, from w_i = theta_i = x, for each batch of a visit:
  theta_i <- theta_i - lr (grad f_i(theta_i; batch) + lam (theta_i - w_i))           `inner` steps on the same batch
  w_i <- w_i - eta lam (w_i - theta_i)
Cloud: x <- (1 - beta) x + beta mean_i w_i over the devices that took part, all alike. theta_i is the personal model.
The statistics of a batch norm are those of theta_i.
"""

from dataclasses import dataclass

from tierfed.algorithm import Algorithm, Batch, Data, Tier
from tierfed.algorithms.means import Uniform
from tierfed.errors import InputError
from tierfed.settings import Count, NonNegative, Positive
from tierfed.task import Task
from tierfed.tree import Params, Tree, take


@dataclass(frozen=True, kw_only=True)
class PFedMe(Algorithm):
    lr: Positive = 0.01
    """Step of theta."""
    lam: NonNegative = 15.0
    """Weight of the pull of theta to w."""
    inner: Count = 5
    """Steps of theta per batch, K."""
    eta: NonNegative = 0.05
    """Step of w; eta lam < 2."""
    beta: Positive = 1.0
    """Step of the cloud towards the mean."""

    @property
    def gradients(self) -> float:
        return float(self.inner)

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        if self.eta * self.lam >= 2 or self.lr * self.lam >= 2:
            raise InputError(
                f"pFedMe diverges with lam = {self.lam:g}, eta = {self.eta:g} and lr = {self.lr:g}; "
                f"wanted eta and lr below 2 / lam = {2 / self.lam:g}"
            )
        if self.beta > 1 and task.buffers:
            raise InputError(
                f"beta = {self.beta:g} steps beyond the mean, which can make a batch norm's variance negative; "
                "wanted beta <= 1, or a model without batch norm"
            )
        return (Uniform(rate=self.beta), *super().tiers(task, shape)[1:])

    def init(self, task: Task, params: Params) -> Tree:
        return {"theta": params}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        def step(carry: Tree, batch: Batch) -> Tree:
            w, theta = carry["w"], carry["theta"]
            for _ in range(self.inner):
                theta = task.step(theta, batch, self.lr, pull=(self.lam, w))
            moved = {k: w[k] - self.eta * self.lam * (w[k] - theta[k]) for k in task.trainable}
            return {"w": {**moved, **take(theta, task.buffers)}, "theta": theta}

        out = data.fold(step, {"w": msg["params"], "theta": msg["params"]})
        return {"params": out["w"]}, {"theta": out["theta"]}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return state["theta"]  # type: ignore[no-any-return]
