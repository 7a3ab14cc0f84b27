"""FedAdam (Reddi et al. 2021, Algorithm 2): the cloud treats the mean update as a gradient of Adam, without bias
correction.

Delta = sum_i p_i (theta_i - x);  m <- beta1 m + (1 - beta1) Delta;  v <- beta2 v + (1 - beta2) Delta^2;
x <- x + server_lr m / (sqrt(v) + tau). Batch-norm statistics are averaged, never put through Adam: a variance must
not get negative. `optimizer = "sgd"`: x <- x + server_lr m, which with beta1 = 0 and server_lr = 1 is FedAvg.
"""

from dataclasses import dataclass
from typing import Literal

from tierfed.algorithm import Algorithm, Average, Data, Info, Tier
from tierfed.settings import Fraction, NonNegative, Positive
from tierfed.task import Task
from tierfed.tree import Params, Tree, mix, take, zeros


@dataclass(frozen=True, kw_only=True)
class AdamCloud(Average):
    """Keeps m and v of the trainable entries `keys`; everything else is averaged."""

    keys: tuple[str, ...]
    server_lr: float
    beta1: float
    beta2: float
    tau: float
    v0: float
    adam: bool

    def init(self, params: Params) -> Tree:
        m = zeros(take(params, self.keys))
        return {"params": params, "m": m, "v": {k: t + self.v0 for k, t in m.items()}}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        x, m, v = dict(mix(state["params"], up["params"], info.share)), {}, {}
        for k in self.keys:
            delta = info.share * (up["params"][k] - state["params"][k])
            m[k] = self.beta1 * state["m"][k] + (1 - self.beta1) * delta
            v[k] = self.beta2 * state["v"][k] + (1 - self.beta2) * delta.square()
            x[k] = state["params"][k] + self.server_lr * (m[k] / (v[k].sqrt() + self.tau) if self.adam else m[k])
        return {"params": x, "m": m, "v": v}


@dataclass(frozen=True, kw_only=True)
class FedAdam(Algorithm):
    server_lr: Positive = 0.01
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    tau: Positive = 1e-4
    """Adaptivity: added to sqrt(v)."""
    v0: NonNegative = 0.0
    """First value of v; the paper's analysis asks for at least tau^2."""
    optimizer: Literal["adam", "sgd"] = "adam"

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        cloud = AdamCloud(
            keys=tuple(task.trainable),
            server_lr=self.server_lr,
            beta1=self.beta1,
            beta2=self.beta2,
            tau=self.tau,
            v0=self.v0,
            adam=self.optimizer == "adam",
        )
        return (cloud, *super().tiers(task, shape)[1:])

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        return {"params": task.train(msg["params"], data, self.lr)}, state
