"""What messages look like, and what is refused: other keys, shapes or kinds, NaN, weights that nobody has, leaps.

A parent learns the layout of its children's replies from two rounds of a toy of the run: the same algorithm, tiers
and models on a path of one node a level and two devices with made-up samples.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from tierfed.engine.base import Engine
from tierfed.engine.node import Reply
from tierfed.engine.serial import Here, Serial, reported, trained, visited
from tierfed.errors import InputError
from tierfed.plan import Plan
from tierfed.setup import World
from tierfed.store import MemoryStore
from tierfed.topology import Topology
from tierfed.tree import SEPARATOR, Tree, flatten

_LOG = logging.getLogger(__name__)
_DEVICES, _ROWS, _HELD, _ROUNDS = 2, 8, 4, 2

Leaf = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Of the messages on one link level.

    :param leaves: path -> what it may be
    :param always: the paths that no message lacks
    """

    leaves: dict[str, set[Leaf]] = field(default_factory=dict)
    always: frozenset[str] = frozenset()

    def with_(self, message: Tree) -> "Layout":
        """A layout that takes one more message."""
        flat = {k: (v.dtype, tuple(v.shape)) for k, v in flatten(message).items()}
        leaves = {k: set(v) for k, v in self.leaves.items()}
        for path, leaf in flat.items():
            leaves.setdefault(path, set()).add(leaf)
        always = frozenset(flat) & self.always if self.leaves else frozenset(flat)
        return Layout(leaves=leaves, always=always)

    def check(self, message: Tree) -> None:
        """:raises InputError: a message is laid out in another way"""
        flat = flatten(message)
        if missing := sorted(self.always - flat.keys()):
            raise InputError(f"the message has no {_shown(missing[0])}")
        for path, t in flat.items():
            if path not in self.leaves:
                raise InputError(f"the message has {_shown(path)}, which {_all(self.leaves)}")
            if (t.dtype, tuple(t.shape)) not in self.leaves[path]:
                wanted = " or ".join(f"{k} {list(s)}" for k, s in sorted(self.leaves[path], key=str))
                raise InputError(f"{_shown(path)} is {t.dtype} {list(t.shape)}, wanted {wanted}")


def _all(leaves: dict[str, set[Leaf]]) -> str:
    return f"nobody knows (known: {', '.join(_shown(k) for k in sorted(leaves)[:6])})"


def _shown(path: str) -> str:
    return path.replace(SEPARATOR, ".")


def check_finite(message: Tree) -> None:
    """:raises InputError: a number is NaN or infinite"""
    for path, t in flatten(message).items():
        if t.is_floating_point() and not bool(torch.isfinite(t).all()):
            raise InputError(f"{_shown(path)} holds NaN or infinite numbers")


def check_counts(reply: Reply, most: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    """:param most: samples, devices and children that there are [3]

    :raises InputError: a child speaks for more than it has
    """
    if (reply.counts > most + 1e-9).any():
        raise InputError(
            f"it speaks for {reply.counts.tolist()} samples, devices and children, but has {most.tolist()}"
        )


def check_norm(sent: Tree, reply: Tree, bound: float) -> None:
    """:raises InputError: the reply changes what was sent by more than a bound"""
    before, total = flatten(sent), 0.0
    for path, t in flatten(reply).items():
        if t.is_floating_point():
            same = path in before and before[path].shape == t.shape
            change = t.double() - before[path].double() if same else t.double()
            total += float(change.square().sum())
    if math.sqrt(total) > bound:
        raise InputError(f"it changes the model by {math.sqrt(total):.4g}, more than deploy.norm_bound = {bound:g}")


def replies(world: World) -> dict[int, Layout]:
    """The layouts of what the nodes of each level reply; empty where no toy can be made of the run."""
    found: dict[int, Layout] = {}

    def answer(engine: Engine, level: int, node: int, message: Tree, tick: int) -> Reply | None:
        if level == engine.depth:
            reply: Reply | None = trained(engine, node, message, tick)
        else:
            reply = reported(engine, Here(engine, level, node, tick, answer), level, node, message)
        if reply is not None:
            found[level] = found.get(level, Layout()).with_(reply.message)
        return reply

    try:
        with torch.random.fork_rng(devices=[]):
            _walk(_toy(world), answer)
    except (RuntimeError, ValueError, IndexError, KeyError) as err:
        _LOG.warning(
            "shapes of replies are not known before they come: %s", str(err).splitlines()[0] if str(err) else err
        )
        return {}
    return found


def _walk(engine: Engine, answer: Callable[[Engine, int, int, Tree, int], Reply | None]) -> None:
    for _ in range(_ROUNDS):
        state, _ = visited(engine, Here(engine, 0, 0, 0, answer), 0, 0, engine.kept(0, 0))
        engine.keep(0, 0, state)
        engine.round += 1


def _toy(world: World) -> Engine:
    """The algorithm of a run with the tiers of its tree, on a path of one node a level."""
    depth, shape = world.topology.depth, tuple(world.federation.x.shape[1:])
    rows = _DEVICES * (_ROWS + _HELD)
    x = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0)).to(world.plan.x.dtype)
    y = world.plan.y.new_zeros(rows, *world.plan.y.shape[1:])
    if world.federation.classes:
        y = (torch.arange(rows) % len(world.federation.classes)).to(y.dtype)
    index = np.arange(rows).reshape(_DEVICES, _ROWS + _HELD)
    plan = Plan(
        x=x,
        y=y,
        train=[r[:_ROWS] for r in index],
        held=[r[_ROWS:] for r in index],
        batch=_ROWS,
        dtype=world.plan.dtype,
    )
    policies = tuple(replace(p, sample=1.0, bursts=1) for p in world.topology.policies)
    path = Topology(
        parents=tuple(np.zeros(_DEVICES if d == depth - 1 else 1, np.int64) for d in range(depth)),
        policies=policies,
        samples=plan.samples,
        nodes=(1,) * depth,
    )
    kinds = None if world.kinds is None else world.kinds[:_DEVICES]
    engine = Serial(world.algorithm, world.tasks, path, plan, MemoryStore(), kinds=kinds)
    engine.tiers = world.algorithm.tiers(world.task, world.topology.shape)
    return engine
