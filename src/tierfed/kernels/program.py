"""The step of local SGD for n devices at once, written by hand: forward, backward and update of a chain of layers.

No gradient of a weight is ever made: dW goes straight into W, `baddbmm_(g^T, x, alpha=-lr)`. All operations of a step
are bound once, to buffers that stay; beside its products a step costs a dozen calls. The mathematics is that of
`Task.step`; float64 results differ by rounding alone.

Layout: activations are [n, B, F]. Around a batch norm their memory is [B, n, F], so that the n norms of n devices are
one batch norm of n F features. The last outputs are [n, K, B]: their softmax runs over the contiguous batch.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from tierfed.kernels.chain import Chain, Layer
from tierfed.kernels.cohort import Moving, Step
from tierfed.tree import Params


class Program:
    """The operations of one step of n devices.

    :param weights: all entries of their models [n, ...]; those that are trained and the statistics of `learning` norms
        are changed in place
    :param moves: what is trained
    :param learning: the names of the norms that use the statistics of the batch
    :param rate: [n, 1, 1] what the gradient is multiplied with where every device has a rate of its own

    A step finds its samples in `x` [n B, I]. Between the operations `ahead` and `back` the target is taken from `g`
    [n, K, B].
    """

    def __init__(
        self,
        chain: Chain,
        weights: Params,
        moves: dict[str, Moving],
        learning: set[str],
        batch: int,
        rate: Tensor | None,
    ) -> None:
        self.chain, self.weights, self.moves, self.learning, self.batch = chain, weights, moves, learning, batch
        self.like = weights[chain.layers[-1].key("weight")]
        self.n = len(self.like)
        self.ones = self.like.new_ones(self.n, batch, 1)
        self.ahead: list[Step] = []
        self.back: list[Step] = []
        self._saved: dict[str, list[Tensor]] = {}
        self.x = self.like.new_empty(self.n * batch, next(layer.inputs for layer in chain.layers if layer.inputs))
        tape = self._forward(self.x.view(self.n, batch, -1))
        self.g = tape[-1]
        if chain.loss == "cross_entropy":
            self.g = torch.empty_like(tape[-1])
            self.ahead.append(partial(torch.softmax, tape[-1], 1, out=self.g))
        if rate is not None:
            self.back.append(partial(self.g.mul_, rate))
        self._backward(tape)

    def _kind(self, i: int) -> str:
        layers = self.chain.layers
        return layers[i].kind if 0 <= i < len(layers) else ""

    def _entry(self, layer: Layer, name: str) -> Tensor | None:
        return self.weights.get(layer.key(name))

    def _room(self, features: int, first: bool = False) -> Tensor:
        """[n, B, features] in memory, or [B, n, features]."""
        sizes = (self.batch, self.n) if first else (self.n, self.batch)
        room = self.like.new_empty(*sizes, features)
        return room.transpose(0, 1) if first else room

    def _forward(self, x: Tensor) -> list[Tensor]:
        """Input and outputs of all layers."""
        tape = [x]
        for i, layer in enumerate(self.chain.layers):
            if layer.kind == "dense":
                x = self._dense(layer, x, last=self._kind(i + 1) == "", norm=self._kind(i + 1) == "norm")
            elif layer.kind == "norm":
                x = self._norm(layer, x)
            else:  # in place: nobody else needs its input
                self.ahead.append(partial(x.clamp_min_, 0.0))
            tape.append(x)
        return tape

    def _dense(self, layer: Layer, x: Tensor, last: bool, norm: bool) -> Tensor:
        w, b = self.weights[layer.key("weight")], self._entry(layer, "bias")
        if last:
            y = self.like.new_empty(self.n, layer.outputs, self.batch)
            by = None if b is None else b.unsqueeze(2)
            operands = (w, x.transpose(1, 2))
        else:
            y = self._room(layer.outputs)
            by = None if b is None else b.unsqueeze(1)
            operands = (x, w.transpose(1, 2))
        if norm and by is not None:  # bias and the change of layout in one pass
            z = self._room(layer.outputs, first=True)
            self.ahead += [partial(torch.bmm, *operands, out=y), partial(torch.add, y, by, out=z)]
            return z
        self.ahead.append(
            partial(torch.bmm, *operands, out=y) if by is None else partial(torch.baddbmm, by, *operands, out=y)
        )
        return y

    def _side_by_side(self, t: Tensor, steps: list[Step]) -> Tensor:
        """[n, B, F] as [B, n F]; a copy where memory is laid out otherwise."""
        if not t.transpose(0, 1).is_contiguous():
            room = self._room(t.shape[2], first=True)
            steps.append(partial(room.copy_, t))
            t = room
        return t.transpose(0, 1).view(self.batch, -1)

    def _norm(self, layer: Layer, x: Tensor) -> Tensor:
        x = self._side_by_side(x, self.ahead)
        learns = layer.name in self.learning
        y = torch.empty_like(x)
        saved = [x.new_empty(x.shape[1] if learns else 0) for _ in "ms"]
        operands: list[Any] = [x, *self._norm_entries(layer), learns, layer.momentum, layer.eps]
        self.ahead.append(partial(torch.native_batch_norm, *operands, out=(y, *saved)))
        self._saved[layer.name] = [x, *saved]
        return y.view(self.batch, self.n, -1).transpose(0, 1)

    def _norm_entries(self, layer: Layer) -> list[Tensor | None]:
        found = [self._entry(layer, k) for k in ("weight", "bias", "running_mean", "running_var")]
        return [None if t is None else t.reshape(-1).contiguous() for t in found]  # shared ones are copied

    def _backward(self, tape: list[Tensor]) -> None:
        layers, g = self.chain.layers, self.g
        first = min(i for i, layer in enumerate(layers) if self.moves.keys() & set(layer.entries))
        for i in range(len(layers) - 1, first - 1, -1):
            if layers[i].kind == "dense":
                gt = g if i == len(layers) - 1 else g.transpose(1, 2)
                g = self._dense_back(layers[i], tape[i], gt, i > first)
            elif layers[i].kind == "norm":
                g = self._norm_back(layers[i], g, i > first)
            else:
                down = self._room(g.shape[2], first=True) if self._kind(i - 1) == "norm" else g
                threshold = torch.ops.aten.threshold_backward.grad_input
                self.back.append(partial(threshold, g, tape[i + 1], 0, grad_input=down))
                g = down

    def _dense_back(self, layer: Layer, x: Tensor, gt: Tensor, further: bool) -> Tensor:
        """The gradient of its input, from the one of its output [n, O, B]; then its own step."""
        down = gt
        if further:
            down = self._room(x.shape[2])
            self.back.append(partial(torch.bmm, gt.transpose(1, 2), self.weights[layer.key("weight")], out=down))
        for entry, factor in (("weight", x), ("bias", self.ones)):
            if layer.key(entry) in self.moves:
                self.back += self.moves[layer.key(entry)].descend_product(gt, factor)
        return down

    def _norm_back(self, layer: Layer, g: Tensor, further: bool) -> Tensor:
        x, mean, inverse = self._saved[layer.name]
        weight, _, *running = self._norm_entries(layer)
        gradient = self._side_by_side(g, self.back)
        down = self._room(layer.outputs)
        place = down.transpose(0, 1)
        own = {at: self.moves.get(layer.key(entry)) for at, entry in ((1, "weight"), (2, "bias"))}
        into = [(at, move.w.view(-1), move.scale, move.shrink()) for at, move in own.items() if move is not None]
        mask = [further, *(move is not None for move in own.values())]
        learns = layer.name in self.learning
        differentiate = torch.ops.aten.native_batch_norm_backward.default

        def back() -> None:
            grads = differentiate(gradient, x, weight, *running, mean, inverse, learns, layer.eps, mask)
            if further:
                place.copy_(grads[0].view(place.shape))
            for at, w, scale, before in into:
                for step in before:
                    step()
                w.sub_(grads[at], alpha=scale)

        self.back.append(back)
        return down
