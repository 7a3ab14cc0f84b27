"""Split learning: a model cut between a device and its edge, which train it together by messages.

Offloading of PerFit (Wu, He, Chen 2020), after Gupta and Raskar 2018 and, label-private, Vepakomma et al. 2018. A model
is a chain of layers; the cut parts it into a front on the device and a back on the edge. For every minibatch the front
sends h = front(x) [B, s] and the labels, the back answers with dL/dh [B, s]; each side has the gradient of its own
parameters then, and makes the same step as if the model were whole. With a tail (U-shape) the last layers and the
labels stay on the device: h goes up, the edge's output comes down, its gradient goes up, dL/dh comes down.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch._C._functorch import maybe_current_level
from torch.func import functional_call

from tierfed.algorithm import Batch
from tierfed.errors import InputError, nearest
from tierfed.settings import Positive
from tierfed.task import Loss, Task
from tierfed.tree import Params, Tree, nbytes
from tierfed.wire import decode, encode

BEST = "auto"


@dataclass(frozen=True, kw_only=True)
class OffloadSettings:
    """What devices leave to their edge: the fog in a tree, the cloud in a flat one."""

    mode: Literal["none", "edge", "split"] = "none"
    """none: devices train; edge: they trust it, raw data go up once and all training is there; split: the model is cut
    and both train it together."""
    cut: str = BEST
    """The layer after which the model is cut, a child of its nn.Sequential; "auto": the one that needs the least of
    `minimize`, see `tierfed show CONFIG --offload`."""
    tail: str = ""
    """The layer after which the last part of the model is on the device again, and the labels stay there; none: the
    edge has all that follows the cut, and gets the labels."""
    edge_speed: Positive = 10.0
    """How many times as fast as a device its edge computes."""
    minimize: Literal["seconds", "joules", "bytes"] = "seconds"
    """What the recommended cut needs the least of, per round of the median device."""


def layers_of(module: nn.Module) -> list[str]:
    """The names of the layers of a chain.

    :raises InputError: the module is no chain that could be cut, or one parameter is in two of its layers
    """
    chain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    if not chain or len(module) < 2:  # type: ignore[arg-type]
        raise InputError(
            f"a model of type {type(module).__name__} cannot be cut: wanted an nn.Sequential of two layers or more, "
            "whose children are run one after the other; build the model as one (a layer may be any module), or set "
            "offload.mode to 'edge' or 'none'"
        )
    owner: dict[int, str] = {}
    for name, layer in module.named_children():
        for p in (*layer.parameters(), *layer.buffers()):
            if owner.setdefault(id(p), name) != name:
                raise InputError(
                    f"the layers {owner[id(p)]!r} and {name!r} of the model share a parameter, so they cannot be on "
                    "two machines; put both into one layer, or set offload.mode to 'edge' or 'none'"
                )
    return list(dict(module.named_children()))


def bounds(layers: list[str], cut: str, tail: str = "") -> tuple[int, ...]:
    """Where the parts of a model end: numbers of layers [parts], the last one is all of them.

    :raises InputError: no such layer, nothing for the edge, nothing for the tail, or a tail before the cut
    """
    for key, name in (("cut", cut), *([("tail", tail)] if tail else [])):
        if name not in layers:
            raise InputError(
                f"offload.{key} = {name!r}: the model has no such layer; {nearest(name, layers)} "
                f"(in this order: {', '.join(layers)})"
            )
    end, last = len(layers), layers.index(cut) + 1
    if last == end:
        raise InputError(
            f"offload.cut = {cut!r} is the last layer: nothing would be left for the edge; cut after one of "
            f"{', '.join(layers[:-1])}, or set offload.mode = 'none'"
        )
    if not tail:
        return last, end
    begin = layers.index(tail) + 1
    if begin <= last or begin == end:
        why = "not behind the cut" if begin <= last else "the last layer: nothing would be left for the device after it"
        behind = layers[last:-1]
        then = f"take one of {', '.join(behind)}" if behind else "cut earlier"
        raise InputError(f"offload.tail = {tail!r} is {why} (offload.cut = {cut!r}); {then}, or leave the tail out")
    return last, begin, end


class Part:
    """A part of a model on one machine. It holds its own layers and what it was given of their parameters; whatever
    else it learns came in a message.

    :param keys: those of its parameters that are trained
    """

    def __init__(self, layers: nn.Sequential, params: Params, keys: Collection[str], constants: Params) -> None:
        self.layers = layers
        names = {k for k, _ in layers.named_parameters()} | {k for k, _ in layers.named_buffers()}
        self.keys = [k for k in keys if k in names]
        self.trained = {k: params[k].detach().requires_grad_() for k in self.keys}
        self.rest = {k: v for k, v in {**params, **constants}.items() if k in names and k not in self.trained}
        self.x = self.out = torch.empty(0)

    def forward(self, x: Tensor, follow: bool) -> Tensor:
        """Its output. :param follow: the gradient of the input will be asked for"""
        self.x = x.detach().requires_grad_(follow)
        with torch.enable_grad():
            self.out = functional_call(self.layers, {**self.rest, **self.trained}, (self.x,))
        return self.out.detach()

    def backward(self, out: Tensor, by: Tensor | None = None) -> tuple[Params, Tensor | None]:
        """(gradient of its parameters, gradient of its input if that is followed) of `out`.

        :param out: its own output, or a number made of it
        :param by: the gradient of the loss with respect to `out`
        """
        of = [*self.trained.values(), *([self.x] if self.x.requires_grad else [])]
        if not of:
            return {}, None
        grads = torch.autograd.grad(out, of, by, allow_unused=True, materialize_grads=True)
        return dict(zip(self.keys, grads, strict=False)), grads[-1] if self.x.requires_grad else None


class SplitTask(Task):
    """A task whose gradients are computed in two places; parameters, loss and statistics are those of the whole one.

    :param task: the whole one; the new one shares its modules
    :param cut: the layer after which the edge begins; :param tail: the one after which the device begins again
    :raises InputError: the model cannot be cut there
    """

    def __init__(self, task: Task, cut: str, tail: str = "") -> None:
        vars(self).update(vars(task))  # no copies: it is the same task, computed elsewhere
        self.bounds = bounds(layers_of(task.module), cut, tail)
        self.asked = False  # for any gradient so far
        self._bytes = {"down": 0, "up": 0}
        at_edge = tuple(f"{name}." for name in layers_of(task.module)[slice(*self.bounds[:2])])
        self.edge_keys = {k for k in self.keys if k.startswith(at_edge)}
        """What the edge holds of the model."""

    def crossing(self, message: Tree) -> Tree:
        """Without the entries of the edge's layers, wherever they are in the message."""
        return {
            k: self.crossing(v) if isinstance(v, dict) else v for k, v in message.items() if k not in self.edge_keys
        }

    def exchanged(self) -> tuple[int, int]:
        out = self._bytes["down"], self._bytes["up"]
        self._bytes = {"down": 0, "up": 0}
        return out

    def _parts(self, net: nn.Module) -> list[nn.Sequential]:
        """The layers of each part, by their names in the whole."""
        children, begin, out = list(net.named_children()), 0, []
        for end in self.bounds:
            out.append(nn.Sequential())
            for name, layer in children[begin:end]:
                out[-1].add_module(name, layer)
            begin = end
        return out

    def _send(self, way: Literal["down", "up"], **message: Tensor) -> Tree:
        """What arrives at the other end; its bytes are counted here."""
        self._bytes[way] += nbytes(message)
        return decode(encode(message), next(iter(message.values())).device)

    def _differentiate(
        self, net: nn.Module, params: Params, keys: list[str], batch: Batch, loss: Loss
    ) -> tuple[Params, Tensor, Params]:
        if maybe_current_level() is not None:
            raise InputError(
                "a gradient that is differentiated again or computed for many devices at once cannot cross a cut "
                "model; take the serial engine and a method of first order (per-fedavg: order 'fo' or 'hf'), or set "
                "offload.mode to 'edge' or 'none'"
            )
        self.asked = True
        stats = {k: params[k].clone() for k in self.buffers}  # updated in place by the batch norms
        if batch.live.dim() == 0 and not batch.live:  # a step that is not made exchanges nothing
            return {k: torch.zeros_like(params[k]) for k in keys}, params[keys[0]].new_zeros(()), stats
        # dropout masks are drawn from the step's seed, which both sides know without a message
        constants = dict.fromkeys(self._seeds, batch.seed)
        given = {**params, **stats}
        front, edge, *tail = (Part(layers, given, keys, constants) for layers in self._parts(net))
        h = front.forward(self._laid_out(batch.x), False)
        if tail:
            g, value, back = self._u_shaped(front, edge, tail[0], h, batch, loss)
        else:
            up = self._send("up", h=h, y=batch.y)
            edge.forward(self._laid_out(up["h"]), bool(front.keys))
            value = loss(edge.out, up["y"]).mean()
            g, back = edge.backward(value)
        if back is not None:
            g |= front.backward(front.out, self._laid_out(self._send("down", g=back)["g"]))[0]
        return {k: g[k] for k in keys}, value.detach(), stats

    def _u_shaped(
        self, front: Part, edge: Part, tail: Part, h: Tensor, batch: Batch, loss: Loss
    ) -> tuple[Params, Tensor, Tensor | None]:
        """(gradients of edge and tail, loss, what the front gets): the edge never sees a label or an output."""
        follows = bool(front.keys)
        middle = edge.forward(self._laid_out(self._send("up", h=h)["h"]), follows)
        tail.forward(self._laid_out(self._send("down", h=middle)["h"]), follows or bool(edge.keys))
        value = loss(tail.out, batch.y).mean()
        g, back = tail.backward(value)
        if back is None:
            return g, value, None
        of_edge, further = edge.backward(edge.out, self._laid_out(self._send("up", g=back)["g"]))
        return {**g, **of_edge}, value, further

    def outputs(self, params: Params, x: Tensor) -> Tensor:
        """As `Task.outputs`; the samples go through the cut, and without a tail the outputs come back."""
        if maybe_current_level() is not None:
            return super().outputs(params, x)
        front, edge, *tail = (Part(layers, params, (), {}) for layers in self._parts(self._eval))
        up = self._send("up", h=front.forward(self._laid_out(x), False))
        down = self._send("down", h=edge.forward(self._laid_out(up["h"]), False))["h"]
        return tail[0].forward(self._laid_out(down), False) if tail else down

    def measure(self, params: Params, held: Batch) -> Tensor:
        """As `Task.measure`; the samples go through the cut, the loss comes back."""
        if maybe_current_level() is not None or not bool(held.live.any()):
            return super().measure(params, held)
        front, edge, *tail = (Part(layers, params, (), {}) for layers in self._parts(self._eval))
        h = front.forward(self._laid_out(held.x), False)
        if not tail:
            up = self._send("up", h=h, y=held.y)
            each = self.loss(edge.forward(self._laid_out(up["h"]), False), up["y"])
        else:
            h = edge.forward(self._laid_out(self._send("up", h=h)["h"]), False)
            each = self.loss(tail[0].forward(self._laid_out(self._send("down", h=h)["h"]), False), held.y)
        value = torch.where(held.live, each, 0.0).sum() / held.live.sum().clamp(min=1)
        return value if tail else self._send("down", loss=value)["loss"]  # type: ignore[no-any-return]
