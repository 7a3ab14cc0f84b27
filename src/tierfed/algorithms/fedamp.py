"""FedAMP and HeurFedAMP (Huang, Chu, Zhou et al., AAAI 2021): devices with similar models pull one another.

Server, all theta_j [R] it knows:  u_i = (1 - sum_{j != i} xi_ij) theta_i + sum_{j != i} xi_ij theta_j
  FedAMP:     xi_ij = alpha A'(|theta_i - theta_j|^2), A'(x) = exp(-x / sigma) / sigma
  HeurFedAMP: xi_ij = (1 - xi_ii) exp(sigma cos(theta_i, theta_j)) / sum_{h != i} exp(sigma cos(theta_i, theta_h))
Device: from u_i, E epochs of SGD on f_i(theta) + lam / (2 alpha) |theta - u_i|^2.
The paper asks for an alpha small enough that u_i is a convex combination. Here xi is cut by one common factor where a
sum passes 1, which leaves it symmetric. sigma = none: the median of the squared distances, which grow with the model.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tierfed.algorithm import Algorithm, Data, Info, Tier
from tierfed.algorithms.hypernetwork import put_rows
from tierfed.servers import Server, server_at
from tierfed.settings import NonNegative, Positive, Share
from tierfed.task import Task
from tierfed.tree import Params, Tree, take

TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class Attention(Server):
    """A device's row: theta {key: ...}. Similarity is of the trainable entries `keys`."""

    keys: tuple[str, ...]
    cosine: bool
    alpha: float
    sigma: float | None
    self_weight: float | None

    def child(self, params: Params, ident: int) -> Tree:
        return {"theta": params}

    def xi(self, theta: Params) -> Tensor:
        """Weights [R, R], rows sum to 1, of R models with leaves [R, ...]."""
        x = torch.cat([theta[k].reshape(len(theta[k]), -1) for k in self.keys], 1)  # [R, d]
        n = len(x)
        if n == 1:
            return torch.ones_like(x[:, :1])
        me = torch.eye(n, dtype=torch.bool, device=x.device)
        if self.cosine:
            units = x / x.norm(dim=1, keepdim=True).clamp(min=TINY)
            own = 1 / n if self.self_weight is None else self.self_weight
            score = (1.0 if self.sigma is None else self.sigma) * (units @ units.T)
            others = (1 - own) * torch.softmax(torch.where(me, -torch.inf, score), 1)
            return torch.where(me, own, others)
        apart = (x - x[:1]).double()  # equal models are exactly equal, and little cancels
        long = apart.square().sum(1)
        far = (long[:, None] + long - 2 * apart @ apart.T).clamp(min=0).to(x.dtype)
        sigma = far[~me].median().clamp(min=TINY) if self.sigma is None else far.new_tensor(self.sigma)
        raw = torch.where(me, 0.0, torch.exp(-far / sigma))
        cut = torch.minimum(self.alpha / sigma, 1 / raw.sum(1).max().clamp(min=TINY))
        others = cut * raw
        return torch.where(me, (1 - others.sum(1, keepdim=True)).clamp(min=0), others)

    def send(self, state: Tree, slot: Tensor) -> Tree:
        theta = state["rows"]["theta"]
        weights = self.xi(theta)[slot]
        return {"params": {k: torch.tensordot(weights, t, dims=1) for k, t in theta.items()}}

    def ties(self, state: Tree) -> dict[str, Tensor]:
        return {"model": self.xi(state["rows"]["theta"])}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        assert info.slots is not None
        return {**state, "rows": put_rows(state["rows"], info.slots, {"theta": up["params"]})}


@dataclass(frozen=True, kw_only=True)
class FedAMP(Algorithm):
    server_at: Literal["cloud", "fog"] = "cloud"
    """Who keeps the models: the cloud over relays, or every lowest fog for its own devices."""
    attention: Literal["distance", "cosine"] = "distance"
    """FedAMP, or HeurFedAMP."""
    alpha: Positive = 1.0
    """Step alpha_k of the server; the devices' pull is lam / alpha."""
    lam: NonNegative = 1.0
    """Weight lambda of the pull to u_i."""
    sigma: Positive | None = None
    """Scale of the squared distances (none: their median), or of the cosines (none: 1)."""
    self_weight: Share | None = None
    """xi_ii of HeurFedAMP; none: 1 / R."""
    start: Literal["u", "own"] = "u"
    """Where the local training begins: at u_i, or at the device's own model."""

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        server = Attention(
            keys=tuple(task.trainable),
            cosine=self.attention == "cosine",
            alpha=self.alpha,
            sigma=self.sigma,
            self_weight=self.self_weight,
        )
        return server_at(self.server_at, server, shape)

    def init(self, task: Task, params: Params) -> Tree:
        return {"theta": params}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        u = msg["params"]
        begin = u if self.start == "u" else state["theta"]
        theta = task.train(begin, data, self.lr, pull=(self.lam / self.alpha, take(u, task.trainable)))
        return {"params": theta}, {"theta": theta}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return state["theta"]  # type: ignore[no-any-return]
