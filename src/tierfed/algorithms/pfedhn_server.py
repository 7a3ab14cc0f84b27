"""pFedHN above the devices: the hypernetwork, and its step by SGD with momentum."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from tierfed.algorithm import Info
from tierfed.algorithms.hypernetwork import draw, features, first_body, put_rows
from tierfed.rng import generator
from tierfed.servers import Server
from tierfed.tree import Params, Tree, add, dot, row, scale, sub, zeros


@dataclass(frozen=True, kw_only=True)
class HyperNetwork(Server):
    """Keeps phi (body, head {key: [numel, width]}, bias {key: ...}) and its momentum; a device's row: v [D] and its
    momentum."""

    dim: int
    width: int
    hidden: int
    lr_hn: float
    momentum: float
    weight_decay: float
    clip: float
    seed: int
    sees = "polled"

    def init(self, params: Params) -> Tree:
        body = first_body(generator(self.seed), self.dim, self.width, self.hidden, params)
        inputs = self.width if self.hidden else self.dim
        phi = {"body": body, "head": {k: t.new_zeros(t.numel(), inputs) for k, t in params.items()}, "bias": params}
        return {"phi": phi, "m": zeros(phi)}

    def child(self, params: Params, ident: int) -> Tree:
        v = draw(generator(self.seed, ident), (self.dim,), params)
        return {"v": v, "m": torch.zeros_like(v)}

    def write(self, phi: Tree, v: Tensor) -> Params:
        """h(v; phi)"""
        z = features(phi["body"], v)
        return {k: (phi["head"][k] @ z).view(b.shape) + b for k, b in phi["bias"].items()}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        return {"params": self.write(state["phi"], state["rows"]["v"][slot])}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        assert info.slots is not None
        phi, rows, n = state["phi"], row(state["rows"], info.slots), len(info.slots)
        result: Any = vjp(vmap(self.write, (None, 0)), phi, rows["v"])
        theta, back = result
        total, each = back(sub(theta, up["params"]))
        mean = scale(total, 1 / n)
        length = (dot(mean, mean) + each.square().sum() / n).sqrt()
        cut = torch.clamp(self.clip / length.clamp(min=1e-12), max=1.0)

        def sgd(at: Any, m: Any, g: Any) -> tuple[Any, Any]:
            m = add(add(scale(m, self.momentum), g, cut), at, self.weight_decay)
            return add(at, m, -self.lr_hn), m

        new, m = sgd(phi, state["m"], mean)
        v, vm = sgd(rows["v"], rows["m"], each)
        return {**state, "phi": new, "m": m, "rows": put_rows(state["rows"], info.slots, {"v": v, "m": vm})}
