"""One call of `Task.train` as an operation of its own, which torch.func.vmap hands over whole: for all devices at once.

`LocalSGD` is a torch.autograd.Function with a rule for vmap. An algorithm that calls `task.train` below
`torch.func.vmap(device)` arrives in that rule with the stacked operands of all devices, and with the mark of those that
they share; the kernel of the task does the rest. Not below vmap it is the same kernel for a single device.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.func import vmap

from tierfed.algorithm import Data
from tierfed.errors import InputError
from tierfed.task import Task
from tierfed.tree import Params

Pull = tuple[float | Tensor, Params]
Kernel = Callable[["Work"], Params | None]
"""The entries that training changes, [c, ...]; None: this call is not for the kernel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Call:
    """What is the same for all devices of one call.

    :param given: the keys of the model that was handed in
    :param keys: those that are trained; :param moved: the statistics of batch norms in training mode
    :param drift: the keys of a drift; :param anchor: those of a pull
    :param lr: None: it is a tensor, as is :param lam: the factor of a pull
    """

    task: Task
    kernel: Kernel
    given: tuple[str, ...]
    keys: tuple[str, ...]
    moved: tuple[str, ...]
    drift: tuple[str, ...]
    anchor: tuple[str, ...]
    lr: float | None
    lam: float | None
    ragged: bool

    @property
    def out(self) -> tuple[str, ...]:
        """The keys that training changes."""
        return self.keys + self.moved


class Operands(NamedTuple):
    """The tensors of a call, flat: what an autograd.Function takes."""

    params: dict[str, Any]
    drift: dict[str, Any]
    anchor: dict[str, Any]
    lr: Any
    lam: Any
    data: tuple[Any, ...]  # x, y, rows, live, seed

    @classmethod
    def of(cls, call: Call, flat: list[Any]) -> "Operands":
        """The inverse of `flat`; also for what else is one per operand."""
        rest = iter(flat)
        params, drift, anchor = (dict(zip(keys, rest, strict=False)) for keys in (call.given, call.drift, call.anchor))
        lr = next(rest) if call.lr is None else call.lr
        lam = next(rest) if call.lam is None else call.lam
        return cls(params, drift, anchor, lr, lam, tuple(rest))


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """A call for c devices: every operand has a leading dimension, of c, or of 1 where the devices share it.

    :param lr: a number, or [1 | c]; lam alike
    :param x: [n, ...] the pool; y: [n, ...]
    :param rows: [c, T, B]; live: [c, T]; seed: [c, T], all steps of all passes in their order
    """

    call: Call
    c: int
    params: Params
    drift: Params
    anchor: Params
    lr: float | Tensor
    lam: float | Tensor
    x: Tensor
    y: Tensor
    rows: Tensor
    live: Tensor
    seed: Tensor

    def empty(self, key: str) -> Tensor:
        """Room for an entry of all devices' models [c, ...]."""
        p = self.params[key]
        return torch.empty(self.c, *p.shape[1:], dtype=p.dtype, device=p.device)


def packed(
    task: Task,
    kernel: Kernel,
    params: Params,
    data: Data,
    lr: float | Tensor,
    drift: Params | None,
    pull: Pull | None,
    keys: Collection[str],
    moved: Collection[str],
) -> tuple[Call, list[Tensor]]:
    """A call and its operands."""
    lam, anchor = pull or (0.0, {})
    call = Call(
        task=task,
        kernel=kernel,
        given=tuple(params),
        keys=tuple(keys),
        moved=tuple(moved),
        drift=tuple(k for k in keys if drift is not None and k in drift),
        anchor=tuple(k for k in keys if k in anchor),
        lr=None if isinstance(lr, Tensor) else float(lr),
        lam=None if isinstance(lam, Tensor) else float(lam),
        ragged=data.ragged,
    )
    flat = [*params.values(), *((drift or {})[k] for k in call.drift), *(anchor[k] for k in call.anchor)]
    flat += [v for v in (lr, lam) if isinstance(v, Tensor)]
    return call, [*flat, data.x, data.y, data.rows, data.live, data.seed]


class LocalSGD(torch.autograd.Function):
    """(call, *operands) -> what training changes, in the order of `call.out`."""

    @staticmethod
    def forward(call: Call, *flat: Tensor) -> tuple[Tensor, ...]:
        changed = _run(call, 1, list(flat), [None] * len(flat))
        return tuple(changed[k][0] for k in call.out)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing is kept for a derivative: there is none."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise _not_differentiable()

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Any:
        raise _not_differentiable()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: Call, *flat: Tensor) -> tuple[tuple[Tensor, ...], Any]:
        dims = list(in_dims[1:])
        changed = _run(call, info.batch_size, list(flat), dims)
        return tuple(changed[k] for k in call.out), (0,) * len(call.out)


def _not_differentiable() -> InputError:
    return InputError(
        "a method differentiates through task.train, which a fast kernel carries out without a graph; write its local "
        "loop with data.fold(step, carry) and task.grad, or take the kernel 'vmap'"
    )


def _run(call: Call, c: int, flat: list[Tensor], dims: list[int | None]) -> Params:
    """The kernel's result [c, ...]; the definition's where operands are not what a kernel can take."""
    flat = [t if d is None else t.movedim(d, 0) for t, d in zip(flat, dims, strict=True)]
    pool = dims[-5:-3]
    if pool != [None, None] or any(is_functorch_wrapped_tensor(t) for t in flat):
        return by_definition(call, c, flat, dims)
    with torch.no_grad():
        at = Operands.of(call, [_rows(t.detach(), d) for t, d in zip(flat, dims, strict=True)])
        x, y, rows, live, seed = at.data
        rows, live, seed = (t.expand(c, *t.shape[1:]).flatten(1, 2) for t in (rows, live, seed))
        work = Work(
            call=call,
            c=c,
            params=at.params,
            drift=at.drift,
            anchor=at.anchor,
            lr=_number(at.lr),
            lam=_number(at.lam),
            x=x[0],
            y=y[0],
            rows=rows,
            live=live,
            seed=seed,
        )
        changed = call.kernel(work)
    return by_definition(call, c, flat, dims) if changed is None else changed


def _rows(t: Tensor, dim: int | None) -> Tensor:
    """[c, ...], or [1, ...] where all devices share it: what one message to many is."""
    if dim is None:
        return t[None]
    return t[:1] if t.stride(0) == 0 else t


def _number(value: float | Tensor) -> float | Tensor:
    """A tensor that all devices share is a number."""
    return float(value) if isinstance(value, Tensor) and value.shape == (1,) else value


def by_definition(call: Call, c: int, flat: list[Tensor], dims: list[int | None]) -> Params:
    """`Task.train` as it is defined, step by step; operands [c, ...] where they have a dimension, shared otherwise."""

    def one(_: Tensor, *mapped: Tensor) -> Params:
        at = Operands.of(call, list(mapped))
        x, y, rows, live, seed = at.data
        none = rows.new_zeros(0)
        data = Data(x, y, rows, live, seed, none, none, ragged=call.ragged)
        pull = (at.lam, at.anchor) if call.anchor else None
        new = Task.train(call.task, at.params, data, at.lr, at.drift or None, pull, call.keys)
        return {k: new[k] for k in call.out}

    where = [0, *(None if d is None else 0 for d in dims)]
    return vmap(one, tuple(where))(torch.arange(c, device=flat[-1].device), *flat)  # type: ignore[no-any-return]
