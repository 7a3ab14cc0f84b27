"""Every kernel does what `data.fold(task.step)` does, to rounding, whatever the model, the operands and the data are."""

import copy
from typing import Any

import cloudpickle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap

from support import gap, toy_net, toy_plan, toy_task
from tierfed.algorithm import Data
from tierfed.errors import InputError
from tierfed.kernels import BATCHED, KERNELS, compiled, equipped, fused, refusal
from tierfed.models import MODELS, build_model
from tierfed.offload import SplitTask
from tierfed.task import LOSSES, Task, cross_entropy

CPU = torch.device("cpu")
CLOSE = 1e-12
FEATURES = 6


@st.composite
def chains(draw: st.DrawFn) -> nn.Sequential:
    """Up to three hidden layers with norms of all kinds, where they may be; samples come as [2, 3]."""
    layers: list[nn.Module] = [nn.Flatten()]
    width, seed = FEATURES, draw(st.integers(0, 10**6))
    if draw(st.booleans()):
        layers.append(nn.ReLU())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for _ in range(draw(st.integers(0, 3))):
            following = draw(st.integers(1, 5))
            layers.append(nn.Linear(width, following, bias=draw(st.booleans())))
            width = following
            for kind in draw(st.permutations(["norm", "relu"])):
                if draw(st.booleans()):
                    layers.append(nn.ReLU() if kind == "relu" else draw(norms(width)))
        if draw(st.booleans()):
            layers.append(draw(norms(width)))
        layers.append(nn.Linear(width, 3, bias=draw(st.booleans())))
    return nn.Sequential(*layers).double()


@st.composite
def norms(draw: st.DrawFn, width: int) -> nn.BatchNorm1d:
    momentum, eps = draw(st.sampled_from([0.1, 0.7])), draw(st.sampled_from([1e-3, 0.1]))
    affine, tracked = draw(st.booleans()), draw(st.booleans())
    norm = nn.BatchNorm1d(width, eps=eps, momentum=momentum, affine=affine, track_running_stats=tracked)
    for p in norm.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    return norm


class World:
    """A call of train for some devices: a function of (task, place of the operands of a device)."""

    def __init__(self, draw: Any, module: nn.Module) -> None:
        self.c = draw(st.integers(1, 4))
        rng = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
        self.task = Task(module, draw(st.sampled_from([cross_entropy, LOSSES["mse"]])), draw(st.sampled_from([0.0, 0.2])))
        e, s, b = draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(st.integers(3, 4))

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=rng, dtype=torch.float64)

        def row(n: int) -> Tensor:
            return torch.stack([torch.randperm(40, generator=rng)[:b] for _ in range(n)])

        self.x = noise(40, 2, 3)
        classes = self.task.loss is cross_entropy
        self.y = torch.randint(0, 3, (40,), generator=rng) if classes else noise(40, 3)
        self.rows = row(self.c * e * s).view(self.c, e, s, b)
        self.ragged = draw(st.booleans())
        self.live = torch.rand(self.c, e, s, generator=rng) < (0.6 if self.ragged else 2.0)
        self.seed = torch.zeros(self.c, e, s, dtype=torch.int64)
        start = self.task.init()
        trained = self.task.trainable
        self.keys = draw(st.none() | st.lists(st.sampled_from(trained), unique=True, min_size=1))

        def models(shared: bool, some: list[str], scale: float) -> tuple[int | None, dict[str, Tensor]]:
            sizes = {k: start[k].shape if shared else (self.c, *start[k].shape) for k in some}
            return None if shared else 0, {k: start[k] + scale * noise(*sizes[k]).abs() for k in some}

        def number(most: float) -> tuple[int | None, Any]:
            kind = draw(st.sampled_from(["float", "tensor", "each"]))
            values = most * torch.rand(self.c, generator=rng, dtype=torch.float64)
            return {"float": (None, float(values[0])), "tensor": (None, values[0]), "each": (0, values)}[kind]

        some = st.lists(st.sampled_from(trained), unique=True)
        self.operands: dict[str, tuple[int | None, Any]] = {
            "params": models(draw(st.booleans()), self.task.keys, 0.1),
            "lr": number(0.2),
            "drift": models(draw(st.booleans()), draw(some), 0.1) if draw(st.booleans()) else (None, None),
            "lam": number(0.5),
            "anchor": models(draw(st.booleans()), draw(some), 0.1) if draw(st.booleans()) else (None, None),
        }

    def one(self, task: Task, rows: Tensor, live: Tensor, seed: Tensor, **at: Any) -> Any:
        data = Data(self.x, self.y, rows, live, seed, rows[0, 0], live[0], ragged=self.ragged)
        pull = None if at["anchor"] is None else (at["lam"], at["anchor"])
        return task.train(at["params"], data, at["lr"], at["drift"], pull, self.keys)

    def serial(self, task: Task) -> Any:
        def of(i: int, dim: int | None, v: Any) -> Any:
            return v if dim is None else {k: t[i] for k, t in v.items()} if isinstance(v, dict) else v[i]

        rows = [
            self.one(task, self.rows[i], self.live[i], self.seed[i], **{k: of(i, *v) for k, v in self.operands.items()})
            for i in range(self.c)
        ]
        return {k: torch.stack([r[k] for r in rows]) for k in rows[0]}

    def stacked(self, task: Task) -> Any:
        own = {k: v for k, (dim, v) in self.operands.items() if dim == 0}
        shared = {k: v for k, (dim, v) in self.operands.items() if dim is None}
        device = vmap(lambda rows, live, seed, mine: self.one(task, rows, live, seed, **mine, **shared))
        return device(self.rows, self.live, self.seed, own)


def _far(a: Any, b: Any) -> float:
    """The largest difference, relative to the largest entry where that is above one."""
    return gap(a, b) / max(1.0, *(float(v.abs().max()) for v in b.values()))


@given(st.data())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", ["fused", "loop"])
def test_any_chain_as_its_definition(name: str, data: st.DataObject) -> None:
    world = World(data.draw, data.draw(chains()))
    least, cache = fused.LEAST, fused.CACHE_BYTES
    fused.LEAST, fused.CACHE_BYTES = (data.draw(st.integers(1, 4)), 0)
    try:
        wanted, task = world.serial(world.task), equipped(world.task, name)
        assert _far(world.serial(task), wanted) <= CLOSE
        assert _far(world.stacked(task), wanted) <= CLOSE
    finally:
        fused.LEAST, fused.CACHE_BYTES = least, cache
