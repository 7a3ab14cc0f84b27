"""Servers that several methods share: means in which every child counts alike, and the mean of all devices, heard or
not.
"""

from dataclasses import dataclass

from torch import Tensor

from tierfed.algorithm import Average, Info, Tier
from tierfed.tree import Params, Tree, add


@dataclass(frozen=True, kw_only=True)
class Uniform(Average):
    """FedAvg's server with equal weights: of devices below relays, of fogs below a cloud over fogs that average."""

    weight = "children"


@dataclass(frozen=True, kw_only=True)
class MeanOfAll(Tier):
    """x = the mean of what every device holds, by increments: devices that are not heard stay in it as they were.

    up["owed"]["moved"] {key: [...]}: what the model of a device has moved by; all of them start at the initial model.
    """

    weight = "devices"
    means = True

    def init(self, params: Params) -> Tree:
        return {"params": params}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        return {"params": state["params"]}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        return {"params": add(state["params"], up["owed"]["moved"], info.heard / info.total)}
