"""FedFomo (Zhang, Sapra, Fidler, Yeung, Alvarez; ICLR 2021): devices weigh the models of others on their own data.

The server keeps every theta_n and sends device i the M = `models` others with the largest affinity P_in, or, with
probability `explore`, M random ones. Device, L_i = loss on its held-out split:
  w_n = (L_i(theta_i) - L_i(theta_n)) / |theta_n - theta_i|,  w~ = [w]+ / sum [w]+  (all zero: no move)
  theta_i <- theta_i + sum_n w~_n (theta_n - theta_i), then E epochs of SGD.
The server adds the raw w_n [M] to P_in. The device's own model is never among the candidates: its w is 0.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tierfed.algorithm import Algorithm, Batch, Data, Info, Tier
from tierfed.algorithms.hypernetwork import put_rows
from tierfed.rng import generator
from tierfed.servers import Server, server_at
from tierfed.settings import Count, Natural, Share
from tierfed.task import Task
from tierfed.tree import Params, Tree, row

NEAR = 1e-5  # a model closer than this is the device's own


@dataclass(frozen=True, kw_only=True)
class Matchmaker(Server):
    """A device's row: theta {key: ...}, affinity [N] by id, chance [N + 1] drawn anew after every reply."""

    devices: int
    models: int
    explore: float
    seed: int

    def chance(self, ident: int, round_: int, like: Tensor) -> Tensor:
        return like.new_tensor(generator(self.seed, ident, round_).random(self.devices + 1))

    def child(self, params: Params, ident: int) -> Tree:
        like = next(iter(params.values()))
        return {"theta": params, "affinity": like.new_zeros(self.devices), "chance": self.chance(ident, -1, like)}

    def best(self, state: Tree, slot: Tensor) -> Tensor:
        """Places [min(M, R)] among the members of who is sent to one device; the device itself comes last."""
        rows = state["rows"]
        ids = state["ids"].to(rows["chance"].device)
        mine = torch.arange(len(ids), device=ids.device) == slot.to(ids.device)
        chance, affinity = rows["chance"][slot], rows["affinity"][slot]
        liked = torch.where(chance[-1] < self.explore, torch.zeros_like(affinity), affinity)[ids]
        order = torch.argsort(chance[ids], stable=True)  # decides ties
        liked = torch.where(mine, -torch.inf, liked)
        return order[torch.argsort(liked[order], descending=True, stable=True)][: self.models]

    def send(self, state: Tree, slot: Tensor) -> Tree:
        best = self.best(state, slot)
        missing = self.models - len(best)
        ok = torch.cat([best != slot.to(best.device), best.new_zeros(missing, dtype=torch.bool)])  # small teams
        best = torch.cat([best, best[:1].expand(missing)])
        theta = row(state["rows"]["theta"], best)
        return {"params": theta, "mask": dict.fromkeys(theta, ok)}

    def ties(self, state: Tree) -> dict[str, Tensor]:
        """[P]+, rows sum to 1: who has helped so far, nobody: itself. The w~ of a visit only the device knows."""
        affinity = state["rows"]["affinity"]
        good = affinity[:, state["ids"].to(affinity.device)].clamp(min=0)  # [R, R]
        total = good.sum(1, keepdim=True)
        return {"model": torch.where(total > 0, good / total.clamp(min=1e-30), torch.eye(len(good)).to(good))}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        rows, ids, at = state["rows"], state["ids"], info.slots
        assert at is not None
        best = torch.stack([self.best(state, s) for s in at])
        affinity = rows["affinity"][at].scatter_add(1, ids.to(best.device)[best], up["w"][:, : best.shape[1]])
        chance = [self.chance(int(ids[s]), int(info.round), affinity) for s in at]
        new = {"theta": up["params"], "affinity": affinity, "chance": torch.stack(chance)}
        return {**state, "rows": put_rows(rows, at, new)}


@dataclass(frozen=True, kw_only=True)
class FedFomo(Algorithm):
    server_at: Literal["cloud", "fog"] = "cloud"
    """Who keeps the models: the cloud over relays, or every lowest fog for its own devices."""
    models: Count = 5
    """Models M that a device gets."""
    explore: Share = 0.3
    """Probability that they are random."""
    seed: Natural = 0
    """Of the random choices."""
    needs_held = True

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        server = Matchmaker(devices=shape[-1], models=self.models, explore=self.explore, seed=self.seed)
        return server_at(self.server_at, server, shape)

    def init(self, task: Task, params: Params) -> Tree:
        return {"theta": params}

    def combine(self, task: Task, msg: Tree, own: Params, held: Batch) -> tuple[Params, Tensor]:
        """(theta_i after the move, raw weights w [M])"""
        ok = next(iter(msg["mask"].values()))  # [M]
        base, raw = task.measure(own, held), []
        for n in range(self.models):
            theta = row(msg["params"], n)
            far = torch.stack([(theta[k] - own[k]).square().sum() for k in task.trainable]).sum().sqrt()
            gain = (base - task.measure(theta, held)) / far.clamp(min=NEAR)
            raw.append(torch.where(ok[n] & (far > NEAR), gain, 0.0))
        w = torch.stack(raw)
        good, total = w.clamp(min=0), w.clamp(min=0).sum()
        share = good / torch.where(total > 0, total, 1.0)
        rest = torch.where(total > 0, 0.0, 1.0)
        moved = {k: rest * t + torch.tensordot(share, msg["params"][k], dims=1) for k, t in own.items()}
        return moved, w

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        start, w = self.combine(task, msg, state["theta"], data.held)
        theta = task.train(start, data, self.lr)
        return {"params": theta, "w": w}, {"theta": theta}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return state["theta"]  # type: ignore[no-any-return]
