"""FedMD's cloud: the mean of what devices say about the public samples of a draw."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tierfed.algorithm import Info, Tier
from tierfed.tree import Params, Tree


@dataclass(frozen=True, kw_only=True)
class Consensus(Tier):
    """Keeps fbar [R, C] of the last draw, zeros before the first, and t []."""

    weight = "devices"
    samples: int
    classes: int
    like: Tensor  # of the model's kind

    def init(self, params: Params) -> Tree:
        first = torch.zeros((), dtype=torch.int64, device=self.like.device)
        return {"consensus": self.like.new_zeros(self.samples, self.classes), "draw": first}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        return state

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        return {"consensus": up["scores"], "draw": state["draw"] + 1}
