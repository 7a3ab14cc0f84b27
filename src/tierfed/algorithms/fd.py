"""Federated distillation (Jeong, Oh, Kim, Park, Bennis, Kim 2018): per label, devices teach each other by mean outputs.

Device i, over all steps of a visit:  zbar_ic = mean of its outputs z on samples of label c, before each step; up go
zbar_i [C, C] and which labels it has. It minimises  f_i + gamma KL(softmax(t_iy) || softmax(z))  per sample with
  t_ic = (sum_j zbar_jc - zbar_ic) / #{j != i: j has label c},
j over the devices that were heard last; a device that was not among them is not taken out. No such term for labels that
nobody else has. The server does that for each device; no model travels, so that devices may have different ones.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tierfed.algorithm import Algorithm, Batch, Data, Info, Tier
from tierfed.algorithms.hypernetwork import put_rows
from tierfed.errors import InputError
from tierfed.servers import Server, server_at
from tierfed.settings import NonNegative
from tierfed.task import Loss, Task
from tierfed.tree import Params, Tree


@dataclass(frozen=True, kw_only=True)
class Teachers(Server):
    """Keeps sums over the devices heard last: sum [C, C], has [C]; and their number of times, turn [].

    A device's row: what it said last, mean [C, C] and has [C], and in which turn; 0: never.
    """

    sees = "polled"
    classes: int
    like: Tensor  # of the model's kind

    def zeros(self, name: str) -> Tree:
        c = self.classes
        return {name: self.like.new_zeros(c, c), "has": self.like.new_zeros(c), "turn": self.like.new_zeros(())}

    def init(self, params: Params) -> Tree:
        return self.zeros("sum")

    def child(self, params: Params, ident: int) -> Tree:
        return self.zeros("mean")

    def send(self, state: Tree, slot: Tensor) -> Tree:
        own = {k: t[slot.to(t.device)] for k, t in state["rows"].items()}
        inside = torch.where((own["turn"] == state["turn"]) & (state["turn"] > 0), own["has"], 0.0)  # [C]
        others = state["has"] - inside
        total = state["sum"] - inside[:, None] * own["mean"]
        return {"teacher": total / others.clamp(min=1)[:, None], "known": others > 0}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        assert info.slots is not None
        has, turn = up["has"].to(self.like.dtype), state["turn"] + 1  # [H, C]
        said = {"mean": up["mean"], "has": has, "turn": turn.expand(len(has))}
        sums = {"sum": (has[:, :, None] * up["mean"]).sum(0), "has": has.sum(0), "turn": turn}
        return {**state, **sums, "rows": put_rows(state["rows"], info.slots, said)}


@dataclass(frozen=True, kw_only=True)
class FD(Algorithm):
    gamma: NonNegative = 0.1
    """Weight of the distillation."""
    server_at: Literal["cloud", "fog"] = "cloud"
    """Who is heard by a device: all others, over relays, or those of its lowest fog."""
    mixed_models = True

    def shared(self, task: Task) -> list[str]:
        return []

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        if not task.classes:
            raise InputError("mean outputs of labels are what devices teach each other by; take data that have classes")
        server = Teachers(classes=task.classes, like=next(iter(task.init().values())))
        return server_at(self.server_at, server, shape)

    def init(self, task: Task, params: Params) -> Tree:
        return {"w": params}

    def loss(self, task: Task, msg: Tree) -> Loss:
        """f + gamma KL(softmax(t_y) || softmax(z)) of each sample [B]."""
        teacher, known = torch.log_softmax(msg["teacher"], 1), msg["known"]

        def distilled(out: Tensor, y: Tensor) -> Tensor:
            p = teacher[y].exp()
            far = (p * (teacher[y] - torch.log_softmax(out, 1))).sum(1)
            return task.loss(out, y) + self.gamma * torch.where(known[y], far, 0.0)

        return distilled

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        c, loss = task.classes, self.loss(task, msg)
        like = msg["teacher"]

        def step(now: Tree, batch: Batch) -> Tree:
            hot = (batch.y[:, None] == torch.arange(c, device=like.device)).to(like.dtype)  # [B, C]
            return {
                "sum": now["sum"] + hot.T @ task.outputs(now["w"], batch.x),
                "count": now["count"] + hot.sum(0),
                "w": task.step(now["w"], batch, self.lr, loss=loss),
            }

        begin = {"w": state["w"], "sum": torch.zeros_like(like), "count": torch.zeros_like(like[0])}
        end = data.fold(step, begin)
        mean = end["sum"] / end["count"].clamp(min=1)[:, None]
        return {"mean": mean, "has": end["count"] > 0}, {"w": end["w"]}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return state["w"]  # type: ignore[no-any-return]
