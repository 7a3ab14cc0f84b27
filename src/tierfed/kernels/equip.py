"""Which kernel can run a task, and the task that runs it."""

import math
from collections import OrderedDict
from collections.abc import Collection
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tierfed.algorithm import Data
from tierfed.errors import InputError, nearest
from tierfed.kernels.call import Kernel, LocalSGD, Pull, packed
from tierfed.kernels.chain import Chain, UnfitError, chain_of
from tierfed.kernels.compiled import compiled, missing
from tierfed.kernels.fused import fused
from tierfed.kernels.graphs import graphs
from tierfed.kernels.loop import Benches, fits
from tierfed.kernels.native import Room, native, reordered, shapes
from tierfed.kernels.native import missing as unbuilt
from tierfed.task import Task
from tierfed.tree import Params

KERNELS = ("loop", "vmap", "fused", "native", "compile", "graphs")
"""loop: devices one after the other, each in a module that stays where it is; vmap: the devices of a chunk at once, by
torch.func.vmap; fused: the same with a training step written by hand; native: all steps of a device in C; compile: the
step of vmap, compiled; graphs: the fused step as a CUDA graph."""

BATCHED = frozenset(KERNELS) - {"loop"}
"""Those whose devices an engine maps by torch.func.vmap."""


class Equipped(Task):
    """A task whose `train` is one operation below vmap. It shares all else with the task that it was made of."""

    caches: ClassVar[tuple[str, ...]] = ()  # attributes that begin empty in another process

    def __init__(self, task: Task) -> None:
        vars(self).update(vars(task))

    def __getstate__(self) -> dict[str, Any]:
        return {k: type(v)() if k in self.caches else v for k, v in vars(self).items()}

    def kernel(self, net: nn.Module, params: Params, data: Data) -> Kernel | None:
        """What carries out a call in which the module in training mode is `net`; none: its definition."""
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
        usual = train and data.rows.dim() == 3 and params.keys() == set(self.keys)
        kernel = self.kernel(net, params, data) if usual else None
        if kernel is None:
            return super().train(params, data, lr, drift, pull, keys)
        learning = [n for name, n in self.norms.items() if net.get_submodule(name).training]
        moved = [k for n in learning for k in (n["u"], n["s"]) if k in self.buffers]
        call, operands = packed(self, kernel, params, data, lr, drift, pull, train, moved)
        changed: tuple[Tensor, ...] = LocalSGD.apply(call, *operands)  # type: ignore[no-untyped-call]
        return {**params, **dict(zip(call.out, changed, strict=True))}


class LoopTask(Equipped):
    """See `tierfed.kernels.loop`."""

    def __init__(self, task: Task, bf16: bool) -> None:
        super().__init__(task)
        self.benches = Benches(bf16)

    def kernel(self, net: nn.Module, params: Params, data: Data) -> Kernel | None:
        return partial(self.benches.run, self, net) if fits(net, params) else None


class FusedTask(Equipped):
    """See `tierfed.kernels.fused`."""

    def __init__(self, task: Task, chain: Chain) -> None:
        super().__init__(task)
        self.chain = chain

    def kernel(self, net: nn.Module, params: Params, data: Data) -> Kernel | None:
        return self._batched() if self._fits(params, data) else None

    def _batched(self) -> Kernel:
        return partial(fused, self.chain)

    def _fits(self, params: Params, data: Data) -> bool:
        chain = self.chain
        kinds = {(t.dtype, t.device) for t in (*params.values(), data.x)}
        if len(kinds) > 1 or any(k not in params for layer in chain.layers for k in layer.entries):
            return False
        if data.rows.shape[-1] < 2 and self.norms:
            return False  # a batch of one has no statistics: the definition says so
        labels = data.y.dtype == torch.int64 and data.y.dim() == 1
        values = math.prod(data.y.shape[1:]) == chain.layers[-1].outputs
        fits = labels if chain.loss == "cross_entropy" else values
        return fits and self._shaped(data)

    def _shaped(self, data: Data) -> bool:
        first = next(layer for layer in self.chain.layers if layer.inputs)
        flat = data.x.dim() == 2 or (self.chain.flat and data.x.is_contiguous())
        return flat and math.prod(data.x.shape[1:]) == first.inputs


