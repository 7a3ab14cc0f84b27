"""What the kernels that are written by hand can run: a chain of layers under a loss that they know.

Both know Linear, BatchNorm1d, ReLU and Flatten; "native" knows pictures too: Conv2d, MaxPool2d and BatchNorm2d.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional

from tierfed.dropout import CounterDropout
from tierfed.task import LOSSES, Task, cross_entropy

Kind = Literal["dense", "conv", "norm", "relu", "pool", "flat", "nothing"]
Pair = tuple[int, int]  # height, width
FITTING = {
    False: "Linear, BatchNorm1d, ReLU and Flatten",
    True: "Linear, BatchNorm, ReLU, Flatten, and Conv2d and MaxPool2d without dilation, groups or strides of their own",
}
"""By whether pictures are known."""
_RELUS = (torch.relu, functional.relu, "relu")
_FLATTENS = (torch.flatten, "flatten")
_POOLS = (functional.max_pool2d, torch.max_pool2d)
_POOL_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_MOST_IN_A_WINDOW = 255  # of a pool
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class UnfitError(Exception):
    """Why a task is not for a kernel, in a user's words."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a chain.

    :param name: of its module in the model; its entries are keys of the model's parameters
    :param inputs: features that a dense layer wants, channels of a convolution
    :param pictures: does a layer want pictures [C, H, W]?
    :param window: of a convolution or a pool; a convolution has the stride 1, and at most window - 1 of padding
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
    pictures: bool = False
    window: Pair = (1, 1)
    padding: Pair = (0, 0)
    stride: Pair = (1, 1)

    def key(self, entry: str) -> str:
        """The key of one of its entries in the parameters of the model."""
        return f"{self.name}.{entry}" if self.name else entry

    @property
    def entries(self) -> list[str]:
        """The keys of all its entries."""
        names = [
            *(["weight"] if self.kind in ("dense", "conv") or (self.kind == "norm" and self.bias) else []),
            *(["bias"] if self.bias else []),
            *(["running_mean", "running_var"] if self.tracked else []),
        ]
        return [self.key(n) for n in names]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A model as a chain.

    :param flat: samples are flattened before the first layer that has parameters
    :param pictures: samples are pictures [C, H, W] to the first layer
    """

    layers: tuple[Layer, ...]
    loss: Literal["cross_entropy", "mse"]
    flat: bool
    pictures: bool = False


class _Tracer(fx.Tracer):
    """Our own dropout is one layer, as PyTorch's are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, CounterDropout) or super().is_leaf_module(m, module_qualified_name)


def chain_of(task: Task, pictures: bool = False) -> Chain:
    """The chain that a task's model is. :param pictures: are layers of pictures known?

    :raises UnfitError: it is none, or its loss is not known
    """
    if task.loss is not cross_entropy and task.loss != LOSSES["mse"]:
        raise UnfitError("the loss is no cross_entropy or mse")
    layers = list(_layers(task.module, pictures))
    own = [layer for layer in layers if layer.entries]
    if not own or layers[-1].kind != "dense":
        raise UnfitError("the model does not end with a Linear layer")
    _check_owners(task, own, pictures)
    _check_shapes(layers)
    kinds = [layer.kind for layer in layers]
    return Chain(
        layers=tuple(layer for layer in layers if layer.kind != "flat"),
        loss="cross_entropy" if task.loss is cross_entropy else "mse",
        flat="flat" in kinds[: layers.index(own[0])],
        pictures=any(layer.pictures for layer in layers),
    )


def _check_owners(task: Task, layers: list[Layer], pictures: bool) -> None:
    """Every parameter has one layer of the chain, and the other way round."""
    keys = [k for layer in layers for k in layer.entries]
    tensors = dict([*task.module.named_parameters(), *task.module.named_buffers()])
    if len(set(keys)) < len(keys) or any(k not in tensors for k in keys):
        raise UnfitError("two layers of the model share their parameters")
    idle = [k for k in task.keys if k not in keys]
    if idle:
        raise UnfitError(f"the parameter {idle[0]!r} belongs to no layer of a chain of {FITTING[pictures]}")


def _check_shapes(layers: list[Layer]) -> None:
    """Pictures are flattened once, for a dense layer."""
    flat = dense = not any(layer.pictures for layer in layers)
    for layer in layers:
        dense = dense or (flat and layer.kind == "dense")
        fits = not flat if layer.pictures else layer.kind in ("relu", "flat") or dense
        if not fits:
            raise UnfitError(f"the layer {layer.name!r} is no Linear behind a Flatten of pictures")
        flat = flat or layer.kind == "flat"


