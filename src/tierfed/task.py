"""A model and its loss as pure functions of one flat dict of tensors: trainable parameters and batch-norm buffers
alike.
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level
from torch.func import functional_call, grad_and_value

from tierfed.algorithm import Batch, Data
from tierfed.dropout import replace_dropout
from tierfed.errors import InputError, nearest
from tierfed.lookup import imported
from tierfed.tree import Params, Tree, take

Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs [B, C], targets [B, ...]) -> loss of each sample [B]
_BatchNorm = nn.modules.batchnorm._BatchNorm
_NORM_ENTRIES = {"y": "weight", "b": "bias", "u": "running_mean", "s": "running_var"}  # MTFL's letters


@dataclass(frozen=True)
class _Pointwise:
    """A loss on numbers as a loss on samples: the mean over the outputs of a sample. Equal to its copies."""

    loss: Callable[..., Tensor]

    def __call__(self, out: Tensor, y: Tensor) -> Tensor:
        return self.loss(out, y.view(out.shape).to(out.dtype), reduction="none").flatten(1).mean(1)


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """Softmax cross-entropy of each sample [B]."""
    return F.cross_entropy(out, y, reduction="none")


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "mse": _Pointwise(F.mse_loss),
    "l1": _Pointwise(F.l1_loss),
    "huber": _Pointwise(F.huber_loss),
    "bce": _Pointwise(F.binary_cross_entropy_with_logits),
}


def loss_by_name(name: str) -> Loss:
    """A loss of LOSSES, or the user's own function by "package.module:function" (outputs, targets) -> loss per
    sample [B].

    :raises InputError: nobody knows the name, or it cannot be imported
    """
    if name in LOSSES:
        return LOSSES[name]
    if ":" not in name:
        raise InputError(
            f"unknown loss {name!r}; {nearest(name, LOSSES)}; or give your own as 'package.module:function'"
        )
    return imported("loss", name, callable)  # type: ignore[no-any-return]


Valued = Callable[[Params], tuple[Tensor, Params]]  # what is trained -> (loss [], statistics)


def _mapped(f: Valued, train: Params) -> tuple[Params, tuple[Tensor, Params]]:
    """(gradient, (loss, statistics)) below torch.func's transforms."""
    return grad_and_value(f, has_aux=True)(train)  # type: ignore[no-any-return]


def _grad_and_value(f: Valued, train: Params) -> tuple[Params, tuple[Tensor, Params]]:
    """The same bits from plain autograd, whose steps cost less (by a third for small models)."""
    if not train:
        loss, stats = f(train)
        return {}, (loss, stats)
    leaves = {k: v.detach().requires_grad_() for k, v in train.items()}
    with torch.enable_grad():
        loss, stats = f(leaves)
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(leaves, grads, strict=True)), (loss.detach(), stats)


def _descend(w: Tensor, g: Tensor, lr: float | Tensor) -> Tensor:
    return w - lr * g if isinstance(lr, Tensor) else torch.sub(w, g, alpha=lr)


