"""JobFed above the devices: the controller of alpha, fogs that average both parts and watch directions, the cloud
that stops.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tierfed.algorithm import Average, Info
from tierfed.algorithms.jobfed_controller import Controller
from tierfed.stopping import EPS, Stopping
from tierfed.task import Task
from tierfed.tree import Params, Tree, mix, scalar, take, vector, where


def losses(up: Tree) -> tuple[Tensor, Tensor, Tensor]:
    """J_g [], J_l [] of a mean over replies, and the share of the replies that measured them (a device always does)."""
    judged = up.get("judged", torch.ones_like(up["jg"]))
    return up["jg"] / judged.clamp(min=EPS), up["jl"] / judged.clamp(min=EPS), judged


@dataclass(frozen=True, kw_only=True)
class Fog(Average):
    """Averages NP, P and the losses of a reply; sends NP and what it was told ("say").

    With a controller alpha is its own. A fog that heard nobody has measured nothing: judged = 0.
    """

    controller: Controller | None = None
    alpha: float = 0.5
    full: bool = False  # the P-model is the whole personal network
    traces: ClassVar[tuple[str, ...]] = ("alpha",)

    def init(self, params: Params) -> Tree:
        if self.controller is None:
            return {"params": params}
        none = scalar(-1.0, params)
        return {"params": params, "alpha": scalar(self.alpha, params), "alpha_jg": none, "alpha_jl": none}

    def enter(self, kept: Tree, msg: Tree) -> Tree:
        zero = scalar(0.0, kept["params"])
        losses = {"jg": zero, "jl": zero, "judged": zero}
        return {**kept, **losses, "params": {**kept["params"], **msg["params"]}, "say": msg.get("say", {})}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        say = {**state.get("say", {}), **({"alpha": state["alpha"]} if self.controller else {})}
        return {**super().send(state, slot), **({"say": say} if say else {})}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        jg, jl, judged = losses(up)
        new = {**state, **up, "params": mix(state["params"], up["params"], info.share), "judged": judged}
        if self.controller is not None:
            alpha = self.controller(state["alpha"], jg, jl, state["alpha_jg"], state["alpha_jl"])
            held = {"alpha": alpha, "alpha_jg": jg, "alpha_jl": jl}
            new |= where(judged > 0, held, take(state, held))
        return new

    def report(self, state: Tree) -> Tree:
        whole = {"personal": state.get("personal", state["params"])} if self.full else {}
        return {**take(state, ("params", "jg", "jl", "judged")), **whole}


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
        if self.judge is None or self.judge.public is None:
            return super().send(state, slot)
        return super().send({**state, "say": {"jg": self.judge.measure(state["params"], self.judge.public)}}, slot)

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        jg, jl, judged = losses(up)
        new = self.stopping.update(state, jg, jl)
        return {**super().absorb(state, up, info), **where(judged > 0, new, take(state, new))}

    def stop(self, kept: Tree) -> str:
        return self.stopping.reason(kept)