def _layers(module: nn.Module, pictures: bool) -> Iterator[Layer]:
    for name, m in module.named_modules():
        if any(getattr(m, hooks) for hooks in _HOOKS):
            raise UnfitError(f"the module {name or type(m).__name__!r} has hooks")
    if type(module) is nn.Linear:
        yield _layer("", module, pictures)
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
            yield from _named(str(node.target), module.get_submodule(str(node.target)), pictures)
        elif node.op != "placeholder":
            yield _function(node, pictures)
        last = node


def _named(name: str, m: nn.Module, pictures: bool) -> Iterator[Layer]:
    layer = _layer(name, m, pictures)
    if layer.kind != "nothing":
        yield layer


def _layer(name: str, m: nn.Module, pictures: bool) -> Layer:
    if type(m) is nn.Linear:
        return Layer(kind="dense", name=name, inputs=m.in_features, outputs=m.out_features, bias=m.bias is not None)
    if type(m) is nn.BatchNorm1d or (pictures and type(m) is nn.BatchNorm2d):
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
            pictures=type(m) is nn.BatchNorm2d,
        )
    if pictures and type(m) in (nn.Conv2d, nn.MaxPool2d):
        return _of_pictures(name, m)
    if type(m) is nn.ReLU:
        return Layer(kind="relu")
    if type(m) is nn.Flatten and (m.start_dim, m.end_dim) == (1, -1):
        return Layer(kind="flat")
    if type(m) is nn.Identity or (type(m) is CounterDropout and m.p == 0.0):
        return Layer(kind="nothing")
    what = "Dropout" if type(m) is CounterDropout else type(m).__name__
    raise UnfitError(f"the model is no chain of {FITTING[pictures]} (found {what} {name!r})")


def _of_pictures(name: str, m: nn.Module) -> Layer:
    if isinstance(m, nn.MaxPool2d) and not m.return_indices:
        return _pool(name, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode)
    if not isinstance(m, nn.Conv2d) or not _slides(m):
        raise UnfitError(f"the model is no chain of {FITTING[True]} (found {type(m).__name__} {name!r})")
    return Layer(
        kind="conv",
        name=name,
        inputs=m.in_channels,
        outputs=m.out_channels,
        bias=m.bias is not None,
        pictures=True,
        window=_pair(m.kernel_size),
        padding=_pair(m.padding),
    )


def _slides(m: nn.Conv2d) -> bool:
    """Whether a convolution only slides: what is beside it fits into its window."""
    if (m.stride, m.dilation, m.groups, m.padding_mode) != ((1, 1), (1, 1), 1, "zeros") or isinstance(m.padding, str):
        return False
    return all(p < k for p, k in zip(_pair(m.padding), _pair(m.kernel_size), strict=True))


def _pair(value: Any) -> Pair:
    height, width = value if isinstance(value, tuple) else (value, value)
    return int(height), int(width)


def _pool(
    name: str, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: Any = False
) -> Layer:
    size = _pair(kernel_size)
    if (_pair(padding), _pair(dilation), ceil_mode) != ((0, 0), (1, 1), False) or size[0] * size[1] > _MOST_IN_A_WINDOW:
        raise UnfitError(f"the pool {name!r} has padding, dilation, ceil_mode or a large window")
    return Layer(kind="pool", name=name, pictures=True, window=size, stride=_pair(stride or kernel_size))


def _function(node: fx.Node, pictures: bool) -> Layer:
    target: str | Callable[..., Any] = node.target
    if target in _RELUS:
        return Layer(kind="relu")
    arguments = (*node.args[1:], *(node.kwargs[k] for k in ("start_dim", "end_dim") if k in node.kwargs))
    if target in _FLATTENS and arguments in ((1,), (1, -1)):
        return Layer(kind="flat")
    if pictures and target in _POOLS:
        given = {**dict(zip(_POOL_ARGUMENTS, node.args[1:], strict=False)), **node.kwargs}
        if not given.pop("return_indices", False):
            return _pool(node.name, **given)
    raise UnfitError(
        f"the model is no chain of {FITTING[pictures]} (found {getattr(target, '__name__', target)!r} in its forward)"
    )
