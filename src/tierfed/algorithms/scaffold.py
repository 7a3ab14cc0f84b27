"""SCAFFOLD (Karimireddy et al. 2020, Algorithm 1, option II), flat or with control variates at every fog (edge).

Device: K steps y <- y - lr (grad f_i(y) - c_i + c);  c_i+ = c_i - c + (x - y) / (K lr);  sends y and owes dc = c_i+
- c_i. Node: x <- x + server_lr (mean y - x);  c <- c + (heard / total) mean dc, so c = mean of all c_i, also those
not heard. edge: a fog keeps c_k = mean of its devices' c_i and sends c + (what c_k has moved by since the visit began).
"""

from dataclasses import dataclass

from tierfed.algorithm import Algorithm, Data, Info, Relay, Tier
from tierfed.settings import Positive
from tierfed.task import Task
from tierfed.tree import Params, Tree, add, mix, scalar, scale, sub, take, zeros


@dataclass(frozen=True, kw_only=True)
class Variate(Tier):
    """A node with a model and a control variate of the entries `keys`."""

    keys: tuple[str, ...]
    server_lr: float = 1.0
    weight = "devices"

    def init(self, params: Params) -> Tree:
        return {"params": params, "c": zeros(take(params, self.keys))}

    def enter(self, kept: Tree, msg: Tree) -> Tree:
        none_heard = scalar(0.0, msg["params"])
        return {"params": msg["params"], "c": kept["c"], "old": kept["c"], "above": msg["c"], "scale": none_heard}

    def send(self, state: Tree, slot: object) -> Tree:
        c = state["c"]
        if "old" in state:  # a fog
            c = add(state["above"], sub(c, state["old"]))
        return {"params": state["params"], "c": c}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        heard = {"scale": info.total / info.heard} if "old" in state else {}
        params = mix(state["params"], up["params"], self.server_lr * info.share)
        return {**state, **heard, "params": params, "c": add(state["c"], up["owed"]["dc"], info.heard / info.total)}

    def report(self, state: Tree) -> Tree:
        """The parent weighs by the devices heard: scaled so that its sum over teams counts every device of the team."""
        moved = scale(sub(state["c"], state["old"]), state["scale"])
        return {"params": state["params"], "owed": {"dc": moved}}


@dataclass(frozen=True, kw_only=True)
class Scaffold(Algorithm):
    edge: bool = False
    """Control variates at the fogs too; else fogs relay."""
    server_lr: Positive = 1.0

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        keys = tuple(task.trainable)
        fog = Variate(keys=keys) if self.edge else Relay()
        return (Variate(keys=keys, server_lr=self.server_lr), *(fog for _ in shape[2:]))

    def init(self, task: Task, params: Params) -> Tree:
        return {"c": zeros(take(params, task.trainable))}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        x, c, ci = msg["params"], msg["c"], state["c"]
        y = task.train(x, data, self.lr, drift=sub(c, ci))
        moved = 1.0 / (data.steps.clamp(min=1).to(next(iter(c.values())).dtype) * self.lr)
        dc = {k: moved * (x[k] - y[k]) - c[k] for k in ci}
        return {"params": y, "owed": {"dc": dc}}, {"c": add(ci, dc)}
