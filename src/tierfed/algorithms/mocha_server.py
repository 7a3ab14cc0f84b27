"""MOCHA above the devices: from v_t = X_t alpha_t / n_t of all tasks to the models W = K V."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tierfed.algorithm import Info
from tierfed.algorithms.hypernetwork import put_rows
from tierfed.algorithms.relationship import Relationship
from tierfed.servers import Server
from tierfed.tree import Params, Tree, scalar, tmap, zeros


@dataclass(frozen=True, kw_only=True)
class Duals(Server):
    """Keeps the mean of all models. A device's row: v {key: ...} as heard last, and its row of Omega."""

    relation: Relationship
    lam: float
    ridge: float
    devices: int

    def init(self, params: Params) -> Tree:
        return {"params": zeros(params)}

    def child(self, params: Params, ident: int) -> Tree:
        return {"v": zeros(params), **self.relation.row(self.devices, scalar(0.0, params))}

    def kernel(self, rows: Tree, ids: Tensor) -> Tensor:
        """K = (lam Omega + ridge I)^-1 [R, R] of the members `ids` [R]."""
        like = scalar(0.0, rows["v"])
        penalty = self.lam * self.relation.now(rows, ids, like).double()
        eye = torch.eye(len(ids), dtype=penalty.dtype, device=penalty.device)
        return torch.cholesky_inverse(torch.linalg.cholesky(penalty + self.ridge * eye)).to(like)

    def models(self, rows: Tree, ids: Tensor) -> Params:
        """w_t = sum_r K_tr v_r, leaves [R, ...]."""
        kernel = self.kernel(rows, ids)
        return {k: torch.tensordot(kernel, v, dims=1) for k, v in rows["v"].items()}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        """c_t = sum_{r != t} K_tr v_r, K_tt, and q_t = sum_r |K_tr| of one device."""
        mine = state["rows"]["v"]
        kernel = self.kernel(state["rows"], state["ids"])[slot.to(scalar(0.0, mine).device)]
        me = torch.arange(len(kernel), device=kernel.device) == slot.to(kernel.device)
        others = torch.where(me, 0.0, kernel)
        c = {k: torch.tensordot(others, v, dims=1) for k, v in mine.items()}
        return {"c": c, "own": (kernel * me).sum(), "q": kernel.abs().sum()}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        assert info.slots is not None
        ids, rows = state["ids"], state["rows"]
        rows = {**rows, "v": put_rows(rows["v"], info.slots, up["v"])}
        rows = self.relation.step(self.models(rows, ids), ids, rows, info.round)
        return {**state, "params": tmap(lambda t: t.mean(0), self.models(rows, ids)), "rows": rows}
