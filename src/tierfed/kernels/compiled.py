"""The kernel "compile": `Task.step`, mapped over the devices by vmap, traced to a graph and compiled by PyTorch.

For models that the fused kernel does not know. Every number of devices, batch width and set of operands is compiled
once, which takes seconds; what was compiled is kept with the task and is not pickled.
"""

import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from tierfed.algorithm import Batch
from tierfed.kernels.call import Work
from tierfed.tree import Params, Tree, tmap

BACKEND = "inductor"
COMPILERS = ("c++", "g++", "clang++")

Compiled = dict[tuple[Any, ...], Callable[..., Params]]


def missing(device: torch.device) -> str:
    """What compiling for a device needs and is not there; empty: nothing."""
    if device.type == "cpu" and not any(shutil.which(name) for name in COMPILERS):
        return f"needs a C++ compiler (none of {', '.join(COMPILERS)} is on the path)"
    return ""


def compiled(known: Compiled, work: Work) -> Params:
    """Local SGD of all devices of a call. :param known: what was compiled before; new steps are added"""
    call = work.call
    carry = {k: work.params[k].expand(work.c, *work.params[k].shape[1:]).contiguous() for k in call.out}
    fixed: Tree = {
        "params": {k: v for k, v in work.params.items() if k not in carry},
        "drift": work.drift,
        "anchor": work.anchor,
        **{name: v for name, v in (("lr", work.lr), ("lam", work.lam)) if isinstance(v, Tensor)},
    }
    dims = tmap(lambda t: None if t.shape[0] == 1 else 0, fixed)
    fixed = tmap(lambda t: t[0] if t.shape[0] == 1 else t, fixed)
    for t in range(work.rows.shape[1]):
        at = work.rows[:, t]
        batch = Batch(work.x[at], work.y[at], work.live[:, t].contiguous(), work.seed[:, t].contiguous())
        key = _signature(work, carry, fixed, batch)
        if key not in known:
            known[key] = _compile(work, dims, carry, fixed, batch)
        carry = known[key](carry, fixed, *batch)
    return carry


def _signature(work: Work, carry: Params, fixed: Tree, batch: Batch) -> tuple[Any, ...]:
    call = work.call
    kinds: list[Any] = []
    for tree in (carry, fixed, batch._asdict()):
        tmap(lambda t: kinds.append((tuple(t.shape), t.dtype, t.device)), tree)
    numbers = tuple(v for v in (call.lr, call.lam) if v is not None)
    return (call.keys, call.moved, call.given, call.drift, call.anchor, call.ragged, numbers, tuple(kinds))


def _compile(work: Work, dims: Tree, carry: Params, fixed: Tree, batch: Batch) -> Callable[..., Params]:
    call = work.call
    call.task._mode(call.keys)  # made before the trace, which could not follow it

    def one(params: Params, other: Tree, *data: Tensor) -> Params:
        now = Batch(*data)
        lr, lam = other.get("lr", work.lr), other.get("lam", work.lam)
        pull = (lam, other["anchor"]) if call.anchor else None
        new = call.task.step({**other["params"], **params}, now, lr, other["drift"] or None, pull, call.keys)
        return {k: torch.where(now.live, new[k], params[k]) if call.ragged else new[k] for k in call.out}

    from torch.fx.experimental.proxy_tensor import make_fx  # noqa: PLC0415

    traced = make_fx(vmap(one, (0, dims, 0, 0, 0, 0)))(carry, fixed, *batch)
    return torch.compile(traced, dynamic=False, backend=BACKEND)  # type: ignore[no-any-return]
