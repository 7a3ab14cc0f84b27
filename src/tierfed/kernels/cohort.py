"""Devices that train together: their working weights, who of them has how many steps, and what moves every step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from tierfed.kernels.call import Work
from tierfed.tree import Params

Step = Callable[[], object]  # an operation with its operands and the place of its result


def ordered(work: Work) -> tuple[list[int], Tensor, Tensor | None]:
    """(real steps of each device in falling order, rows [c, T, B] with the real steps first, the order of the devices
    or None where they were sorted), so that those with a step left are a prefix at any time.
    """
    rows = work.rows
    if not work.call.ragged:
        return [rows.shape[1]] * work.c, rows, None
    steps = work.live.sum(1)
    first = torch.argsort((~work.live).to(torch.int8), dim=1, stable=True)
    rows = rows.take_along_dim(first[:, :, None], 1)
    counts = steps.tolist()
    if all(a >= b for a, b in pairwise(counts)):
        return counts, rows, None
    order = torch.argsort(steps, descending=True, stable=True)
    return steps[order].tolist(), rows[order], order


def spans(steps: Sequence[int], longest: int) -> Iterator[tuple[int, int, int]]:
    """(first step, end, devices that have these steps), none longer than `longest`; steps in falling order."""
    begin = 0
    for n in range(len(steps), 0, -1):
        for start in range(begin, steps[n - 1], longest):
            yield start, min(start + longest, steps[n - 1]), n
        begin = max(begin, steps[n - 1])


def part(t: Tensor, begin: int, end: int) -> Tensor:
    """The rows of some devices of a tensor [c, ...], or [1, ...] that all share."""
    return t if t.shape[0] == 1 else t[begin:end]


@dataclass(kw_only=True, slots=True, eq=False)
class Moving:
    """A trained entry of n devices: w <- beta w + push - scale grad.

    :param w: [n, ...]
    :param push: [n | 1, ...] what a drift and a pull add every step; none: nothing
    :param beta: what a pull and a weight decay leave of w; a number or [n, 1, ...]
    """

    w: Tensor
    push: Tensor | None
    beta: float | Tensor
    scale: float

    def first(self, n: int) -> "Moving":
        """The first n devices."""
        push = None if self.push is None else part(self.push, 0, n)
        beta = part(self.beta, 0, n) if isinstance(self.beta, Tensor) else self.beta
        return Moving(w=self.w[:n], push=push, beta=beta, scale=self.scale)

    def still(self) -> tuple[list[Step], float]:
        """All of a step that needs no gradient, but for a factor of w, which is the second."""
        if self.push is None and not isinstance(self.beta, Tensor):
            return [], self.beta
        if self.push is None:
            return [partial(self.w.mul_, self.beta)], 1.0
        if isinstance(self.beta, Tensor):
            return [partial(torch.addcmul, self.push, self.w, self.beta, out=self.w)], 1.0
        return [partial(torch.add, self.push, self.w, alpha=self.beta, out=self.w)], 1.0

    def shrink(self) -> list[Step]:
        """All of a step that needs no gradient."""
        steps, beta = self.still()
        return steps if beta == 1.0 else [*steps, partial(self.w.mul_, beta)]

    def descend_product(self, a: Tensor, b: Tensor) -> list[Step]:
        """A step along the gradient a b, [n, O, B] times [n, B, I], which is never made; w may be [n, O]."""
        steps, beta = self.still()
        w = self.w if self.w.dim() == 3 else self.w.unsqueeze(2)
        return [*steps, partial(w.baddbmm_, a, b, beta=beta, alpha=-self.scale)]


def moving(work: Work, weights: Params, key: str, begin: int, end: int, scale: float) -> Moving:
    """A trained entry of the devices begin … end of a call, whose weights are given [c, ...]."""
    w = weights[key][begin:end]

    def wide(value: float | Tensor) -> float | Tensor:
        if not isinstance(value, Tensor):
            return value
        return part(value.to(w.dtype), begin, end).view(-1, *[1] * (w.dim() - 1))

    lr, lam = wide(work.lr), wide(work.lam)
    push: Tensor | None = None
    decay: float | Tensor = work.call.task.weight_decay
    if key in work.anchor:
        push = part(work.anchor[key], begin, end) * (lr * lam)
        decay = decay + lam
    if key in work.drift:
        drift = part(work.drift[key], begin, end)
        if push is None:
            push = drift * -lr
        elif isinstance(lr, Tensor):
            push = torch.addcmul(push, drift, lr, value=-1.0)
        else:
            push = torch.sub(push, drift, alpha=lr)
    beta = 1.0 - lr * decay
    return Moving(w=w, push=push, beta=beta, scale=scale)
