"""The plain loop: one nn.Module, load, train with torch.optim.SGD, average, as a script would have it.

Every algorithm of `sides.job.ALGORITHMS` is one method, by the equations of its paper, without anything of tierfed.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sides.job import ALGORITHMS, Job, held_rows, pool, train_rows
from sides.network import finished, laid_out, network
from sides.turns import Turns

Rows = npt.NDArray[np.int64]
Visit = tuple[int, Sequence[Rows]]  # a device, and the rows of its passes [S, B]
Tensors = list[Tensor]


def serve(job: Job, turns: Turns) -> None:
    torch.set_num_threads(job.threads)
    loop, rounds = Loop(job, *(torch.from_numpy(a) for a in pool(job))), visits(job)
    while turns.wait():
        loop.round(next(rounds))
        finished(job)
        turns.done()


def visits(job: Job) -> Iterator[list[list[Visit]]]:
    """Whom every team polls in every round, and in which order a device sees its rows; drawn as a script would."""
    rng, rows = np.random.default_rng([job.seed, 2]), train_rows(job)
    teams = np.array_split(np.arange(job.devices), job.teams or 1)
    passes = 2 if job.algorithm == "ditto" else 1
    while True:
        polled = [np.sort(rng.choice(team, job.cohort // len(teams), replace=False)) for team in teams]
        yield [
            [(int(i), [rng.permutation(rows[i]).reshape(job.steps, -1) for _ in range(passes)]) for i in ids]
            for ids in polled
        ]


class Loop:
    """One model, and what cloud and devices keep.

    :param x: [n, *shape]; :param y: [n]
    """

    def __init__(self, job: Job, x: Tensor, y: Tensor) -> None:
        self.job, self.y, self.x = job, y.to(job.device), laid_out(x.to(job.device), job.layout)
        self.module = network(job).to(job.device, x.dtype).train()
        if job.layout == "nhwc":
            self.module = self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for m in self.module.modules():
            if isinstance(m, nn.modules.batchnorm._BatchNorm):
                m.num_batches_tracked = None  # a counter is no weight
        named = [*self.module.named_parameters(), *self.module.named_buffers()]
        self.keys, self.live = [k for k, _ in named], [t.detach() for _, t in named]  # views of the module's own
        self.trained = len(list(self.module.parameters()))
        norms = {n for n, m in self.module.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        self.private = [k.rpartition(".")[0] in norms for k in self.keys]
        self.first = [t.clone() for t in self.live]
        self.model = [t.clone() for t in self.live]
        self.variate = [torch.zeros_like(t) for t in self.live[: self.trained]]
        self.kept: dict[int, Tensors] = {}
        self.losses: dict[int, tuple[float, float, float]] = {}
        self.held = held_rows(job)
        self.rounds = 0
        self._methods: dict[str, Callable[[list[list[Visit]]], None]] = {
            "fedavg": self.fedavg,
            "fedprox": self.fedprox,
            "scaffold": self.scaffold,
            "ditto": self.ditto,
            "permfl": self.permfl,
            "jobfed": self.jobfed,
        }

    def round(self, teams: list[list[Visit]]) -> None:
        """One round; all devices that are polled, team by team."""
        self._methods[self.job.algorithm](teams)
        self.rounds += 1

    def option(self, name: str) -> float:
        """A hyper-parameter of the algorithm."""
        return float(ALGORITHMS[self.job.algorithm][name])  # type: ignore[arg-type]

    def load(self, model: Tensors) -> None:
        with torch.no_grad():
            for t, v in zip(self.live, model, strict=True):
                t.copy_(v)

    def taken(self) -> Tensors:
        """A copy of what the module holds now."""
        return [t.clone() for t in self.live]

    def train(
        self, start: Tensors, batches: Rows, drift: Tensors | None = None, pull: tuple[float, Tensors] | None = None
    ) -> None:
        """SGD on f(w) + <drift, w> + lam / 2 |w - anchor|^2, pull = (lam, anchor); leaves the module trained.

        :param batches: rows [S, B]
        """
        self.load(start)
        optimizer = torch.optim.SGD(self.module.parameters(), self.job.lr)
        cast = torch.autocast(self.job.device, torch.bfloat16) if self.job.bf16 else nullcontext()
        for rows in torch.from_numpy(batches).to(self.job.device):
            optimizer.zero_grad()
            with cast:
                loss = cross_entropy(self.module(self.x[rows]), self.y[rows])
            loss.backward()
            for k, p in enumerate(self.module.parameters()):
                if p.grad is not None and drift is not None:
                    p.grad += drift[k]
                if p.grad is not None and pull is not None:
                    p.grad += pull[0] * (p.detach() - pull[1][k])
            optimizer.step()

    def fedavg(self, teams: list[list[Visit]], mu: float = 0.0) -> None:
        """x <- mean of the trained models."""
        total, number = [torch.zeros_like(t) for t in self.model], sum(map(len, teams))
        for team in teams:
            for _, (batches,) in team:
                self.train(self.model, batches, pull=(mu, self.model) if mu else None)
                _add(total, self.live, 1 / number)
        self.model = total

    def fedprox(self, teams: list[list[Visit]]) -> None:
        """FedAvg with mu / 2 |w - x|^2 (Li et al. 2020, Eq. 2)."""
        self.fedavg(teams, self.option("mu"))

    def scaffold(self, teams: list[list[Visit]]) -> None:
        """Karimireddy et al. 2020, Algorithm 1, option II."""
        total, number = [torch.zeros_like(t) for t in self.model], sum(map(len, teams))
        moved, c, x = [torch.zeros_like(t) for t in self.variate], self.variate, self.model
        for team in teams:
            for i, (batches,) in team:
                own = self.kept.get(i) or [torch.zeros_like(t) for t in c]
                self.train(x, batches, drift=[a - b for a, b in zip(c, own, strict=True)])
                scale = 1 / (len(batches) * self.job.lr)
                # x and the module also hold the statistics of batch norms, which have no variate
                four = zip(own, c, x, self.live, strict=False)
                self.kept[i] = [a - b + scale * (before - after) for a, b, before, after in four]
                _add(total, self.live, 1 / number)
                _add(moved, [a - b for a, b in zip(self.kept[i], own, strict=True)], 1 / self.job.devices)
        self.model, self.variate = total, [a + b for a, b in zip(c, moved, strict=True)]

    def ditto(self, teams: list[list[Visit]]) -> None:
        """FedAvg, and beside it a model of every device that is pulled to the global one (Li et al. 2021)."""
        received = self.model
        self.fedavg([[(i, passes[:1]) for i, passes in team] for team in teams])
        for team in teams:
            for i, (_, batches) in team:
                self.train(self.kept.get(i, self.first), batches, pull=(self.option("lam"), received))
                self.kept[i] = self.taken()

    def permfl(self, teams: list[list[Visit]]) -> None:
        """Banerjee et al. 2024, Algorithm 1, with one team round."""
        lam, gamma, eta, beta = (self.option(k) for k in ("lam", "gamma", "eta", "beta"))
        x, mean = self.model, [torch.zeros_like(t) for t in self.model]
        for team in teams:
            theta = [torch.zeros_like(t) for t in x]
            for i, (batches,) in team:
                self.train(x, batches, pull=(lam, x))
                _add(theta, self.live, 1 / len(team))
                self.kept[i] = self.taken()
            # the first team round begins with w = x, so that the pull of the cloud is nothing
            _add(mean, [w + eta * lam * (t - w) for w, t in zip(x, theta, strict=True)], 1 / len(teams))
        self.model = [a + beta * gamma * (b - a) for a, b in zip(x, mean, strict=True)]

    def jobfed(self, teams: list[list[Visit]]) -> None:
        """JobFed with its own defaults but fixed teams: mix, judge, train, judge, follow the losses."""
        total, number = [torch.zeros_like(t) for t in self.model], sum(map(len, teams))
        for team in teams:
            for i, (batches,) in team:
                own, alpha = self.kept.get(i, self.first), self.losses.get(i, (0.5, 0.0, 0.0))[0]
                three = list(zip(self.model, own, self.private, strict=True))
                jg = self.judge([o if p else g for g, o, p in three], i)
                self.train([o if p else o + alpha * (g - o) for g, o, p in three], batches)
                self.kept[i] = self.taken()
                self.losses[i] = _followed(self.losses.get(i), jg, self.judge(self.kept[i], i))
                _add(total, self.kept[i], 1 / number)
        self.model = total

    def judge(self, model: Tensors, device: int) -> float:
        """The loss of a model on the held-out rows of a device."""
        self.load(model)
        self.module.eval()
        rows = torch.from_numpy(self.held[device]).to(self.job.device)
        with torch.no_grad():
            loss = float(cross_entropy(self.module(self.x[rows]), self.y[rows]))
        self.module.train()
        return loss


def _add(total: Tensors, more: Tensors, share: float) -> None:
    for a, b in zip(total, more, strict=True):
        a.add_(b, alpha=share)


def _followed(old: tuple[float, float, float] | None, jg: float, jl: float) -> tuple[float, float, float]:
    """JobFed's controller with eta 0.1, gamma and beta 0.5, dead band 0.01: the new alpha and the losses it saw."""
    alpha, jg_old, jl_old = old or (0.5, -1.0, -1.0)
    share = 0.5
    if old is not None:
        dg, dl = abs(jg - jg_old) / jg_old, abs(jl - jl_old) / jl_old
        share = 0.5 if max(dg, dl) < 1e-2 else dl / (dg + dl)
    weight = 0.5 * jg / (jg + jl) + 0.5 * share
    return min(1.0, max(0.0, alpha - 0.1 * (weight - 0.5))), jg, jl