class NativeTask(FusedTask):
    """See `tierfed.kernels.native`."""

    caches = ("room",)

    def __init__(self, task: Task, chain: Chain, threads: int) -> None:
        super().__init__(task, reordered(chain))
        self.room, self.threads = Room(), threads

    def _batched(self) -> Kernel:
        return partial(native, self.chain, self.room, self.threads)

    def _shaped(self, data: Data) -> bool:
        dims = 4 if self.chain.pictures else 2
        flat = data.x.dim() == dims or (self.chain.flat and not self.chain.pictures)
        return flat and data.x.is_contiguous() and shapes(self.chain, tuple(data.x.shape[1:])) is not None


class GraphsTask(FusedTask):
    """See `tierfed.kernels.graphs`."""

    caches = ("graphs",)

    def __init__(self, task: Task, chain: Chain) -> None:
        super().__init__(task, chain)
        self.graphs: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def _batched(self) -> Kernel:
        return partial(graphs, self.chain, self.graphs)


class CompiledTask(Equipped):
    """See `tierfed.kernels.compiled`."""

    caches = ("compiled",)

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.compiled: dict[tuple[Any, ...], Any] = {}

    def kernel(self, net: nn.Module, params: Params, data: Data) -> Kernel | None:
        return partial(compiled, self.compiled)


def refusal(name: str, task: Task, device: torch.device) -> str:
    """Why a kernel cannot run a task on a device, in a user's words; empty: it can. "loop" can run every task.

    :raises InputError: there is no such kernel
    """
    if name not in KERNELS:
        raise InputError(f"unknown kernel {name!r}; {nearest(name, KERNELS)}")
    if name in BATCHED and _has_its_own(task) and not (name == "vmap" and task.mapped):
        return f"{type(task).__name__} computes in its own way, as a model that is cut between device and edge does"
    if name == "graphs" and device.type != "cuda":
        return "needs CUDA"
    if name == "compile":
        return missing(device)
    try:
        if name in ("fused", "native", "graphs"):
            chain_of(task, pictures=name == "native")
    except UnfitError as why:
        return str(why)
    if name == "native":
        return "is for processors" if device.type != "cpu" else unbuilt(next(task.module.parameters()).dtype)
    return ""


def equipped(task: Task, name: str, *, bf16: bool = False, threads: int = 1) -> Task:
    """The task whose `train` runs a kernel; the given one is unchanged, and may be an equipped one.

    :param threads: that "native" trains devices with; the other kernels have those of PyTorch
    :param bf16: products in bfloat16, only for "loop": faster for convolutions, and other results
    :raises InputError: the kernel cannot run the task, whatever the device is; or it has no bf16
    """
    if bf16 and name != "loop":
        raise InputError(f"bf16 = true with the kernel {name!r}: only 'loop' has it; take that kernel or bf16 = false")
    kind = next((d for d in ("cpu", "cuda") if not refusal(name, task, torch.device(d))), None)
    if kind is None:
        why = refusal(name, task, torch.device("cpu"))
        raise InputError(f"the kernel {name!r} cannot run this task: {why}; take 'loop' or 'vmap'")
    plain = _plain(task)
    if name == "loop":
        return task if _has_its_own(task) else LoopTask(plain, bf16)
    if name == "compile":
        return CompiledTask(plain)
    if name == "vmap":
        return plain
    if name == "native":
        return NativeTask(plain, chain_of(plain, pictures=True), threads)
    return (FusedTask if name == "fused" else GraphsTask)(plain, chain_of(plain))


def _plain(task: Task) -> Task:
    """The task without a kernel."""
    if not isinstance(task, Equipped):
        return task
    out = Task.__new__(Task)
    vars(out).update(vars(task))
    return out


def _has_its_own(task: Task) -> bool:
    return type(task) is not Task and not isinstance(task, Equipped)
