"""The kernel "fused": the local SGD of many devices, some of them side by side, by one `Program` for all steps."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tierfed.kernels.call import Work
from tierfed.kernels.chain import Chain
from tierfed.kernels.cohort import moving, ordered, part, spans
from tierfed.kernels.program import Program
from tierfed.tree import Params, tmap

CACHE_BYTES = 2 << 20  # of a core, for the weights and activations of devices side by side
LEAST = 8  # devices side by side even where the cache holds fewer: the calls of a step cost more than the cache saves
_SPAN = 64  # steps whose targets are laid out at once


def fused(chain: Chain, work: Work) -> Params | None:
    """Local SGD of all devices of a call; none where a label is no class."""
    if not fits_labels(chain, work):
        return None
    steps, rows, order = ordered(work)
    if order is not None:
        work = _sorted(work, order)
    weights = {k: work.empty(k).copy_(work.params[k]) for k in work.call.out}
    together = _together(chain, work, rows.shape[2])
    for begin in range(0, work.c, together):
        end = min(begin + together, work.c)
        if steps[begin]:
            Cohort(chain, work, weights, begin, end).run(steps[begin:end], rows[begin:end])
    if order is None:
        return weights
    back = torch.argsort(order)
    return {k: v[back] for k, v in weights.items()}


def fits_labels(chain: Chain, work: Work) -> bool:
    """Whether all labels are classes; those that are not the loss ignores, or refuses."""
    if chain.loss != "cross_entropy":
        return True
    labels = work.y[work.rows]
    return not bool(((labels < 0) | (labels >= chain.layers[-1].outputs)).any())


def _sorted(work: Work, order: Tensor) -> Work:
    def by_order(value: Any) -> Any:
        return value[order] if isinstance(value, Tensor) and value.shape[0] > 1 else value

    params, drift, anchor = (tmap(by_order, tree) for tree in (work.params, work.drift, work.anchor))
    return replace(work, params=params, drift=drift, anchor=anchor, lr=by_order(work.lr), lam=by_order(work.lam))


def _together(chain: Chain, work: Work, batch: int) -> int:
    """How many devices take their steps side by side: as many as a core's cache holds; all on a GPU."""
    if work.x.device.type != "cpu":
        return work.c
    floats = sum(work.params[k][0].numel() for k in work.call.keys)
    floats *= 1 + bool(work.drift) + bool(work.anchor)
    floats += batch * sum(layer.inputs + layer.outputs for layer in chain.layers)
    return max(LEAST, CACHE_BYTES // (floats * work.x.element_size()))


class Cohort:
    """Some devices of a call, by falling number of steps, and the weights [c, ...] of all that they work on."""

    def __init__(self, chain: Chain, work: Work, weights: Params, begin: int, end: int) -> None:
        self.chain, self.pool, self.y, self.batch = chain, work.x.flatten(1), work.y, work.rows.shape[2]
        own = {k: weights.get(k, work.params[k]) for layer in chain.layers for k in layer.entries}
        self.weights = {k: part(v, begin, end).expand(end - begin, *v.shape[1:]) for k, v in own.items()}
        self.rate: Tensor | None = None
        self.outputs = chain.layers[-1].outputs
        scale = 1.0 / self.batch  # the loss is a mean
        if isinstance(work.lr, Tensor):
            self.rate = part(work.lr, begin, end).to(self.pool.dtype).view(-1, 1, 1)
        else:
            scale *= work.lr
        if chain.loss == "mse":
            scale *= 2.0 / self.outputs
        self.moving = {k: moving(work, weights, k, begin, end, scale) for k in work.call.keys}
        moved = set(work.call.moved)
        self.learning = {m.name for m in chain.layers if not m.tracked or m.key("running_mean") in moved}

    def program(self, n: int) -> Program:
        """A step of the first n devices."""
        weights = {k: v[:n] for k, v in self.weights.items()}
        moves = {k: m.first(n) for k, m in self.moving.items()}
        return Program(
            self.chain, weights, moves, self.learning, self.batch, None if self.rate is None else self.rate[:n]
        )

    def run(self, steps: Sequence[int], rows: Tensor) -> None:
        """All steps. :param rows: [c, T, B]"""
        program: Program | None = None
        for start, stop, n in spans(steps, _SPAN):
            if program is None or program.n != n:
                program = self.program(n)
            at = rows[:n, start:stop].transpose(0, 1).contiguous()  # [S, n, B]
            for which, target in zip(at.flatten(1).unbind(), self.targets(at).unbind(), strict=True):
                self.step(program, which, target)

    def step(self, program: Program, rows: Tensor, target: Tensor) -> None:
        """One step. :param rows: [n B] of the pool; :param target: [n, K, B]"""
        torch.index_select(self.pool, 0, rows, out=program.x)
        for ahead in program.ahead:
            ahead()
        program.g.sub_(target)
        for back in program.back:
            back()

    def targets(self, rows: Tensor) -> Tensor:
        """What the outputs should be [S, n, K, B], of rows [S, n, B]."""
        y = self.y[rows]
        if self.chain.loss == "mse":
            return y.reshape(*rows.shape, self.outputs).transpose(2, 3).to(self.pool.dtype)
        classes = torch.arange(self.outputs, device=y.device)
        return (y.unsqueeze(2) == classes[:, None]).to(self.pool.dtype)
