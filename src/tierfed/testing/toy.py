"""Worlds small enough to compute by hand or in milliseconds, engines over them, and the distance between two trees.

QUAD: the model is one vector w [d] and device i has f_i(w) = h_i / 2 |w - a_i|^2. Toy: ragged devices whose features
are rotated by team, each with two of four classes, for a small network with batch norm.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tierfed.algorithm import Algorithm, Batch, Info
from tierfed.engine.base import Engine
from tierfed.engine.serial import Serial
from tierfed.engine.vectorized import Vectorized
from tierfed.faults import Faults
from tierfed.links import NONE, Links
from tierfed.plan import Plan
from tierfed.store import MemoryStore, Store
from tierfed.task import Task
from tierfed.topology import TopologySettings, build_topology
from tierfed.tree import Params, Tree, leaves, tmap

Ids = npt.NDArray[np.int64]
ENGINES: dict[str, type[Engine]] = {"serial": Serial, "vectorized": Vectorized}
DEVICES, TEAMS = 12, 4


class Point(nn.Module):
    """One vector w [d]; on a sample x = sqrt(h) [1] its output is sqrt(h) w [d]."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(start.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


def half_square(out: Tensor, y: Tensor) -> Tensor:
    """1/2 |out - y|^2 of each sample [B]."""
    return 0.5 * (out - y).square().sum(-1)


def quad(
    a: Sequence[Any],
    *,
    start: Sequence[float] | None = None,
    h: Sequence[float] | None = None,
    sizes: Sequence[int] | None = None,
    held: Sequence[Any] | None = None,
    public: Sequence[Any] | None = None,
    weight_decay: float = 0.0,
) -> tuple[Task, Plan]:
    """QUAD in float64: device i has sizes[i] training samples that all equal a[i], in one full batch.

    :param a: optima [N] or [N, d]
    :param start: the initial w [d]; zeros by default
    :param h: curvatures [N]; ones by default
    :param sizes: training samples per device [N]; two each by default
    :param held: what every device is judged on [N] or [N, d]; its a by default
    :param public: what the cloud is judged on [P] or [P, d]; nothing by default
    """
    optima = _points(a)
    n, d = optima.shape
    count = [2] * n if sizes is None else list(sizes)
    root = torch.tensor([1.0] * n if h is None else list(h), dtype=torch.float64).sqrt()[:, None]
    judged = optima if held is None else _points(held)
    which = torch.repeat_interleave(torch.arange(n), torch.tensor(count))
    begin = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
    plan = Plan(
        x=torch.cat([root[which], root]),
        y=torch.cat([(root * optima)[which], root * judged]),
        train=[np.arange(b, e) for b, e in pairwise(begin)],
        held=[np.array([begin[-1] + i]) for i in range(n)],
        batch=None,
        dtype=torch.float64,
    )
    at_cloud = None
    if public is not None:
        y = _points(public)
        at_cloud = Batch(
            torch.ones(len(y), 1, dtype=torch.float64), y, torch.ones(len(y), dtype=torch.bool), torch.tensor(0)
        )
    point = Point(torch.zeros(d, dtype=torch.float64) if start is None else torch.tensor(start, dtype=torch.float64))
    return Task(point, half_square, weight_decay, at_cloud), plan


def _points(values: Sequence[Any]) -> Tensor:
    t = torch.tensor(values, dtype=torch.float64)
    return t[:, None] if t.dim() == 1 else t


def toy_teams(n: int = DEVICES, teams: int = TEAMS) -> Ids:
    """The natural team of each device [n]: unequal sizes, none empty, not in the order of ids."""
    out = np.minimum(np.random.default_rng(1).geometric(0.4, n) - 1, teams - 1)
    out[:teams] = np.arange(min(n, teams))
    return out[np.random.default_rng(2).permutation(n)].astype(np.int64)


def toy_plan(
    n: int = DEVICES,
    dtype: torch.dtype = torch.float64,
    *,
    batch: int | None = 8,
    smallest: int = 6,
    largest: int = 40,
    held: float = 0.2,
    seed: int = 0,
) -> Plan:
    """Ragged toy data: x [rows, 8], y [rows] of four classes; smallest..largest samples a device, a share held out."""
    rng = np.random.default_rng([seed, 0])
    centers, team = 1.2 * rng.normal(size=(4, 8)), toy_teams(n)
    xs, ys, train, kept, begin = [], [], [], [], 0
    for i, size in enumerate(rng.integers(smallest, largest + 1, n)):
        y = rng.choice(rng.choice(4, 2, replace=False), size)
        xs.append(np.roll(centers[y], team[i], axis=1) * (1.0 if i % 3 else 1.5) + rng.normal(size=(size, 8)))
        ys.append(y)
        rows = begin + rng.permutation(size)
        cut = int(held * size)
        kept.append(np.sort(rows[:cut]))
        train.append(np.sort(rows[cut:]))
        begin += size
    x, y = torch.from_numpy(np.concatenate(xs)).to(dtype), torch.from_numpy(np.concatenate(ys))
    return Plan(x=x, y=y, train=train, held=kept, batch=batch, seed=seed, dtype=dtype)


