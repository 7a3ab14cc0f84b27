"""IFCA (Ghosh, Chung, Yin, Ramchandran; NeurIPS 2020, Algorithm 1, model averaging): k models, each device trains one.

Device: j = argmin_j f_i(theta_j) on its training data; E epochs of SGD on f_i from theta_j. Cloud: theta_j <- the
weighted mean of those who chose j; a model that nobody chose stays. `depth` > 0: the body is common, only the last
`depth` layers are there k times (the paper's weight sharing). On the wire the chosen model goes up alone; relays add
models by cluster. The k first models differ: the entries of every tensor are shuffled, or noise is added.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from tierfed.algorithm import Algorithm, Batch, Data, Info, Relay, Tier
from tierfed.rng import generator
from tierfed.settings import Count, Natural, NonNegative
from tierfed.task import Task
from tierfed.tree import Params, Tree, scalar


@dataclass(frozen=True, kw_only=True)
class Clusters(Tier):
    """Keeps models: the entries `many` with leaves [k, ...], all others once."""

    k: int
    many: tuple[str, ...]
    shuffle: bool
    noise: float
    seed: int

    def init(self, params: Params) -> Tree:
        def versions(key: str, t: Tensor) -> Tensor:
            out, at = [t], self.many.index(key)
            for j in range(1, self.k):
                rng = generator(self.seed, j, at)
                if self.shuffle:
                    order = torch.as_tensor(rng.permutation(t.numel()), device=t.device)
                    out.append(t.reshape(-1)[order].view(t.shape))
                else:
                    size = self.noise * t.square().mean().sqrt()
                    out.append(t + size * t.new_tensor(rng.normal(size=tuple(t.shape))))
            return torch.stack(out)

        return {"models": {k: versions(k, t) if k in self.many else t for k, t in params.items()}}

    def send(self, state: Tree, slot: Tensor) -> Tree:
        return {"params": state["models"]}

    def absorb(self, state: Tree, up: Tree, info: Info) -> Tree:
        chosen = up["chosen"]  # [k] shares of the weight, sum 1

        def average(key: str, old: Tensor) -> Tensor:
            new = up["params"][key]
            if key not in self.many:
                return torch.lerp(old, new, info.share)
            part = chosen.view(-1, *[1] * (old.dim() - 1))
            mean = new / torch.where(part > 0, part, 1.0)
            return torch.where(part > 0, torch.lerp(old, mean, info.share), old)

        return {**state, "models": {k: average(k, t) for k, t in state["models"].items()}}


@dataclass(frozen=True, kw_only=True)
class ByCluster(Relay):
    """Sums what it hears by cluster: models that nobody below chose do not travel."""

    def report(self, state: Tree) -> Tree:
        up = state["up"]
        return {**up, "mask": dict.fromkeys(up["mask"], (up["chosen"] > 0).to(up["chosen"].dtype))}


@dataclass(frozen=True, kw_only=True)
class IFCA(Algorithm):
    clusters: Count = 2
    """Models k."""
    depth: Natural = 0
    """Layers that are there k times, from the last; 0: all."""
    first: Literal["shuffle", "noise"] = "shuffle"
    """How the first models differ: shuffled entries of every tensor, or added noise (for a pretrained model)."""
    noise: NonNegative = 0.1
    """Size of the noise, relative to the root mean square of a tensor."""
    seed: Natural = 0
    """Of the first models."""

    def many(self, task: Task) -> list[str]:
        """The entries that are there k times."""
        return task.head_keys(self.depth) if self.depth else task.keys

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        many, shuffle = tuple(self.many(task)), self.first == "shuffle"
        cloud = Clusters(k=self.clusters, many=many, shuffle=shuffle, noise=self.noise, seed=self.seed)
        return (cloud, *(ByCluster() for _ in shape[2:]))

    def pick(self, task: Task, params: Params, j: int | Tensor) -> Params:
        """Model j of k."""
        many = set(self.many(task))
        return {k: t[j] if k in many else t for k, t in params.items()}

    def choose(self, task: Task, params: Params, data: Data) -> Tensor:
        """argmin_j of the loss on the training data []."""

        def count(loss: Tensor, batch: Batch) -> Tensor:
            every = batch._replace(live=torch.ones_like(batch.seed, dtype=torch.bool).expand(len(batch.x)))
            return loss + torch.stack([task.measure(m, every) for m in models])

        models = [self.pick(task, params, j) for j in range(self.clusters)]
        return torch.argmin(data.passes(0, 1).fold(count, scalar(0.0, params).expand(self.clusters)))

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        j = self.choose(task, msg["params"], data)
        w, chosen = task.train(self.pick(task, msg["params"], j), data, self.lr), one_hot(j, self.clusters)
        mark, many = chosen.to(scalar(0.0, w)), self.many(task)
        placed = {k: torch.where(chosen.view(-1, *[1] * w[k].dim()) > 0, w[k], 0.0) for k in many}
        return {"params": {**w, **placed}, "chosen": mark, "mask": dict.fromkeys(many, mark)}, state

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        j = torch.argmax(msg["chosen"]) if "chosen" in msg else self.choose(task, msg["params"], data)
        return self.pick(task, msg["params"], j)
