"""When to stop a run by the losses of the global and the personal models (JobFed, appendix, Eq. 5-7)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tierfed.tree import Params, Tree, scalar

EPS = 1e-12


def change(new: Tensor, old: Tensor, relative: bool = True) -> Tensor:
    """Change of a loss since the previous round: (new - old) / old, or new - old."""
    return (new - old) / old.clamp(min=EPS) if relative else new - old


@dataclass(frozen=True, kw_only=True)
class Stopping:
    """zeta(t) = kappa zeta(t-1) + (1 - kappa) |dJ_g(t)|, zeta(0) the first |dJ_g|                      (Eq. 6)
    normal: G(t) <= zeta(t), |dJ_g(t)| <= epsilon and |dJ_l(t)| <= epsilon, G = the gap of the losses    (Eq. 5)
    early:  |dJ_g(t)| <= theta_r |dJ_g(t-1)|                                                             (Eq. 7)
    Each must hold `patience` rounds in a row, after `min_rounds` rounds. A value of -1: not measured yet.
    """

    stopping: str
    kappa: float
    epsilon: float
    theta_r: float
    patience: int
    min_rounds: int
    stop_units: str

    def init(self, params: Params) -> Tree:
        none, zero = scalar(-1.0, params), scalar(0.0, params)
        return {"jg": none, "jl": none, "dg": none, "zeta": none, "normal": zero, "early": zero, "rounds": zero}

    def update(self, old: Tree, jg: Tensor, jl: Tensor) -> Tree:
        """The state after a round with global loss jg [] and personal loss jl []."""
        seen, again = old["jg"] >= 0, old["dg"] >= 0
        relative = self.stop_units == "relative"
        dg = change(jg, old["jg"], relative).abs()
        dl = change(jl, old["jl"], relative).abs()
        zeta = torch.where(old["zeta"] >= 0, self.kappa * old["zeta"] + (1 - self.kappa) * dg, dg)
        gap = (jg - jl).abs() / (jg + jl).clamp(min=EPS) if relative else (jg - jl).abs()
        normal = seen & (gap <= zeta) & (dg <= self.epsilon) & (dl <= self.epsilon)
        early = again & (dg <= self.theta_r * old["dg"])
        return {
            "jg": jg,
            "jl": jl,
            "dg": torch.where(seen, dg, -1.0),
            "zeta": torch.where(seen, zeta, -1.0),
            "normal": torch.where(normal, old["normal"] + 1, 0.0),
            "early": torch.where(early, old["early"] + 1, 0.0),
            "rounds": old["rounds"] + 1,
        }

    def reason(self, state: Tree) -> str:
        """Which rule ends the run now; empty: none."""
        if float(state["rounds"]) < self.min_rounds:
            return ""
        if self.stopping in ("normal", "both") and float(state["normal"]) >= self.patience:
            return "normal stop (Eq. 5): the losses have met and changed by less than epsilon"
        if self.stopping in ("early", "both") and float(state["early"]) >= self.patience:
            return "early stop (Eq. 7): the global loss hardly changes any more"
        return ""