def toy_net(
    act: Callable[[], nn.Module] = nn.ReLU, dtype: torch.dtype = torch.float64, dropout: float = 0.0, norm: bool = True
) -> nn.Sequential:
    """8 - 16 - 4 with a batch norm, the same every time."""
    drop = [nn.Dropout(dropout)] if dropout else []
    norms = [nn.BatchNorm1d(16)] if norm else []
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), *norms, act(), *drop, nn.Linear(16, 4)).to(dtype)


def toy_task(
    act: Callable[[], nn.Module] = nn.ReLU, dtype: torch.dtype = torch.float64, dropout: float = 0.0, norm: bool = True
) -> Task:
    """The toy network under softmax cross-entropy, with 20 public samples."""
    rng = np.random.default_rng(5)
    x, y = torch.from_numpy(rng.normal(size=(20, 8))).to(dtype), torch.from_numpy(rng.integers(0, 4, 20))
    return Task(
        toy_net(act, dtype, dropout, norm),
        public=Batch(x, y, torch.ones(20, dtype=torch.bool), torch.tensor(0)),
        classes=4,
    )


def toy_settings(
    participation: float = 1.0, team_rounds: int = 1, fogs: int = TEAMS, **changes: Any
) -> dict[str, TopologySettings]:
    """The trees that toy runs are made on: flat, 3 tiers, 4 tiers, clusters inside fogs.

    :param participation: of the devices; of the fogs too when it is below one
    :param team_rounds: of the lowest fogs; a flat tree has none
    """
    fog = 1.0 if participation == 1.0 else 0.8
    many: dict[str, Any] = {"team_rounds": team_rounds, **changes}
    return {
        "flat": TopologySettings(fogs=0, participation=participation, **changes),
        "3 tiers": TopologySettings(fogs=fogs, participation=(fog, participation), **many),
        "4 tiers": TopologySettings(fogs=(2, fogs), participation=(1.0, fog, participation), **many),
        "clusters": TopologySettings(fogs=2, clusters=2, participation=(1.0, fog, participation), **many),
    }


def make_engine(
    kind: str,
    algorithm: Algorithm,
    task: Task | Sequence[Task],
    plan: Plan,
    settings: TopologySettings | None = None,
    faults: Faults | None = None,
    seed: int = 0,
    natural: Ids | Sequence[int] | None = None,
    store: Store | None = None,
    clock: Any = None,
    kinds: Ids | None = None,
    links: Links = NONE,
) -> Engine:
    """A fresh engine, "serial" or "vectorized", at round 0; flat by default.

    :param task: of all devices, or several of which `kinds` [N] says who has which
    :param natural: the team of each device [N], for settings that ask for natural teams
    """
    teams = None if natural is None else np.asarray(natural, np.int64)
    topology = build_topology(settings or TopologySettings(fogs=0), plan.samples, seed=seed, natural=teams)
    memory = MemoryStore() if store is None else store
    tasks = [task] if isinstance(task, Task) else task
    return ENGINES[kind](algorithm, tasks, topology, plan, memory, faults=faults, kinds=kinds, clock=clock, links=links)


def run(engine: Engine, rounds: int) -> Engine:
    """The engine after some more rounds."""
    for _ in range(rounds):
        engine.step()
    return engine


def gap(a: Any, b: Any) -> float:
    """The largest difference between corresponding leaves of two trees, by key; infinite where keys or shapes differ
    and where a number is NaN."""
    if isinstance(a, dict) or isinstance(b, dict):
        if not (isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys()):
            return float("inf")
        return max((gap(a[k], b[k]) for k in a), default=0.0)
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    p, q = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    if p.shape != q.shape:
        return float("inf")
    worst = float((p - q).abs().max()) if p.numel() else 0.0
    return float("inf") if math.isnan(worst) else worst


def records(engine: Engine) -> dict[tuple[str, int], Tree]:
    """Everything that an engine over a memory store keeps, by (table, id)."""
    assert isinstance(engine.store, MemoryStore)
    return engine.store.records


def apart(a: Engine, b: Engine) -> float:
    """The largest difference of anything that two engines keep; infinite when they keep different records."""
    return gap({f"{t}/{i}": r for (t, i), r in records(a).items()}, {f"{t}/{i}": r for (t, i), r in records(b).items()})


def cloud(engine: Engine) -> Params:
    """The model at the cloud."""
    return engine.kept(0, 0)["params"]  # type: ignore[no-any-return]


def numbers(*values: float) -> list[Tensor]:
    """Float64 scalars []."""
    return [torch.tensor(v, dtype=torch.float64) for v in values]


def info(heard: float = 1.0, total: float = 1.0, share: float = 1.0, round_: int = 0) -> Info:
    """What a node knows about replies, for tests of one tier."""
    return Info(*numbers(heard, total, share, round_))


def finite(tree: Any) -> bool:
    """Whether every number of a tree is finite."""
    return all(bool(t) for t in leaves(tmap(lambda t: torch.isfinite(t).all(), tree)))
