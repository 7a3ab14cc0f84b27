"""The keep-local family: some entries of the model never leave a device, all others are averaged (FedAvg).

FedBN (Li et al. 2021): private = "usyb", all entries of the batch norms. MTFL (Mills et al. 2021): any of "usyb",
"us", "yb", "none"; u running mean, s running variance, y weight, b bias. FedPer (Arivazhagan et al. 2019): "head", the
last `depth` layers. LG-FedAvg (Liang et al. 2020): "body", all but those. "all": local-only training.
"""

from dataclasses import dataclass
from typing import Literal

from tierfed.algorithm import Algorithm, Average, Data, Relay, Tier
from tierfed.settings import Natural
from tierfed.task import Task
from tierfed.tree import Params, Tree, take


@dataclass(frozen=True, kw_only=True)
class Split(Algorithm):
    """A model in two parts: the private one stays on the device, the common one is trained together."""

    private: Literal["usyb", "us", "yb", "none", "all", "head", "body"] = "usyb"
    """Which entries stay on the device."""
    depth: Natural = 1
    """Layers of the head."""

    @property
    def needs_norms(self) -> bool:
        return self.private in ("usyb", "us", "yb")

    def kept(self, task: Task) -> list[str]:
        """The private keys."""
        match self.private:
            case "none":
                return []
            case "all":
                return task.keys
            case "head" | "body":
                head = set(task.head_keys(self.depth))
                return [k for k in task.keys if (k in head) == (self.private == "head")]
            case letters:
                return task.norm_keys(letters)

    def common(self, task: Task) -> tuple[str, ...]:
        """The keys that come down."""
        private = set(self.kept(task))
        return tuple(k for k in task.keys if k not in private)

    def shared(self, task: Task) -> list[str]:
        return list(self.common(task))

    def init(self, task: Task, params: Params) -> Tree:
        return {"own": take(params, self.kept(task))}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        w = task.train(self.personal(task, msg, state, data), data, self.lr)
        return {"params": take(w, self.shared(task))}, {"own": take(w, self.kept(task))}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return {**msg["params"], **state["own"]}


@dataclass(frozen=True, kw_only=True)
class KeepLocal(Split):
    average_private: bool = False
    """Private entries are sent and averaged too, which gives a complete global model, but never come down (MTFL)."""
    edge: bool = False
    """Fogs average; else they relay."""

    @property
    def mixed_models(self) -> bool:
        return self.private == "all" and not self.average_private

    def shared(self, task: Task) -> list[str]:
        return task.keys if self.average_private else super().shared(task)

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        average = Average(down=self.common(task))
        return (average, *(average if self.edge else Relay() for _ in shape[2:]))
