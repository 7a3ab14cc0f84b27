"""JobFed above the devices: the controller of alpha, fogs that average both parts and watch directions, the cloud
that stops.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tierfed.algorithm import Average, Info
from tierfed.algorithms.jobfed_controller import Controller
from tierfed.stopping import Stopping
from tierfed.task import Task
from tierfed.tree import Params, Tree, mix, scalar, take, vector


@dataclass(frozen=True, kw_only=True)
class Fog(Average):
    """Averages NP, P and the losses of a reply; sends NP and what it was told ("say"). With a controller: alpha is
    its own.
    """

    controller: Controller | None = None
    alpha: float = 0.5
    traces: ClassVar[tuple[str, ...]] = ("alpha",)

    def init(self, params: Params) -> Tree:
        if self.controller is None:
            return {"params": params}
        none = scalar(-1.0, params)
        return {"params": params, "alpha": scalar(self.alpha, params), "alpha_jg": none, "alpha_jl": none}

    def enter(self, kept: Tree, msg: Tree) -> Tree:
        return {**kept, "params": {**kept["params"], **msg["params"]}, "say": msg.get("say", {})}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        say = {**state.get("say", {}), **({"alpha": state["alpha"]} if self.controller else {})}
        return {**super().send(state, slot), **({"say": say} if say else {})}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        new = {**state, **up, "params": mix(state["params"], up["params"], info.share)}
        if self.controller is not None:
            jg, jl = up["jg"], up["jl"]
            new["alpha"] = self.controller(state["alpha"], jg, jl, state["alpha_jg"], state["alpha_jl"])
            new |= {"alpha_jg": jg, "alpha_jl": jl}
        return new

    def report(self, state: Tree) -> Tree:
        return take(state, [k for k in ("params", "jg", "jl", "personal") if k in state])


@dataclass(frozen=True, kw_only=True)
class WatchingFog(Fog):
    """Remembers of every device the vector whose change is its direction."""

    keys: tuple[str, ...]  # the entries of the vector
    from_sent: bool = False  # the change since what the fog sent, not since the device's previous round
    watches = True

    def child(self, params: Params, ident: int) -> Tree:
        here = vector(take(params, self.keys))
        return {"old": here, "new": here, "seen": scalar(-1.0, params)}

    def watch(self, state: Tree, row: Tree, up: Tree, info: Info) -> Tree:
        new = vector(take(up["params"], self.keys))
        again = row["seen"] == info.round  # a later team round of the same cloud round
        old = vector(take(state["params"], self.keys)) if self.from_sent else row["new"]
        return {"old": torch.where(again, row["old"], old), "new": new, "seen": info.round}


@dataclass(frozen=True, kw_only=True)
class Cloud(Fog):
    """Averages the fogs, follows the losses, and says when to stop; with a validation set of its own also J_g."""

    stopping: Stopping
    judge: Task | None = None  # measures J_g on task.public
    traces = ("alpha", "jg", "jl", "dg", "zeta")

    def init(self, params: Params) -> Tree:
        return {**super().init(params), **self.stopping.init(params)}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        if self.judge is None:
            return super().send(state, slot)
        return super().send({**state, "say": {"jg": self._measured(state["params"])}}, slot)

    def _measured(self, params: Params) -> Tensor:
        task = self.judge
        if task is None or task.public is None:
            raise ValueError("the cloud has no validation data to judge with")
        return task.measure(params, task.public)

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        return {**super().absorb(state, up, info), **self.stopping.update(state, up["jg"], up["jl"])}

    def stop(self, kept: Tree) -> str:
        return self.stopping.reason(kept)
