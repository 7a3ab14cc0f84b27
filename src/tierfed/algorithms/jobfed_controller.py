"""JobFed's controller of the mixing parameter alpha (README, appendix Eq. 4; what they leave open is reconstructed)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tierfed.stopping import EPS, change


def proportion(a: Tensor, b: Tensor, neutral: float) -> Tensor:
    """a / (a + b), `neutral` where both are zero."""
    return torch.where(a + b > EPS, a / (a + b).clamp(min=EPS), neutral)


@dataclass(frozen=True, kw_only=True)
class Controller:
    """p = J_g / (J_g + J_l), q = |dJ_l| / (|dJ_g| + |dJ_l|), R = beta p + (1 - beta) q;
    "controller": alpha <- clip(alpha - eta (R - gamma)); "gradient" (Eq. 4): alpha <- clip(alpha - eta (J_g - J_l))."""

    eta: float
    gamma: float
    beta: float
    delta: float
    alpha_min: float
    alpha_max: float
    alpha_rule: str
    change_share: str

    def __call__(self, alpha: Tensor, jg: Tensor, jl: Tensor, jg_old: Tensor, jl_old: Tensor) -> Tensor:
        """The next alpha []; an old loss of -1 was not measured yet."""
        if self.alpha_rule == "fixed":
            return alpha
        dg, dl = change(jg, jg_old).abs(), change(jl, jl_old).abs()
        quiet = (jg_old < 0) | (torch.maximum(dg, dl) < self.delta)
        mine, other = (dl, dg) if self.change_share == "personal" else (dg, dl)
        q = torch.where(quiet, self.gamma, proportion(mine, other, self.gamma))
        r = self.beta * proportion(jg, jl, self.gamma) + (1 - self.beta) * q
        slope = r - self.gamma if self.alpha_rule == "controller" else jg - jl
        new = (alpha - self.eta * slope).clamp(self.alpha_min, self.alpha_max)
        return torch.where(torch.isfinite(jg + jl), new, alpha)
