"""pFedLA above the devices: one hypernetwork per device mixes the layers of the devices that the server sees."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from tierfed.algorithm import Info
from tierfed.algorithms.hypernetwork import draw, features, first_body, put_rows
from tierfed.rng import generator
from tierfed.servers import Server
from tierfed.tree import Params, Tree, add, row


@dataclass(frozen=True, kw_only=True)
class LayerMixer(Server):
    """A device's row: theta {key: ...}, hyper (v [D], body, head [L, C, width], bias [L, C]), near [C] ids of the
    columns."""

    devices: int
    layers: tuple[str, ...]
    lr_hn: float
    dim: int
    width: int
    hidden: int
    softmax: bool
    own_bias: float
    retain: int
    top_m: int
    seed: int

    def child(self, params: Params, ident: int) -> Tree:
        rng, n = generator(self.seed, ident), self.devices
        near = torch.arange(n)
        if self.top_m:  # the device first
            near = torch.as_tensor((ident + rng.permutation(n - 1)[: self.top_m - 1] + 1) % n)
            near = torch.cat([torch.tensor([ident]), near])
        v = draw(rng, (self.dim,), params)
        body = first_body(rng, self.dim, self.width, self.hidden, params)
        head = v.new_zeros(len(self.layers), len(near), self.width if self.hidden else self.dim)
        bias = self.own_bias * (near == ident).to(v) + (0.0 if self.softmax else 1.0)  # a ReLU starts alive
        hyper = {"v": v, "body": body, "head": head, "bias": bias.expand(len(self.layers), -1).clone()}
        return {"theta": params, "hyper": hyper, **({"near": near.to(v.device)} if self.top_m else {})}

    def alpha(self, hyper: Tree, near: Tensor | None, ids: Tensor, slot: Tensor) -> Tensor:
        """Mixing weights [L, R] of one device over the members with these ids [R]."""
        logits = hyper["head"] @ features(hyper["body"], hyper["v"]) + hyper["bias"]
        ids = ids.to(logits.device)
        here = torch.ones_like(ids, dtype=torch.bool)
        if near is None:
            logits = logits[:, ids]
        else:
            match = near[:, None] == ids
            here, logits = match.any(0), logits[:, match.long().argmax(0)]
        if self.softmax:
            return torch.softmax(torch.where(here, logits, -torch.inf), -1)
        live = torch.where(here, torch.relu(logits), 0.0)
        total, own = live.sum(-1, keepdim=True), torch.arange(len(ids), device=ids.device) == slot.to(ids.device)
        return torch.where(total > 0, live / torch.where(total > 0, total, 1.0), own.to(live))

    def layer(self, key: str) -> int:
        return self.layers.index(key.rpartition(".")[0])

    def mixed(self, state: Tree, slot: Tensor) -> tuple[Params, Tensor]:
        """theta_bar of one device, and which layers it retains [L]."""
        theta, one = state["rows"]["theta"], row({k: v for k, v in state["rows"].items() if k != "theta"}, slot)
        alpha = self.alpha(one["hyper"], one.get("near"), state["ids"], slot)
        rank = torch.argsort(torch.argsort(alpha[:, slot], descending=True, stable=True))
        return {k: torch.tensordot(alpha[self.layer(k)], p, dims=1) for k, p in theta.items()}, rank < self.retain

    def send(self, state: Tree, slot: Tensor) -> Tree:
        theta, kept = self.mixed(state, slot)
        return {"params": theta, **({"mask": {k: ~kept[self.layer(k)] for k in theta}} if self.retain else {})}

    def ties(self, state: Tree) -> dict[str, Tensor]:
        """alpha of every layer, also of those that a device retains."""
        rows, ids = state["rows"], state["ids"]
        own = {k: v for k, v in rows.items() if k != "theta"}
        each = [(row(own, i), torch.tensor(i)) for i in range(len(ids))]
        alpha = torch.stack([self.alpha(one["hyper"], one.get("near"), ids, i) for one, i in each], 1)  # [L, R, R]
        return dict(zip((layer or "model" for layer in self.layers), alpha, strict=True))

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        rows, ids = state["rows"], state["ids"]

        def pull(slot: Tensor, new: Params) -> Tree:
            """J^T delta of one device."""
            bar, kept = self.mixed(state, slot)
            s = [rows["hyper"]["v"].new_zeros(len(ids)) for _ in self.layers]
            for k, p in rows["theta"].items():
                s[self.layer(k)] = s[self.layer(k)] + p.reshape(len(ids), -1) @ (new[k] - bar[k]).reshape(-1)
            near = rows["near"][slot] if self.top_m else None
            back: Any = vjp(lambda hyper: self.alpha(hyper, near, ids, slot), row(rows["hyper"], slot))[1]
            pulled: Tree = back(torch.where(kept[:, None], 0.0, torch.stack(s)))[0]
            return pulled

        at = info.slots
        assert at is not None
        moved = add(row(rows["hyper"], at), vmap(pull)(at, up["params"]), self.lr_hn)
        new = {"theta": up["params"], "hyper": moved}
        return {**state, "rows": {**rows, **put_rows({k: rows[k] for k in new}, at, new)}}
