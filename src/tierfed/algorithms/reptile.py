"""Reptile over devices (Nichol, Achiam, Schulman 2018), the meta phase of Jiang, Konecny, Rush, Kannan 2019.

Their personalized FedAvg: a FedAvg phase, then Reptile from the model that it found, then fine-tuning on the device.
Meta phase, device: theta_i = x after K = `steps` minibatch steps of SGD. Cloud, with Delta = sum_i p_i (theta_i - x):
  "sgd"   m <- beta1 m + (1 - beta1) Delta;  x <- x + server_lr m
  "adam"  FedAdam's step with Delta (fedadam.py)
The personal model of a device is x after `adapt_steps` steps on its own data over the layers that `tune` chooses
(layers.py). "sgd" with beta1 = 0 and server_lr = 1 is FedAvg with fine-tuning.
"""

from dataclasses import dataclass
from typing import Literal

from tierfed.algorithm import Batch, Data, Tier
from tierfed.algorithms.fedadam import AdamCloud
from tierfed.algorithms.layers import Tuning
from tierfed.settings import Count, Fraction, Natural, Positive
from tierfed.task import Task
from tierfed.tree import Params, Tree


@dataclass(frozen=True, kw_only=True)
class Reptile(Tuning):
    steps: Count | None = 10
    """Minibatch steps K of a pass; none: the whole local data."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """How the cloud takes the mean update."""
    server_lr: Positive = 0.01
    """Step of the cloud."""
    beta1: Fraction = 0.9
    """Decay of the first moment; 0: no momentum."""
    beta2: Fraction = 0.999
    """Decay of Adam's second moment."""
    tau: Positive = 1e-4
    """Adaptivity of Adam: added to the root of the second moment."""
    adapt_steps: Natural = 10
    """Steps K' from the received to the personal model."""
    adapt_lr: Positive | None = None
    """Learning rate of these; the same as lr by default."""

    @property
    def passes(self) -> int:
        return self.epochs + 1

    @property
    def gradients(self) -> float:
        return self.epochs / self.passes  # a visit does not adapt

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        self.tuned(task)  # an impossible choice is found before the first round
        cloud = AdamCloud(
            keys=tuple(task.trainable),
            server_lr=self.server_lr,
            beta1=self.beta1,
            beta2=self.beta2,
            tau=self.tau,
            v0=0.0,
            adam=self.optimizer == "adam",
        )
        return (cloud, *super().tiers(task, shape)[1:])

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        return {"params": task.train(msg["params"], data.passes(0, self.epochs), self.lr)}, state

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        own, w, keys = data.passes(self.epochs), msg["params"], self.tuned(task)
        rows, seeds, live = own.rows[0], own.seed[0], own.live[0]
        for j in range(self.adapt_steps if keys else 0):
            at = j % len(rows)  # more steps than a pass has: it begins again
            batch = Batch(own.x[rows[at]], own.y[rows[at]], live[at], seeds[at])
            w = task.step(w, batch, self.lr if self.adapt_lr is None else self.adapt_lr, keys=keys)
        return w  # type: ignore[no-any-return]
