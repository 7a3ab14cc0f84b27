"""Federated multi-task learning (Smith et al. 2017) with a fixed relationship of the tasks: Omega = I - (1/m) 1 1^T.

min_W sum_t f_t(w_t) + lam/2 sum_rt Omega_rt <w_r, w_t> = sum_t f_t(w_t) + lam/2 |w_t - mean_r w_r|^2. Device t of m:
  w_t <- w_t - lr (grad f_t(w_t) + lam (Omega_tt w_t + c_t)),  c_t = sum_{r != t} Omega_tr w_r = w_t' / m - mean_r w_r
with w_t' its own model at the start of the visit, and all others as they were heard last. Devices that do not take part
stay in the mean. The ridge lam_2 |w_t|^2 of the paper is the weight decay of the model.
"""

from dataclasses import dataclass

from tierfed.algorithm import Algorithm, Data, Relay, Tier
from tierfed.algorithms.means import MeanOfAll
from tierfed.settings import NonNegative
from tierfed.task import Task
from tierfed.tree import Params, Tree, scalar, sub, zeros


@dataclass(frozen=True, kw_only=True)
class Relation(MeanOfAll):
    """Tells the devices how many they are."""

    devices: int

    def send(self, state: Tree, slot: object) -> Tree:
        return {"params": state["params"], "part": scalar(1 / self.devices, state["params"])}


@dataclass(frozen=True, kw_only=True)
class FMTL(Algorithm):
    lam: NonNegative = 0.1
    """Weight of the relationship between the tasks."""

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        return (Relation(devices=shape[-1]), *[Relay() for _ in shape[2:]])

    def init(self, task: Task, params: Params) -> Tree:
        return {"w": params}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        w, mean, part = state["w"], msg["params"], msg["part"]
        others = {k: self.lam * (part * w[k] - mean[k]) for k in task.trainable}
        new = task.train(w, data, self.lr, drift=others, pull=(self.lam * (1 - part), zeros(others)))
        return {"owed": {"moved": sub(new, w)}}, {"w": new}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return state["w"]  # type: ignore[no-any-return]
