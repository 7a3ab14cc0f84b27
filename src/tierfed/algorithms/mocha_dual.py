"""MOCHA on one device: ascent in the dual of its own linear model, sample by sample; the formulas are in mocha.py."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot

from tierfed.algorithm import Batch, Data
from tierfed.errors import InputError
from tierfed.task import Task
from tierfed.tree import Params, Tree

TINY = 1e-30
LOSSES = {"squared": (1.0, None), "squared_hinge": (1.0, torch.inf), "hinge": (0.0, 1.0)}  # g, top (none: not hinged)


def check_linear(task: Task) -> None:
    """:raises InputError: the model is anything but one linear layer on the flattened sample"""
    inner = [m for m in task.module.modules() if not list(m.children())]
    found = [m for m in inner if isinstance(m, nn.Linear)]
    if len(found) == 1 and all(isinstance(m, (nn.Linear, nn.Flatten, nn.Identity)) for m in inner):
        first = task.init()
        probe = {k: torch.sin(torch.arange(1, t.numel() + 1).to(t)).view_as(t) for k, t in first.items()}
        x = torch.cos(torch.arange(2 * found[0].in_features).to(found[0].weight)).view(2, -1)
        if [t.shape for t in first.values()] == [p.shape for p in found[0].parameters()]:
            weight, *bias = probe.values()
            try:
                if torch.allclose(task.outputs(probe, x), linear(x, weight, *bias), rtol=1e-4, atol=1e-4):
                    return
            except (RuntimeError, ValueError, TypeError, IndexError):
                pass
    raise InputError(
        f"MOCHA is for one linear layer on the flattened sample: its dual is that of a linear model. This one has the "
        f"layers {task.layers}, or is not linear in its input; take model.name = 'mclr'"
    )


def joined(params: Params, keys: Iterable[str]) -> Tensor:
    """Weight [C, D] and bias [C], if any, as one matrix [C, D + 1]; in the order of `keys`."""
    return torch.cat([params[k].reshape(len(params[k]), -1) for k in keys], 1)


def split(matrix: Tensor, like: Params) -> Params:
    """The inverse of `joined`."""
    sizes = [p[0].numel() for p in like.values()]
    parts = torch.split(matrix, sizes, 1)
    return {k: part.reshape(p.shape) for (k, p), part in zip(like.items(), parts, strict=True)}


def targets(y: Tensor, outputs: int, hinged: bool, like: Tensor) -> Tensor:
    """y [B, C]: numbers as they are, classes one against the rest.

    :raises InputError: numbers for a loss of classes
    """
    if y.is_floating_point():
        if hinged:
            raise InputError("the targets are numbers, and a hinge needs classes; set algorithm.loss = 'squared'")
        return y.reshape(len(y), outputs).to(like)
    return 2 * one_hot(y, outputs).to(like) - 1


def numbered(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(sorted rows, the number of each among the distinct ones) of rows of a whole pass: the same at every visit."""
    order = torch.sort(rows.reshape(-1)).values
    new = torch.cat([torch.zeros_like(order[:1]), (order[1:] != order[:-1]).long()])
    return order, new.cumsum(0)


def ascend(alpha: Tensor, v: Params, w: Params, q: Tensor, data: Data, loss: str) -> tuple[Tensor, Params]:
    """(alpha [samples, C], v) of a device after all batches.

    :param w: its model at the start
    :raises InputError: alpha has no room for all samples
    """
    most = data.rows.shape[1] * data.rows.shape[2]
    if most > len(alpha):
        raise InputError(
            f"a device has up to {most} training samples and room for {len(alpha)} dual variables; "
            f"set algorithm.samples = {most}"
        )
    curved, top = LOSSES[loss]
    order, number = numbered(data.rows[0])
    n, begin = number[-1] + 1, joined(w, v)
    biases = begin.shape[1] - v[next(iter(v))].shape[1]

    def step(state: Tree, batch: Batch) -> Tree:
        rows, u = batch.x, state["u"]  # [B], [C, D]
        at, same = number[torch.searchsorted(order, rows)], rows[:, None] == rows
        x = nn.functional.pad(data.x[rows].flatten(1).to(u), (0, biases), value=1.0)
        y = targets(batch.y, len(u), top is not None, u)
        a, z, products, moved = state["alpha"][at], x @ u.T, q / n * (x @ x.T), []
        for i in range(len(rows)):
            new = a[i] + (y[i] - z[i] - curved * a[i]) / (curved + products[i, i]).clamp(min=TINY)
            if top is not None:
                new = y[i] * (y[i] * new).clamp(0.0, top)
            moved.append(new - a[i])  # [C]
            z = z + products[:, i, None] * moved[-1]
            a = a + same[:, i, None] * moved[-1]  # a batch may hold a sample twice
        change = torch.stack(moved)
        d = change.T @ x / n
        return {"alpha": state["alpha"].index_add(0, at, change), "v": state["v"] + d, "u": u + q * d}

    places = data._replace(x=torch.arange(len(data.x), device=data.x.device))
    out = places.fold(step, {"alpha": alpha, "v": joined(v, v), "u": begin})
    return out["alpha"], split(out["v"], v)