class Task:
    """What a device learns: a module, a per-sample loss, and the names of the parts of its flat parameter dict.

    :param module: any nn.Module; the task works on a copy. Float parameters and the statistics of batch norms are the
        model that is trained, sent and averaged; every other buffer is a constant.
    :param loss: loss of each sample, see `LOSSES`
    :param weight_decay: adds weight_decay / 2 |w|^2 over the trainable entries to the loss that is trained
    :param public: samples that the cloud holds, if any
    :param classes: number of classes, where outputs [B, classes] are their logits; 0: a regression, or unknown
    :raises InputError: a batch norm that needs its batch counter (momentum=None), which cannot be averaged
    """

    mapped: ClassVar[bool] = False  # of a subclass: can its gradients be mapped by torch.func.vmap?

    def __init__(
        self,
        module: nn.Module,
        loss: Loss = cross_entropy,
        weight_decay: float = 0.0,
        public: Batch | None = None,
        classes: int = 0,
    ) -> None:
        self.module, self.loss, self.weight_decay = copy.deepcopy(module).train(), loss, weight_decay
        self.public, self.classes = public, classes
        self._seeds = replace_dropout(self.module)
        self.norms: dict[str, dict[str, str]] = {}
        self.buffers: list[str] = []
        for name, m in self.module.named_modules():
            if not isinstance(m, _BatchNorm):
                continue
            prefix = f"{name}." if name else ""
            self.norms[name] = {letter: prefix + entry for letter, entry in _NORM_ENTRIES.items()}
            if m.track_running_stats:
                if m.momentum is None:
                    raise InputError(
                        f"batch norm {name!r} has momentum=None: it needs a batch counter, which cannot be averaged"
                    )
                m.num_batches_tracked = None
                self.buffers += [prefix + "running_mean", prefix + "running_var"]
        self.trainable = [k for k, p in self.module.named_parameters() if p.requires_grad]
        self.constants = [k for k, p in self.module.named_parameters() if not p.requires_grad]
        self.layers = list(dict.fromkeys(k.rpartition(".")[0] for k in self.trainable))
        self._steers = self._norms_follow()
        self._eval = copy.deepcopy(self.module).eval()
        self._pictures = any(isinstance(m, nn.Conv2d) for m in self.module.modules())
        self._modes: dict[tuple[str, ...], nn.Module] = {}

    def _norms_follow(self) -> dict[str, set[str]]:
        """The trainable keys that put a batch norm into training mode: its own, else those of the layer before, else
        those of the first layer.
        """
        own: dict[str, set[str]] = {}
        for key in self.trainable:
            own.setdefault(key.rpartition(".")[0], set()).add(key)
        before: set[str] = next(iter(own.values()), set())
        out = {}
        for name, _ in self.module.named_modules():
            before = own.get(name, before)
            if name in self.norms:
                out[name] = before
        return out

    @property
    def keys(self) -> list[str]:
        """All entries of the model: trainable parameters, then batch-norm statistics."""
        return self.trainable + self.buffers

    def init(self) -> Params:
        """The initial model, as the module came."""
        state = self.module.state_dict()
        return {k: state[k].detach().clone() for k in self.keys}

    def norm_keys(self, letters: str = "usyb") -> list[str]:
        """Entries of the batch norms, by module type: y weight, b bias, u running mean, s running variance (MTFL)."""
        known = set(self.keys)
        return [n[c] for n in self.norms.values() for c in "ybus" if c in letters and n[c] in known]

    def layer_keys(self, layers: Collection[str]) -> list[str]:
        """All entries of the named layers; a layer is a module that owns parameters (weight and bias are one)."""
        return [k for k in self.keys if k.rpartition(".")[0] in layers]

    def head_keys(self, depth: int = 1) -> list[str]:
        """All entries of the last `depth` layers.

        :raises InputError: the model has fewer
        """
        if depth > len(self.layers):
            raise InputError(
                f"depth = {depth} layers, but the model has {len(self.layers)} ({', '.join(self.layers)}); wanted at "
                f"most {len(self.layers)}"
            )
        return self.layer_keys(self.layers[-depth:] if depth else [])

    def to(self, device: torch.device) -> None:
        """Moves whatever the task computes with, parameters that are given to it excepted."""
        for net in (self.module, self._eval, *self._modes.values()):
            net.to(device)
        if self.public is not None:
            self.public = Batch(*(t.to(device) for t in self.public))

    def outputs(self, params: Params, x: Tensor) -> Tensor:
        """Outputs [B, C] in evaluation mode: running statistics, no dropout."""
        return functional_call(self._eval, params, (self._laid_out(x),))  # type: ignore[no-any-return]

    def measure(self, params: Params, held: Batch) -> Tensor:
        """Mean loss on the live samples of a held-out batch in evaluation mode; 0 without any."""
        each = self.loss(self.outputs(params, held.x), held.y)
        return torch.where(held.live, each, 0.0).sum() / held.live.sum().clamp(min=1)

    def _mode(self, keys: Collection[str]) -> nn.Module:
        """The module in training mode; batch norms that do not train, nor the layer before, are in evaluation mode."""
        frozen = tuple(n for n, steers in self._steers.items() if steers and not steers & set(keys))
        if frozen not in self._modes:
            self._modes[frozen] = copy.deepcopy(self.module)
            for name in frozen:
                self._modes[frozen].get_submodule(name).eval()
        return self._modes[frozen]

    def grad(
        self, params: Params, batch: Batch, keys: Collection[str] | None = None, loss: Loss | None = None
    ) -> tuple[Params, Tensor, Params]:
        """Gradient over `keys` (all trainable by default), mean loss [], batch-norm statistics after this batch.

        :param loss: (outputs, batch.y) -> loss of each sample [B]; the task's own by default. What a distillation
            compares outputs with may be in batch.y
        """
        keys = self.trainable if keys is None else keys
        train = [k for k in self.trainable if k in set(keys)]
        g, value, stats = self._differentiate(self._mode(keys), params, train, batch, loss or self.loss)
        if self.weight_decay:
            g = {k: v + self.weight_decay * params[k] for k, v in g.items()}
        return g, value, stats

    def _differentiate(
        self, net: nn.Module, params: Params, keys: list[str], batch: Batch, loss: Loss
    ) -> tuple[Params, Tensor, Params]:
        """`grad` of the bare loss of a module: where it is computed."""
        seeds = dict.fromkeys(self._seeds, batch.seed)

        def f(train: Params) -> tuple[Tensor, Params]:
            stats = {k: self._own(params[k], batch.seed) for k in self.buffers}  # updated in place by the batch norms
            out = functional_call(net, {**params, **train, **stats, **seeds}, (self._laid_out(batch.x),))
            return loss(out, batch.y).mean(), stats

        g, (value, stats) = (_grad_and_value if maybe_current_level() is None else _mapped)(f, take(params, keys))
        return g, value, stats

    def _own(self, shared: Tensor, seed: Tensor) -> Tensor:
        """A copy; below vmap one for each device, also of what the devices share: a seed is every device's own."""
        return shared.clone() if maybe_current_level() is None else shared + torch.zeros_like(seed, dtype=shared.dtype)

    def _laid_out(self, x: Tensor) -> Tensor:
        """Pictures as a CPU's convolutions like them: channels last (1.4 times as fast)."""
        if self._pictures and x.dim() == 4 and x.device.type == "cpu" and maybe_current_level() is None:
            return x.to(memory_format=torch.channels_last)  # contiguous() leaves one channel as it is
        return x

    def step(
        self,
        params: Params,
        batch: Batch,
        lr: float | Tensor,
        drift: Params | None = None,
        pull: tuple[float | Tensor, Params] | None = None,
        keys: Collection[str] | None = None,
        loss: Loss | None = None,
    ) -> Params:
        """One SGD step on f(w) + <drift, w> + lam/2 |w - anchor|^2, pull = (lam, anchor), over `keys`.

        drift and anchor may cover some of the keys; the others have no such term. `loss` as in `grad`.
        """
        g, _, stats = self.grad(params, batch, keys, loss)
        if drift is not None:
            g = {k: v + drift[k] if k in drift else v for k, v in g.items()}
        if pull is not None:
            lam, anchor = pull
            g = {k: v + lam * (params[k] - anchor[k]) if k in anchor else v for k, v in g.items()}
        return {**params, **stats, **{k: _descend(params[k], v, lr) for k, v in g.items()}}

    def train(
        self,
        params: Params,
        data: Data,
        lr: float | Tensor,
        drift: Params | None = None,
        pull: tuple[float | Tensor, Params] | None = None,
        keys: Collection[str] | None = None,
    ) -> Params:
        """Plain local SGD (`step`) over all of `data`: the one loop that engines may fuse."""
        out: Params = data.fold(lambda w, batch: self.step(w, batch, lr, drift, pull, keys), params)
        return out

    def crossing(self, message: Tree) -> Tree:
        """What of a message crosses a device's own link: all of it, unless an edge holds a part of the model."""
        return message

    def exchanged(self) -> tuple[int, int]:
        """Bytes down and up that gradients have exchanged with an edge since this was asked last."""
        return 0, 0

    def verify(self, x: Tensor, y: Tensor) -> None:
        """Runs one training step on a small batch: what cannot be trained is found before a run, not in it.

        :raises InputError: the loss does not fit the outputs, or the forward pass is random by itself
        """
        batch = Batch(
            x, y, torch.ones((), dtype=torch.bool, device=x.device), torch.zeros((), dtype=torch.int64, device=x.device)
        )
        try:
            with torch.random.fork_rng(devices=[]):
                first, _, _ = self.grad(self.init(), batch)
                torch.rand(1)
                second, _, _ = self.grad(self.init(), batch)
                each = self.loss(self.outputs(self.init(), x), y)
        except (RuntimeError, ValueError, TypeError, IndexError) as err:
            reason: Any = str(err).splitlines()[0]
            raise InputError(
                f"a training step on a batch with x {list(x.shape)} and y {list(y.shape)} fails: {reason}; "
                "check that model, loss and labels fit together"
            ) from None
        if each.shape != (len(x),):
            raise InputError(
                f"the loss of a batch of {len(x)} samples has the shape {list(each.shape)}; wanted one loss per "
                f"sample, [{len(x)}]: no mean or sum over the batch (reduction='none')"
            )
        if any(not torch.equal(first[k], second[k]) for k in first):
            raise InputError(
                "two forward passes on one batch differ: the model draws random numbers itself; use nn.Dropout layers, "
                "whose masks tierfed draws from the run's seed, and no functional dropout"
            )
