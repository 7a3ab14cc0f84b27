"""Which kernel can run a task, and the task that runs it."""

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor

from tierfed.algorithm import Data
from tierfed.errors import InputError, nearest
from tierfed.kernels.call import Kernel, LocalSGD, Pull, packed
from tierfed.kernels.chain import Chain, Unfit, chain_of
from tierfed.kernels.fused import fused
from tierfed.task import Task
from tierfed.tree import Params

KERNELS = ("loop", "vmap", "fused", "compile", "graphs")
"""loop: devices one after the other, their training without the overhead of a functional call; vmap: all devices of a
chunk at once, by torch.func.vmap; fused: the same with a training step written by hand; compile: the step of vmap,
compiled; graphs: the fused step as a CUDA graph."""

BATCHED = frozenset(KERNELS) - {"loop"}
"""Those whose devices an engine maps by torch.func.vmap."""


class Equipped(Task):
    """A task whose `train` is one operation below vmap. It shares all else with the task that it was made of."""

    def __init__(self, task: Task) -> None:
        vars(self).update(vars(task))

    def kernel(self) -> Kernel:
        """What carries out a call."""
        raise NotImplementedError

    def suits(self, params: Params, data: Data, keys: Collection[str], moved: Collection[str]) -> bool:
        """Whether the kernel can carry out a call, from the shapes of one device."""
        raise NotImplementedError

    def train(
        self,
        params: Params,
        data: Data,
        lr: float | Tensor,
        drift: Params | None = None,
        pull: Pull | None = None,
        keys: Collection[str] | None = None,
    ) -> Params:
        wanted = set(self.trainable if keys is None else keys)
        train = [k for k in self.trainable if k in wanted]
        net = self._mode(self.trainable if keys is None else keys)
        moved = [
            n[letter]
            for name, n in self.norms.items()
            for letter in "us"
            if net.get_submodule(name).training and n[letter] in self.buffers
        ]
        if not train or data.rows.dim() != 3 or not self.suits(params, data, train, moved):
            return super().train(params, data, lr, drift, pull, keys)
        call, operands = packed(self, self.kernel(), params, data, lr, drift, pull, train, moved)
        changed = LocalSGD.apply(call, *operands)
        return {**params, **dict(zip(call.out, changed, strict=True))}


class FusedTask(Equipped):
    """The whole training of many devices in a few large products, see `tierfed.kernels.fused`."""

    def __init__(self, task: Task, chain: Chain) -> None:
        super().__init__(task)
        self.chain = chain

    def kernel(self) -> Kernel:
        return partial(fused, self.chain)

    def suits(self, params: Params, data: Data, keys: Collection[str], moved: Collection[str]) -> bool:
        first = next(layer for layer in self.chain.layers if layer.kind != "relu")
        entries = [k for layer in self.chain.layers for k in layer.entries]
        if any(k not in params for k in entries) or len({params[k].dtype for k in entries} | {data.x.dtype}) > 1:
            return False
        if data.rows.shape[-1] == 1 and any(layer.kind == "norm" for layer in self.chain.layers):
            return False  # a batch of one has no statistics; the definition says so
        flat = data.x.dim() == 2 or (self.chain.flat and data.x.is_contiguous())
        labels = data.y.dtype == torch.int64 and data.y.dim() == 1
        return flat and data.x[0].numel() == first.inputs and (labels or self.chain.loss == "mse")


def refusal(name: str, task: Task, device: torch.device) -> str:
    """Why a kernel cannot run a task on a device, in a user's words; empty: it can.

    :raises InputError: there is no such kernel
    """
    if name not in KERNELS:
        raise InputError(f"unknown kernel {name!r}; {nearest(name, KERNELS)}")
    try:
        if name == "fused":
            chain_of(task)
    except Unfit as why:
        return str(why)
    return ""


def equipped(task: Task, name: str) -> Task:
    """The task whose `train` runs a kernel; the given one is unchanged."""
    return FusedTask(task, chain_of(task))
