"""What the fused kernel can run: a chain of Linear, BatchNorm1d and ReLU, under a loss that it knows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional

from tierfed.dropout import CounterDropout
from tierfed.task import LOSSES, Task, cross_entropy

Kind = Literal["dense", "norm", "relu", "flat", "nothing"]
FITTING = "Linear, BatchNorm1d, ReLU and Flatten"
_RELUS = (torch.relu, functional.relu, "relu")
_FLATTENS = (torch.flatten, "flatten")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class UnfitError(Exception):
    """Why a task is not for a kernel, in a user's words."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a chain.

    :param name: of its module in the model; its entries are keys of the model's parameters
    :param inputs: features that a dense layer wants
    :param bias: of a dense layer; of a norm: is it affine
    :param tracked: has a norm running statistics
    """

    kind: Kind
    name: str = ""
    inputs: int = 0
    outputs: int = 0
    bias: bool = False
    tracked: bool = False
    momentum: float = 0.0
    eps: float = 0.0

    def key(self, entry: str) -> str:
        """The key of one of its entries in the parameters of the model."""
        return f"{self.name}.{entry}" if self.name else entry

    @property
    def entries(self) -> list[str]:
        """The keys of all its entries."""
        names = [
            *(["weight"] if self.kind == "dense" or (self.kind == "norm" and self.bias) else []),
            *(["bias"] if self.bias else []),
            *(["running_mean", "running_var"] if self.tracked else []),
        ]
        return [self.key(n) for n in names]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A model as a chain. :param flat: samples are flattened before the first layer that has parameters"""

    layers: tuple[Layer, ...]
    loss: Literal["cross_entropy", "mse"]
    flat: bool


class _Tracer(fx.Tracer):
    """Our own dropout is one layer, as PyTorch's are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, CounterDropout) or super().is_leaf_module(m, module_qualified_name)


def chain_of(task: Task) -> Chain:
    """The chain that a task's model is.

    :raises UnfitError: it is none, or its loss is not known
    """
    if task.loss is not cross_entropy and task.loss != LOSSES["mse"]:
        raise UnfitError("the loss is no cross_entropy or mse")
    layers = list(_layers(task.module))
    own = [layer for layer in layers if layer.kind in ("dense", "norm")]
    if not own or layers[-1].kind != "dense":
        raise UnfitError("the model does not end with a Linear layer")
    _check_owners(task, own)
    kinds = [layer.kind for layer in layers]
    return Chain(
        layers=tuple(layer for layer in layers if layer.kind != "flat"),
        loss="cross_entropy" if task.loss is cross_entropy else "mse",
        flat="flat" in kinds[: kinds.index(own[0].kind)],
    )


def _check_owners(task: Task, layers: list[Layer]) -> None:
    """Every parameter has one layer of the chain, and the other way round."""
    keys = [k for layer in layers for k in layer.entries]
    tensors = dict([*task.module.named_parameters(), *task.module.named_buffers()])
    if len(set(keys)) < len(keys) or any(k not in tensors for k in keys):
        raise UnfitError("two layers of the model share their parameters")
    idle = [k for k in task.keys if k not in keys]
    if idle:
        raise UnfitError(f"the parameter {idle[0]!r} belongs to no layer of a chain of {FITTING}")


def _layers(module: nn.Module) -> Iterator[Layer]:
    for name, m in module.named_modules():
        if any(getattr(m, hooks) for hooks in _HOOKS):
            raise UnfitError(f"the module {name or type(m).__name__!r} has hooks")
    if type(module) is nn.Linear:
        yield _layer("", module)
        return
    try:
        graph = _Tracer().trace(module)
    except Exception:  # whatever a user's forward does with a symbol
        raise UnfitError(f"the forward of {type(module).__name__} is no plain chain of layers") from None
    last: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "output":
            if node.args[0] is not last:
                raise UnfitError("the model returns something else than the output of its last layer")
            return
        if last is not None and (node.op == "placeholder" or node.all_input_nodes != [last] or len(last.users) != 1):
            raise UnfitError(f"the model is no chain: {node.name!r} takes more than the output of the layer before")
        if node.op == "call_module":
            yield from _named(str(node.target), module.get_submodule(str(node.target)))
        elif node.op != "placeholder":
            yield _function(node)
        last = node


def _named(name: str, m: nn.Module) -> Iterator[Layer]:
    layer = _layer(name, m)
    if layer.kind != "nothing":
        yield layer


def _layer(name: str, m: nn.Module) -> Layer:
    if type(m) is nn.Linear:
        return Layer(kind="dense", name=name, inputs=m.in_features, outputs=m.out_features, bias=m.bias is not None)
    if type(m) is nn.BatchNorm1d:
        momentum = 0.0 if m.momentum is None else m.momentum
        return Layer(
            kind="norm",
            name=name,
            inputs=m.num_features,
            outputs=m.num_features,
            bias=m.affine,
            tracked=m.track_running_stats,
            momentum=momentum,
            eps=m.eps,
        )
    if type(m) is nn.ReLU:
        return Layer(kind="relu")
    if type(m) is nn.Flatten and (m.start_dim, m.end_dim) == (1, -1):
        return Layer(kind="flat")
    if type(m) is nn.Identity or (type(m) is CounterDropout and m.p == 0.0):
        return Layer(kind="nothing")
    what = "Dropout" if type(m) is CounterDropout else type(m).__name__
    raise UnfitError(f"the model is no chain of {FITTING} (found {what} {name!r})")


def _function(node: fx.Node) -> Layer:
    target: str | Callable[..., Any] = node.target
    if target in _RELUS:
        return Layer(kind="relu")
    arguments = (*node.args[1:], *(node.kwargs[k] for k in ("start_dim", "end_dim") if k in node.kwargs))
    if target in _FLATTENS and arguments in ((1,), (1, -1)):
        return Layer(kind="flat")
    raise UnfitError(
        f"the model is no chain of {FITTING} (found {getattr(target, '__name__', target)!r} in its forward)"
    )
