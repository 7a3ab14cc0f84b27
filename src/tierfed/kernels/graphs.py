"""The kernel "graphs": all steps of a call as one CUDA graph of the fused step.

On a GPU the launches of a small model's operations take longer than the operations. A graph is captured once for each
shape of a call, on buffers of its own: a call copies its operands there, replays, and copies the models out.
"""

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tierfed.kernels.call import Work
from tierfed.kernels.chain import Chain
from tierfed.kernels.fused import Cohort, fits_labels, fused
from tierfed.tree import Params

MOST = 8  # graphs that a task keeps, the latest used

Graphs = OrderedDict[tuple[Any, ...], "Captured"]


class Captured:
    """The steps of calls of one shape. :param work: one of them, whose numbers are tensors"""

    def __init__(self, chain: Chain, work: Work) -> None:
        self.weights = {k: work.empty(k).copy_(work.params[k]) for k in work.params}
        self.cohort = _cohort(chain, work, self.weights)
        self.program = self.cohort.program(work.c)
        self.rows = work.rows.transpose(0, 1).contiguous()  # [T, c, B]
        self.targets = self.cohort.targets(self.rows)
        stream = torch.cuda.Stream(work.x.device)
        stream.wait_stream(torch.cuda.current_stream(work.x.device))
        with torch.cuda.stream(stream):  # what libraries set up at first use must not be captured
            self._play(1)
        torch.cuda.current_stream(work.x.device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._play(len(self.rows))

    def _play(self, steps: int) -> None:
        for t in range(steps):
            self.cohort.step(self.program, self.rows[t].view(-1), self.targets[t])

    def run(self, chain: Chain, work: Work) -> Params:
        """The models after all steps of another call of this shape."""
        for k, v in self.weights.items():
            v.copy_(work.params[k])
        fresh = _cohort(chain, work, self.weights)
        for k, move in self.cohort.moving.items():
            _renew(move.push, fresh.moving[k].push)
            _renew(move.beta, fresh.moving[k].beta)
        _renew(self.cohort.rate, fresh.rate)
        self.rows.copy_(work.rows.transpose(0, 1))
        self.targets.copy_(fresh.targets(self.rows))
        self.graph.replay()
        return {k: self.weights[k].clone() for k in work.call.out}


def _renew(old: Any, new: Any) -> None:
    if isinstance(old, Tensor):
        old.copy_(new)


def _cohort(chain: Chain, work: Work, weights: Params) -> Cohort:
    """All devices; the weights that nothing changes are in the graph's own buffers too."""
    return Cohort(chain, replace(work, params=weights), weights, 0, work.c)


def graphs(chain: Chain, known: Graphs, work: Work) -> Params | None:
    """Local SGD of all devices of a call; those with different numbers of steps go through the fused kernel."""
    if work.call.ragged or work.rows.shape[1] == 0:
        return fused(chain, work)
    if not fits_labels(chain, work):
        return None
    work = replace(work, lr=_tensor(work.lr, work), lam=_tensor(work.lam, work))
    key = _shape(work)
    if key not in known:
        known[key] = Captured(chain, work)
    known.move_to_end(key)
    while len(known) > MOST:
        known.popitem(last=False)
    return known[key].run(chain, work)


def _tensor(value: float | Tensor, work: Work) -> Tensor:
    """A number of each device [c]: what is not in the graph may change from call to call."""
    full = work.x.new_zeros(work.c)
    return full + value.to(full.dtype) if isinstance(value, Tensor) else full.fill_(value)


def _shape(work: Work) -> tuple[Any, ...]:
    call = work.call
    operands = [*work.params.values(), *work.drift.values(), *work.anchor.values(), work.rows]
    shapes = tuple(tuple(t.shape) for t in operands)
    pool = (work.x.data_ptr(), tuple(work.x.shape), work.x.dtype, work.y.data_ptr(), work.y.dtype)
    return (call.given, call.keys, call.moved, call.drift, call.anchor, shapes, pool)
