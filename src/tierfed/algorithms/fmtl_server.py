"""Federated multi-task learning above the devices: means of all and of teams where those are enough, else a server that
knows every model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tierfed.algorithm import Info
from tierfed.algorithms.hypernetwork import put_rows
from tierfed.algorithms.means import MeanOfAll
from tierfed.algorithms.relationship import Relationship
from tierfed.servers import Server
from tierfed.tree import Params, Tree, add, mix, scalar, scale, take, tmap, zeros


@dataclass(frozen=True, kw_only=True)
class Relation(MeanOfAll):
    """Omega = I - 11' / m: the mean of the entries `keys` and the part 1 / m of it that is a device's own."""

    keys: tuple[str, ...]
    devices: int

    def send(self, state: Tree, slot: object) -> Tree:
        return {"params": take(state["params"], self.keys), "part": scalar(1 / self.devices, state["params"])}


@dataclass(frozen=True, kw_only=True)
class Team(MeanOfAll):
    """Omega = I - M + between (M - 11' / m) below a `Relation`: (1 - between) wbar_team + between wbar goes down.

    Keeps wbar_team and the number of its devices.
    """

    between: float
    size: float  # of an average team: nobody counts the devices before the first reply

    def init(self, params: Params) -> Tree:
        return {"params": params, "devices": scalar(self.size, params)}

    def enter(self, kept: Tree, msg: Tree) -> Tree:
        return {**kept, "above": msg, "sum": zeros(kept["params"]), "heard": torch.ones_like(kept["devices"])}

    def send(self, state: Tree, slot: object) -> Tree:
        above = state["above"]
        own = {"params": take(state["params"], above["params"]), "part": 1 / state["devices"]}
        return mix(own, above, self.between)  # type: ignore[no-any-return]

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        moved = up["owed"]["moved"]
        new = {"params": add(state["params"], moved, info.heard / info.total), "devices": info.total}
        return {**state, **new, "sum": add(state["sum"], moved, info.heard), "heard": info.heard}

    def report(self, state: Tree) -> Tree:
        """All visits together; the parent weighs by the devices heard at the last one."""
        return {"owed": {"moved": scale(state["sum"], 1 / state["heard"])}}


@dataclass(frozen=True, kw_only=True)
class Tasks(Server):
    """Keeps the mean of all models. A device's row: w {key: ...} as heard last, and its row of Omega."""

    relation: Relationship
    keys: tuple[str, ...]
    devices: int
    means = True

    def init(self, params: Params) -> Tree:
        return {"params": params}

    def child(self, params: Params, ident: int) -> Tree:
        return {"w": params, **self.relation.row(self.devices, scalar(0.0, params))}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        """c_t = sum_{r != t} Omega_tr w_r and Omega_tt of one device."""
        w = take(state["rows"]["w"], self.keys)
        like = scalar(0.0, state["params"])
        slot = slot.to(like.device)
        omega = self.relation.now(state["rows"], state["ids"], like)[slot]
        mine = torch.arange(len(omega), device=like.device) == slot
        others = torch.where(mine, 0.0, omega)
        return {"c": {k: torch.tensordot(others, t, dims=1) for k, t in w.items()}, "own": (omega * mine).sum()}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        assert info.slots is not None
        rows = state["rows"]
        w = put_rows(rows["w"], info.slots, up["params"])
        rows = self.relation.step(take(w, self.keys), state["ids"], {**rows, "w": w}, info.round)
        return {**state, "params": tmap(lambda t: t.mean(0), w), "rows": rows}
