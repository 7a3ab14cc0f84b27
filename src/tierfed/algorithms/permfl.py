"""PerMFL (Banerjee, Dadras, Yurtsever, Bhuyan 2024, Algorithm 1): nested Moreau envelopes over device, team and cloud.

min_x mean_i F_i(x),  F_i(x) = min_w { mean_j f~_ij(w) + gamma/2 |w - x|^2 },
f~_ij(w) = min_theta { f_ij(theta) + lam/2 |theta - w|^2 }. Every team round starts a device at the received w_i:
  device  theta <- theta - lr (grad f(theta; batch) + lam (theta - w_i))             L steps, from theta = w_i
  team    w_i <- (1 - eta lam - eta gamma) w_i + eta gamma x + eta lam mean_j theta_ij     K rounds, from w_i = x
  cloud   x <- (1 - beta gamma) x + beta gamma mean_i w_i
All means are uniform. A flat tree is the cloud over devices, coupled by lam; tiers between cloud and teams are coupled
by gamma to both sides. Batch-norm statistics are mixed as the parameters are.
Logged as "tie": how far a device is from its team, |theta_ij - w_i|, and a team from the cloud, |w_i - x|.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tierfed.algorithm import Algorithm, Data, Info, Tier
from tierfed.errors import InputError
from tierfed.settings import Count, NonNegative, Positive
from tierfed.task import Task
from tierfed.tree import Params, Tree, add, dot, mix, scalar, sub, take

ROUNDING = 1e-9


def distance(a: Params, b: Params, keys: Iterable[str]) -> Tensor:
    """|a - b| [] over some entries."""
    apart = sub(take(a, keys), take(b, keys))
    return dot(apart, apart).sqrt()


@dataclass(frozen=True, kw_only=True)
class Envelope(Tier):
    """w <- w + down (mean of the children - w) + up (x - w), x what came from above; the cloud has nothing above."""

    down: float
    up: float = 0.0
    keys: tuple[str, ...] = ()  # the trained entries, of a tier below another one
    weight = "children"
    traces: ClassVar[tuple[str, ...]] = ("tie",)

    def init(self, params: Params) -> Tree:
        return {"params": params, **({"tie": scalar(-1.0, params)} if self.keys else {})}

    def enter(self, kept: Tree, msg: Tree) -> Tree:
        return {**kept, "params": msg["params"], "x": msg["params"]}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        return {"params": state["params"]}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        w = state["params"]
        new = mix(w, up["params"], self.down * info.share)
        if "x" not in state:
            return {**state, "params": new}
        new = add(new, sub(state["x"], w), self.up)
        return {**state, "params": new, "tie": distance(new, state["x"], self.keys)}

    def report(self, state: Tree) -> Tree:
        return {"params": state["params"]}


@dataclass(frozen=True, kw_only=True)
class PerMFL(Algorithm):
    lr: Positive = 0.01
    """Step alpha of the devices."""
    steps: Count | None = 20
    """Local steps L per pass; none: whole passes."""
    lam: NonNegative = 0.5
    """Coupling of device and team."""
    gamma: NonNegative = 1.5
    """Coupling of team and cloud."""
    eta: NonNegative = 0.03
    """Step of the teams; eta (lam + gamma) <= 1."""
    beta: NonNegative = 0.6
    """Step of the cloud; beta gamma <= 1."""
    lambda_team: NonNegative | None = None
    """lam of the team's update alone (split lambda); none: the same as lam."""
    traces: ClassVar[tuple[str, ...]] = ("tie",)
    code_compat_lambda: bool = False
    """As in the released code, where a positional mix-up makes L the devices' lam; the teams use the real one."""

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        lam = self.lam if self.lambda_team is None else self.lambda_team
        below = [*[self.gamma] * (len(shape) - 2), lam]  # the coupling of every inner level to its children
        cloud, *fogs = below
        if self.beta * cloud > 1 + ROUNDING:
            raise InputError(
                f"beta = {self.beta:g} with a coupling of {cloud:g} makes the cloud step beyond the mean of its "
                f"children; wanted beta <= {1 / cloud:g}"
            )
        for pull in fogs:
            if self.eta * (pull + self.gamma) > 1 + ROUNDING:
                raise InputError(
                    f"eta = {self.eta:g} with couplings of {pull:g} and {self.gamma:g} makes a fog step beyond the "
                    f"mean; wanted eta <= {1 / (pull + self.gamma):g}"
                )
        keys = tuple(task.trainable)
        teams = [Envelope(down=self.eta * pull, up=self.eta * self.gamma, keys=keys) for pull in fogs]
        return (Envelope(down=self.beta * cloud), *teams)

    def init(self, task: Task, params: Params) -> Tree:
        return {"theta": params, "tie": scalar(-1.0, params)}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        w = msg["params"]
        theta = task.train(w, data, self.lr, pull=(data.steps if self.code_compat_lambda else self.lam, w))
        return {"params": theta}, {"theta": theta, "tie": distance(theta, w, task.trainable)}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return state["theta"]  # type: ignore[no-any-return]
