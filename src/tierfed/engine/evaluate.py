"""The evaluated models of every device: global, team, personal before and after local training.

Evaluation walks the tree down: each device is evaluated on the message that its own parent would send it now.
Nothing is counted, nothing is kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tierfed.engine.base import Engine, Ids
from tierfed.tree import Params, Tree, row, stack
from tierfed.wire import payload_bytes


@dataclass(frozen=True)
class Models:
    """What is evaluated on one device; None: the algorithm has no such model."""

    device: int
    global_model: Params | None
    team: Params | None
    personal_pre: Params
    personal_post: Params | None  # None: not asked for


class _Walk:
    """Messages down the tree, every inner node opened once."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._open: dict[tuple[int, int], Tree] = {}
        self._common: dict[tuple[int, int], Tree] = {}

    def opened(self, depth: int, node: int) -> Tree:
        if (depth, node) not in self._open:
            kept = self.engine.kept(depth, node)
            state = kept if depth == 0 else self.engine.tiers[depth].enter(kept, self.message(depth, node))
            self._open[depth, node] = state
        return self._open[depth, node]

    def message(self, level: int, ident: int) -> Tree:
        """What the parent of a node of `level` would send it now."""
        e = self.engine
        at = next(a for a in range(level) if e.reach(a) >= level)
        node = int(e.topology.ancestor(level, np.array([ident]), at)[0])
        tier = e.tiers[at]
        if not tier.sees:
            if (at, node) not in self._common:
                self._common[at, node] = tier.send(self.opened(at, node), torch.tensor(0))
            return self._common[at, node]
        ids, slots = e.roster(at, node, np.array([ident]))
        state = {**self.opened(at, node), "rows": stack(e.rows(at, ids)), "ids": torch.as_tensor(ids)}
        return tier.send(state, torch.tensor(int(slots[0])))


def models(engine: Engine, devices: Ids, post: bool = True, chunk: int = 64) -> Iterator[Models]:
    """The evaluated models of some devices, in their order.

    personal_post is a dry visit after which the device hears its own reply: the personal model after the local
    training of the coming round, for devices that were not polled too.

    :param post: also personal_post, which costs a local training of every device
    :param chunk: devices that are visited at once
    """
    walk, algorithm, tiers = _Walk(engine), engine.algorithm, engine.tiers
    top = tiers[0].model(engine.kept(0, 0))
    teams: dict[int, Params | None] = {}
    for start in range(0, len(devices), chunk):
        ids = devices[start : start + chunk]
        messages = [walk.message(engine.depth, int(i)) for i in ids]
        after = _dry(engine, ids, messages) if post else [None] * len(ids)
        for i, msg, visited in zip(ids.tolist(), messages, after, strict=True):
            task, own = engine.task(i), engine.own(i)
            data = engine.plan.one(i, algorithm, engine.round, 0)
            trained = None
            if visited is not None:
                up, state = visited
                trained = algorithm.personal(task, {**msg, **up}, state, data)
            fog = int(engine.topology.parents[-1][i])
            if fog not in teams:
                teams[fog] = _team(engine, i)
            yield Models(i, top, teams[fog], algorithm.personal(task, msg, own, data), trained)


def ties(engine: Engine, depth: int, node: int, children: Ids) -> dict[str, Tensor]:
    """`Tier.ties` of an inner node over children of `Engine.reach(depth)` whose rows it has: name -> [R, R]."""
    state = {**_Walk(engine).opened(depth, node), "rows": stack(engine.rows(depth, children))}
    return engine.tiers[depth].ties({**state, "ids": torch.as_tensor(children)})


def message_to(engine: Engine, device: int) -> Tree:
    """What the parent of a device would send it now."""
    return _Walk(engine).message(engine.depth, device)


def message_bytes(engine: Engine, devices: Ids) -> Ids:
    """Bytes of what the parents of some devices would send them now [H]."""
    walk = _Walk(engine)
    sizes = [payload_bytes(stack([walk.message(engine.depth, int(i))]), 1)[0] for i in devices]
    return np.array(sizes, np.int64)


def _team(engine: Engine, device: int) -> Params | None:
    """The model of the lowest fog above a device that has one."""
    for depth in reversed(range(1, engine.depth)):
        node = int(engine.topology.ancestor(engine.depth, np.array([device]), depth)[0])
        model = engine.tiers[depth].model(engine.kept(depth, node))
        if model is not None:
            return model
    return None


def _dry(engine: Engine, ids: Ids, messages: list[Tree]) -> list[tuple[Tree, Tree]]:
    """Replies and new states of a visit of each device now, in the order of ids; one call per architecture."""
    kinds = np.zeros(len(ids), np.int64) if engine.kinds is None else engine.kinds[ids]
    out: list[tuple[Tree, Tree]] = [({}, {})] * len(ids)
    for kind in np.unique(kinds):
        at = np.flatnonzero(kinds == kind)
        ups, states = engine.visit_devices(ids[at], stack([messages[j] for j in at]), engine.round, 0)
        for r, j in enumerate(at):
            out[j] = (row(ups, r), row(states, r))
    return out
