"""FedMD (Li and Wang 2019, Algorithm 1): devices with different models teach each other by their scores on public data.

Round t draws R public samples x_r; all nodes draw the same, from (seed, t) alone. A visit of device i:
  digest:   on the samples of draw t - 1, minimise l(score(f_i(x_r)), fbar(x_r)); nothing before the first consensus
  revisit:  E epochs of SGD on its own data;      then score(f_i(x_r)) of draw t goes up: R x C numbers
Cloud: fbar(x_r) = mean_i score(f_i(x_r)), every device counts alike, so that a relay sends one mean. Down: fbar of the
last draw, and t. With score = softmax(. / T) and l = KL this is the FD of PerFit (Wu, He, Chen 2020). Before its first
visit a device may train on the labels of the public samples (`public_epochs`). There is no global model.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from tierfed.algorithm import Algorithm, Batch, Data, Relay, Tier
from tierfed.algorithms.coins import draw
from tierfed.algorithms.fedmd_consensus import Consensus
from tierfed.errors import InputError
from tierfed.settings import Natural, Positive
from tierfed.task import Loss, Task
from tierfed.tree import Params, Tree, where


@dataclass(frozen=True, kw_only=True)
class FedMD(Algorithm):
    subset: Annotated[int, Ge(2)] = 500
    """Public samples R of a round."""
    scores: Literal["logits", "probabilities"] = "logits"
    """What is sent of a sample: the outputs, or their softmax at the temperature."""
    digest: Literal["kl", "mse", "l1"] = "mse"
    """Distance of a device's scores from the consensus; kl: of the softmax at the temperature T, times T^2."""
    temperature: Positive = 1.0
    """T of the softmax."""
    digest_epochs: Natural = 1
    """Passes over the drawn samples."""
    digest_batch: Annotated[int, Ge(2)] = 50
    """Public samples per minibatch; the last one is filled up from the start."""
    digest_lr: Positive | None = None
    """Learning rate on public samples; none: lr."""
    public_epochs: Natural = 0
    """Passes over all public samples with their labels before the first visit; the clock does not charge them."""
    seed: Natural = 0
    """Of the draws."""
    needs_public = True
    mixed_models = True

    @property
    def public_goes(self) -> Literal["", "samples", "labels"]:
        return "labels" if self.public_epochs else "samples"

    @property
    def extra_samples(self) -> int:
        return self.digest_epochs * -(-self.subset // self._width(self.subset)) * self._width(self.subset)

    def shared(self, task: Task) -> list[str]:
        return []

    def tiers(self, task: Task, shape: tuple[int, ...]) -> tuple[Tier, ...]:
        if not task.classes:
            raise InputError("scores of classes are what devices teach each other by; take data that have classes")
        if task.public is not None and self.subset > len(task.public.x):
            raise InputError(
                f"subset = {self.subset} public samples per round, but there are {len(task.public.x)}; set "
                "algorithm.subset to that or less, or give more of them (data.public, data.public_path)"
            )
        like = next(iter(task.init().values()))
        return (Consensus(samples=self.subset, classes=task.classes, like=like), *[Relay() for _ in shape[2:]])

    def init(self, task: Task, params: Params) -> Tree:
        public = _public(task)
        n = len(public.x)
        rows = draw(self.seed, public.seed.to(public.x.device) - 1, n, n)  # files are often in the order of labels
        return {"w": self.learn(task, params, rows, public.y[rows], self.public_epochs, public.seed)}

    def device(self, task: Task, msg: Tree, state: Tree, data: Data) -> tuple[Tree, Tree]:
        now, public = msg["draw"], _public(task)
        last, new = (draw(self.seed, t, self.subset, len(public.x)) for t in (now - 1, now))
        seed = data.seed.flatten()[0] + 1  # masks of dropout layers that the revisit does not use
        digested = self.learn(task, state["w"], last, msg["consensus"], self.digest_epochs, seed, self.distance)
        w = task.train(where(now > 0, digested, state["w"]), data, self.lr)
        return {"scores": self.score(task.outputs(w, public.x[new]))}, {"w": w}

    def personal(self, task: Task, msg: Tree, state: Tree, data: Data) -> Params:
        return state["w"]  # type: ignore[no-any-return]

    def score(self, out: Tensor) -> Tensor:
        """What is sent of outputs [R, C]."""
        return out if self.scores == "logits" else torch.softmax(out / self.temperature, 1)

    def distance(self, out: Tensor, consensus: Tensor) -> Tensor:
        """l of each sample [B], from outputs and consensus [B, C]."""
        if self.digest != "kl":
            far = self.score(out) - consensus
            return (far.square() if self.digest == "mse" else far.abs()).mean(1)
        t = self.temperature
        p = consensus if self.scores == "probabilities" else torch.softmax(consensus / t, 1)
        return t * t * (torch.xlogy(p, p) - p * torch.log_softmax(out / t, 1)).sum(1)

    def learn(
        self, task: Task, w: Params, rows: Tensor, targets: Tensor, passes: int, seed: Tensor, loss: Loss | None = None
    ) -> Params:
        """SGD on public samples `rows` [n] with targets [n, ...], round and round in their order."""
        public, n, width = _public(task), len(rows), self._width(len(rows))
        for s in range(passes * -(-n // width)):
            at = (torch.arange(width, device=rows.device) + s * width) % n
            batch = Batch(public.x[rows[at]], targets[at], public.live[0], seed + s)
            w = task.step(w, batch, self.digest_lr or self.lr, loss=loss)
        return w

    def _width(self, n: int) -> int:
        return min(self.digest_batch, n)


def _public(task: Task) -> Batch:
    assert task.public is not None  # asked for before a run
    return task.public
