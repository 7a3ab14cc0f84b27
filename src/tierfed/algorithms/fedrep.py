"""FedRep (Collins, Hassani, Mokhtari, Shakkottai 2021, Algorithm 1): a shared body, and a head of each device's own.

Device, from (the received body, its head): `head_epochs` of SGD on the head, the body frozen; then `epochs` on the
body, the head frozen. The body is sent and averaged, the head stays. Batch norms in the frozen part are in
evaluation mode.
"""

from dataclasses import dataclass

from tierfed.algorithm import Algorithm, Data
from tierfed.settings import Natural
from tierfed.task import Task
from tierfed.tree import Params, Tree, take


@dataclass(frozen=True, kw_only=True)
class FedRep(Algorithm):
    """`epochs`: passes of the body."""

    head_epochs: Natural = 10
    """Passes of the head, before those of the body."""
    depth: Natural = 1
    """Layers of the head."""

    @property
    def passes(self) -> int:
        return self.head_epochs + self.epochs

    def shared(self, task: Task) -> list[str]:
        head = set(task.head_keys(self.depth))
        return [k for k in task.keys if k not in head]

    def init(self, task: Task, params: Params) -> Tree:
        return {"head": take(params, task.head_keys(self.depth))}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        head, body = task.head_keys(self.depth), self.shared(task)
        w = self.personal(task, msg, state, data)
        w = task.train(w, data.passes(0, self.head_epochs), self.lr, keys=head)
        w = task.train(w, data.passes(self.head_epochs), self.lr, keys=body)
        return {"params": take(w, body)}, {"head": take(w, head)}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return {**msg["params"], **state["head"]}
