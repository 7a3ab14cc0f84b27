"""AL2GD above the devices: the cloud that draws the coins and knows the network's mean, teams that know their own."""

from dataclasses import dataclass

from torch import Tensor

from tierfed.algorithm import Info, Tier
from tierfed.algorithms.coins import failures, uniform
from tierfed.tree import Params, Tree, mix, scalar, scale


@dataclass(frozen=True, kw_only=True)
class Network(Tier):
    """Keeps xbar and the coins of the coming round: is there a network step, a team step [], how many local ones []."""

    p0: float
    p1: float
    coins: int
    most: int  # local steps of a visit
    weight = "children"
    means = True

    def draw(self, round_: Tensor, cut: Tensor, like: Tensor) -> Tree:
        """cut: the local steps of the round before did not fit into it."""
        any_mean = self.p0 + (1 - self.p0) * self.p1
        network = uniform(self.coins, round_, 0) < self.p0 / any_mean
        local = failures(uniform(self.coins, round_, 1), any_mean)
        found = {"network": ~cut & network, "team": ~cut & ~network, "local": local}
        return {k: v.to(like) for k, v in found.items()}

    def init(self, params: Params) -> Tree:
        zero = scalar(0.0, params)
        return {"params": params, "coins": self.draw(zero, zero > 0, zero)}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        return state

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        mean = scale(up["params"], 1 / up["weight"]) if "weight" in up else up["params"]  # devices have no weight
        drawn = self.draw(info.round + 1, state["coins"]["local"] >= self.most, state["coins"]["local"])
        return {"params": mix(state["params"], mean, info.share), "coins": drawn}


@dataclass(frozen=True, kw_only=True)
class Team(Tier):
    """Keeps wbar_j and how many devices it has."""

    gamma: float
    lam: float
    weight = "devices"
    means = True

    def init(self, params: Params) -> Tree:
        return {"params": params, "devices": scalar(1.0, params)}

    def enter(self, kept: Tree, msg: Tree) -> Tree:
        return {**kept, "down": msg}

    def alpha(self, state: Tree) -> Tensor:
        return self.lam / (self.lam + state["devices"] * self.gamma)  # type: ignore[no-any-return]

    def send(self, state: Tree, slot: Tensor) -> Tree:
        return {**state["down"], "team": state["params"], "alpha": self.alpha(state)}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        return {**state, "params": mix(state["params"], up["params"], info.share), "devices": info.total}

    def report(self, state: Tree) -> Tree:
        weight = 1 - self.alpha(state)
        return {"params": scale(state["params"], weight), "weight": weight}
