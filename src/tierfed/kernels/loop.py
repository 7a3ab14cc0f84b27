"""The kernel "loop": one device after the other, in one module whose parameters stay where they are.

What `Task.step` spends on functional calls, on new dicts of parameters and on one update per tensor is saved; for
convolutions, which gain nothing from being stacked on a CPU, this is the fastest there is.
"""

import copy
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level

from tierfed.kernels.call import Work
from tierfed.task import Task
from tierfed.tree import Params


class Workbench:
    """A module in training mode that devices train in, one after the other.

    :param net: norms that do not train are in evaluation mode; it is taken over
    :param bf16: products in bfloat16, sums, parameters and statistics in float32
    """

    def __init__(self, task: Task, net: nn.Module, bf16: bool) -> None:
        self.net, self.loss, self.bf16 = net, task.loss, bf16
        self.pictures = task._pictures and next(net.parameters()).device.type == "cpu"
        parameters = dict(net.named_parameters())
        for p in parameters.values():
            p.requires_grad_(False)
        self.slots: dict[str, Tensor] = {**parameters, **dict(net.named_buffers())}
        self.seeds = [self.slots[k] for k in task._seeds]

    def run(self, work: Work) -> Params:
        """Local SGD of all devices of a call."""
        out = {k: work.empty(k) for k in work.call.out}
        trained = [self.slots[k] for k in work.call.keys]
        for p in trained:
            p.requires_grad_(True)
        try:
            for i in range(work.c):
                torch._foreach_copy_([self.slots[k] for k in work.params], [_row(v, i) for v in work.params.values()])
                self._train(work, i, trained)
                torch._foreach_copy_([out[k][i] for k in out], [self.slots[k] for k in out])
        finally:
            for p in trained:
                p.requires_grad_(False)
        return out

    def _train(self, work: Work, i: int, trained: list[Tensor]) -> None:
        lr, lam = (float(_row(v, i)) if isinstance(v, Tensor) else v for v in (work.lr, work.lam))
        push = {k: _row(v, i) * (lr * lam) for k, v in work.anchor.items()}
        for k, v in work.drift.items():
            push[k] = push[k].sub(_row(v, i), alpha=lr) if k in push else _row(v, i) * -lr
        pushed = [self.slots[k] for k in push]
        decay = work.call.task.weight_decay
        shrunk = {1.0 - lr * decay: [self.slots[k] for k in work.call.keys if k not in work.anchor]}
        shrunk.setdefault(1.0 - lr * (decay + lam), []).extend(self.slots[k] for k in work.anchor)
        steps = range(work.rows.shape[1]) if not work.call.ragged else work.live[i].nonzero().flatten().tolist()
        for t in steps:
            at = work.rows[i, t]
            for seed in self.seeds:
                seed.copy_(work.seed[i, t])
            grads = self._gradients(work.x.index_select(0, at), work.y.index_select(0, at), trained)
            for beta, some in shrunk.items():
                if beta != 1.0 and some:
                    torch._foreach_mul_(some, beta)
            torch._foreach_add_(trained, grads, alpha=-lr)
            if pushed:
                torch._foreach_add_(pushed, list(push.values()))

    def _gradients(self, x: Tensor, y: Tensor, trained: list[Tensor]) -> tuple[Tensor, ...]:
        if self.pictures and x.dim() == 4:
            x = x.to(memory_format=torch.channels_last)
        with torch.enable_grad():
            with torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext():
                out = self.net(x)
            loss = self.loss(out.float() if self.bf16 else out, y).mean()
            return torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)


def _row(t: Tensor, i: int) -> Tensor:
    return t[i if t.shape[0] > 1 else 0]


class Benches:
    """The workbenches of a task, one for each of its modes; they are not pickled."""

    def __init__(self, bf16: bool) -> None:
        self.bf16 = bf16
        self._made: dict[nn.Module, Workbench] = {}

    def __reduce__(self) -> tuple[type["Benches"], tuple[bool]]:
        return Benches, (self.bf16,)

    def run(self, task: Task, net: nn.Module, work: Work) -> Params | None:
        """Local SGD of all devices of a call in a module of a task; none below a derivative."""
        if maybe_current_level() is not None:
            return None
        if net not in self._made:
            self._made[net] = Workbench(task, copy.deepcopy(net), self.bf16)
        return self._made[net].run(work)


def fits(net: nn.Module, params: Params) -> bool:
    """Whether the parameters of a model can be copied into a module."""
    own = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    kinds = ((v, own.get(k)) for k, v in params.items())
    return all(s is not None and (v.dtype, v.device, v.shape) == (s.dtype, s.device, s.shape) for v, s in kinds)
