"""AL2GD: L2GD for devices in known teams (PerMFL's baseline after Lyu, Hanzely, Kolar): three levels and two coins.

min sum_ij f_ij(theta_ij) + gamma/2 |theta_ij - w_j|^2 + sum_j lam/2 |w_j - x|^2; w, x minimized out leave the gradient
gamma (theta_ij - (1 - alpha_j) wbar_j - alpha_j xbar), alpha_j = lam / (lam + n_j gamma), wbar_j = mean_i theta_ij,
xbar = sum_j (1 - alpha_j) wbar_j / sum_j (1 - alpha_j). A step is one of (unbiased: probability times step = gradient)
  network  p0             theta -= lr gamma / p0 (alpha (theta - xbar) + tau (1 - alpha) (theta - wbar))
  team     (1 - p0) p1    theta -= lr gamma (1 - tau) (1 - alpha) / ((1 - p0) p1) (theta - wbar)
  local    else           theta -= lr / ((1 - p0) (1 - p1)) grad f
One cloud round is a network or a team step, then the local ones before the next; those beyond `steps` x `epochs` follow
in the next round. Teams are the lowest fogs; a flat tree is one team (alpha = 0). A further team round
repeats the step of its cloud round; the paper has one.
"""

from dataclasses import dataclass

from tierfed.algorithm import Algorithm, Data, Relay, Tier
from tierfed.algorithms.al2gd_tiers import Network, Team
from tierfed.algorithms.coins import first_steps
from tierfed.errors import InputError
from tierfed.settings import Count, Natural, NonNegative, Positive, Share
from tierfed.task import Task
from tierfed.tree import Params, Tree, tmap


@dataclass(frozen=True, kw_only=True)
class AL2GD(Algorithm):
    lr: Positive = 0.03
    steps: Count | None = 20
    """Steps of a pass; all devices must have the same."""
    gamma: Positive = 1.0
    """Coupling of device and team."""
    lam: NonNegative = 1.0
    """Coupling of team and cloud."""
    tau: Share = 0.5
    """Part of the pull to the team mean that network steps take; 1: team steps move nothing."""
    p0: float = 0.1
    """Probability of a network step, between 0 and 1."""
    p1: float = 0.3
    """Probability of a team step where there is no network step, between 0 and 1."""
    coins: Natural = 0
    """Seed of the coins."""

    @property
    def rates(self) -> tuple[float, float, float]:
        """Steps of size lr over their probability: network, team, local."""
        rest = 1 - self.p0
        return self.lr / self.p0, self.lr / (rest * self.p1), self.lr / (rest * (1 - self.p1))

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        if not (0 < self.p0 < 1 and 0 < self.p1 < 1):
            raise InputError(f"p0 = {self.p0:g}, p1 = {self.p1:g}: both must lie between 0 and 1, without the ends")
        if self.steps is None:
            raise InputError("the coins of AL2GD count single steps, the same for all devices; set algorithm.steps")
        network, team, _ = self.rates
        most = self.gamma * max(network, (1 - self.tau) * team)
        if most > 1 + 1e-9:
            raise InputError(f"lr = {self.lr:g} moves devices beyond their mean; wanted lr <= {self.lr / most:g}")
        cloud = Network(p0=self.p0, p1=self.p1, coins=self.coins, most=self.steps * self.epochs)
        return (cloud, *[Relay() for _ in shape[3:]], Team(gamma=self.gamma, lam=self.lam))[: len(shape) - 1]

    def init(self, task: Task, params: Params) -> Tree:
        return {"theta": params}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        network, team, local = self.rates
        x, coins = msg["params"], msg["coins"]
        wbar, alpha = msg.get("team", x), msg.get("alpha", 0.0)  # without teams there is one: the network
        far = self.gamma * alpha * coins["network"] * network
        pulls = coins["network"] * network * self.tau + coins["team"] * team * (1 - self.tau)
        near = self.gamma * (1 - alpha) * pulls
        theta = tmap(lambda t, x, w: t - far * (t - x) - near * (t - w), state["theta"], x, wbar)
        theta = task.train(theta, first_steps(data, coins["local"]), local)
        return {"params": theta}, {"theta": theta}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return state["theta"]  # type: ignore[no-any-return]
