"""L2GD (Hanzely and Richtarik 2020, Algorithm 1): local models, and a coin that says when they move to their mean.

min (1/n) sum_i f_i(x_i) + lam/(2n) sum_i |x_i - xbar|^2. Every iteration a coin with P(1) = p falls for all devices:
  0:  x_i <- x_i - lr / (1 - p) grad f_i(x_i);      1:  x_i <- x_i - (lr lam / p) (x_i - xbar)      lr = alpha / n
Averaging leaves xbar as it is, so devices speak only when a 1 follows a 0. One cloud round is one such exchange: the A
ones in a row after it, at once, then the B zeros before the next. A visit has `steps` x `epochs` steps; where B is
larger, the next round goes on with zeros (A = 0), which leaves the coins independent, as they have no memory.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tierfed.algorithm import Algorithm, Data, Info, Relay, Tier
from tierfed.algorithms.coins import failures, first_steps, uniform
from tierfed.algorithms.means import MeanOfAll
from tierfed.errors import InputError
from tierfed.settings import Count, Natural, NonNegative
from tierfed.task import Task
from tierfed.tree import Params, Tree, mix, scalar, sub


@dataclass(frozen=True, kw_only=True)
class Mean(MeanOfAll):
    """Keeps xbar and the coins of the coming round: ones A [], zeros B []."""

    p: float
    coins: int
    most: int  # steps of a visit

    def draw(self, round_: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
        """A and B of a round; cut: the zeros of the round before did not fit into it."""
        ones = 1 + failures(uniform(self.coins, round_, 0), 1 - self.p)
        return torch.where(cut, 0.0, ones), 1 + failures(uniform(self.coins, round_, 1), self.p)

    def init(self, params: Params) -> Tree:
        zero = scalar(0.0, params)
        ones, zeros = self.draw(zero, zero > 0)
        return {"params": params, "ones": ones.to(zero), "zeros": zeros.to(zero)}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        return {"params": state["params"], "ones": state["ones"], "zeros": state["zeros"]}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        ones, zeros = self.draw(info.round + 1, state["zeros"] > self.most)
        drawn = {"ones": ones.to(state["ones"]), "zeros": zeros.to(state["ones"])}
        return {**super().absorb(state, up, info), **drawn}


@dataclass(frozen=True, kw_only=True)
class L2GD(Algorithm):
    steps: Count | None = 20
    """Steps of a pass; all devices must have the same."""
    lam: NonNegative = 0.1
    """Weight of the distance to the mean."""
    p: float = 0.1
    """Probability of averaging, between 0 and 1; the fewest exchanges are needed with p = lam / (L + lam)."""
    coins: Natural = 0
    """Seed of the coins."""

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        if not 0 < self.p < 1:
            raise InputError(f"p = {self.p:g}: a coin that always falls alike; wanted 0 < p < 1")
        if self.steps is None:
            raise InputError("the coins of L2GD count single steps, the same for all devices; set algorithm.steps")
        if self.lr * self.lam > self.p * (1 + 1e-9):
            raise InputError(
                f"lr lam / p = {self.lr * self.lam / self.p:g} moves devices beyond their mean; "
                f"wanted lr <= p / lam = {self.p / self.lam:g}"
            )
        mean = Mean(p=self.p, coins=self.coins, most=self.steps * self.epochs)
        return (mean, *[Relay() for _ in shape[2:]])

    def init(self, task: Task, params: Params) -> Tree:
        return {"x": params}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        stays = (1 - self.lr * self.lam / self.p) ** msg["ones"]
        near = mix(msg["params"], state["x"], stays)
        x = task.train(near, first_steps(data, msg["zeros"]), self.lr / (1 - self.p))
        return {"owed": {"moved": sub(x, state["x"])}}, {"x": x}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return state["x"]  # type: ignore[no-any-return]
