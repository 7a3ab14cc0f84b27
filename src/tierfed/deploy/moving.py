"""Nodes that change their parent in a run: what is known of them goes along, and everybody learns the new tree.

The rows of children go up to the cloud, which finds the new parents; then the new tree goes down with the rows of
those who have moved. A node that cannot be reached learns it before it is asked anything else, and what belongs to it
waits at its parent until then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tierfed.deploy.census import sizes_of
from tierfed.deploy.journal import Lineage, as_tree, digest
from tierfed.deploy.question import Answers, Question, merge
from tierfed.engine.base import PARENTS
from tierfed.engine.beginning import put_parents
from tierfed.tree import Tree
from tierfed.wire import encode

if TYPE_CHECKING:
    from tierfed.deploy.engine import Deployed
    from tierfed.topology import Topology

CENSUS = "census"  # the table of how many samples everybody has, where devices have told it
TICK = -1  # of the message with the tree, beside those of visits
Place = tuple[int, int]
"""(depth of who knows it, child)."""


def collect(engine: Deployed, level: int, ident: int) -> Answers:
    """What is known of children by a node and by all inner nodes below it, "depth/child" -> row and lineage."""
    below = engine.below(level)
    parts = [Answers(trees={_key(p): record for p, record in _known(engine, level, ident).items()})]
    if below < engine.depth:
        kids = engine.topology.below(level, ident, below).tolist()
        to = {i: engine.lineage(level, i, below) for i in kids}
        question = Question(kind="rows", run=engine.run, round=engine.round, level=below, to=to)
        parts.append(engine.put_question(level, question, lambda child, answer: None))
    # what waits here for a node below is newer than what another one still has
    return merge([*parts[1:], parts[0]], {})


def _known(engine: Deployed, level: int, ident: int) -> dict[Place, Tree]:
    """What a process knows of the children of its nodes, and what waits here for others."""
    out: dict[Place, Tree] = {}
    for d in range(level, engine.depth):
        for child in engine.store.ids(f"rows{d}") if d < engine.below(level) else ():
            if _home(engine, d, child, level) == ident:
                asked = engine.store.get(f"asked{d}", child)
                row = engine.store.get(f"rows{d}", child) or {}
                out[d, child] = {"row": row, **({} if asked is None else {"asked": asked})}
        for child in engine.store.ids(f"moving{d}"):
            out[d, child] = engine.store.get(f"moving{d}", child) or {}
    return out


def _home(engine: Deployed, depth: int, child: int, level: int) -> int:
    """The ancestor on a level of somebody whom nodes of a depth know."""
    return int(engine.topology.ancestor(engine.reach(depth), np.array([child]), level)[0])


def announce(engine: Deployed, moved: list[Place], known: dict[Place, Tree]) -> None:
    """The cloud's new tree goes to everybody, and what is known of those who have moved to their new parents."""
    for depth, child in moved:
        if (depth, child) in known and depth > 0:
            engine.store.put(f"moving{depth}", child, known[depth, child])
    below = engine.below(0)
    if below < engine.depth:
        deliver(engine, 0, engine.topology.below(0, 0, below).tolist())


def deliver(engine: Deployed, depth: int, children: list[int]) -> dict[int, str]:
    """The tree and what waits for them, to the children that do not have them yet; who could not be reached, and why.

    :param children: processes below a node of this depth
    """
    below, now = engine.below(depth), tree_digest(engine.topology)
    fresh = engine.fresh
    stale = [c for c in children if c in fresh or told(engine, depth, c) != now]
    if not stale or below == engine.depth:
        return {}
    waiting = _waiting(engine)
    parents = {str(d): torch.from_numpy(p.astype(np.int32)) for d, p in enumerate(engine.topology.parents)}
    census = {"sizes": torch.from_numpy(sizes_of(engine.world))} if engine.settings.devices else {}
    messages: dict[int, Tree] = {}
    for child in stale:
        mine = {_key(p): r for p, r in waiting.items() if _home(engine, *p, below) == child}
        messages[child] = {"parents": parents, "moving": mine, **census}
    asks = {
        c: digest(engine.run, f"{engine.round} {TICK} {below} {c}", encode(message)) for c, message in messages.items()
    }
    question = Question(
        kind="tree",
        run=engine.run,
        round=engine.round,
        tick=TICK,
        level=below,
        to={c: engine.lineage(depth, c, below) for c in stale},
        asks=asks,
        messages={str(c): message for c, message in messages.items()},
    )
    found = engine.put_question(depth, question, lambda child, answer: None)
    for child in stale:
        if child in found.versions:
            engine.put_lineage(depth, child, below, Lineage(found.versions[child], (), True))
            engine.store.put(f"told{depth}", child, {"tree": _code(now)})
            fresh.discard(child)
            for key in messages[child]["moving"]:
                d, i = _place(key)
                engine.store.put(f"moving{d}", i, None)
        else:
            before = engine.lineage(depth, child, below)
            engine.put_lineage(depth, child, below, before._replace(open=(*before.open, asks[child])))
    return {c: why for c, why in found.missing.items() if c in asks}


def take_over(engine: Deployed, level: int, ident: int, message: Tree) -> None:
    """A node has been told the new tree and what is known of its new children; it tells those below."""
    parents = [message["parents"][str(d)].numpy().astype(np.int64) for d in range(engine.depth)]
    topology = engine.world.topology.rebuilt(parents)
    put_parents(topology, engine.store, PARENTS, [True] * engine.depth)
    if "sizes" in message:
        engine.store.put(CENSUS, 0, {"sizes": message["sizes"]})
    engine.follow()
    for key, record in message["moving"].items():
        d, child = _place(key)
        if level <= d < engine.below(level):
            engine.store.put(f"rows{d}", child, record["row"])
            engine.store.put(f"asked{d}", child, record.get("asked", as_tree(Lineage(None))))
        else:
            engine.store.put(f"moving{d}", child, record)
    for d in range(level, engine.below(level)):
        for child in engine.store.ids(f"rows{d}"):
            if _home(engine, d, child, level) != ident:
                engine.store.put(f"rows{d}", child, None)
                engine.store.put(f"asked{d}", child, None)
    below = engine.below(level)
    if below < engine.depth:
        deliver(engine, level, engine.topology.below(level, ident, below).tolist())


def told(engine: Deployed, depth: int, child: int) -> str:
    """Which tree a child knows."""
    record = engine.store.get(f"told{depth}", child)
    if record is not None:
        return bytes(record["tree"].tolist()).hex()
    return "" if engine.settings.devices else tree_digest(engine.world.topology)


def tree_digest(topology: Topology) -> str:
    """What tells one tree from another."""
    return digest(*(p.astype(np.int64).tobytes() for p in (*topology.parents, topology.samples)))


def _waiting(engine: Deployed) -> dict[Place, Tree]:
    """What waits here for nodes below."""
    return {
        (d, child): engine.store.get(f"moving{d}", child) or {}
        for d in range(engine.depth)
        for child in engine.store.ids(f"moving{d}")
    }


def places(found: Answers) -> dict[Place, Tree]:
    """What was collected, by place."""
    return {_place(key): record for key, record in found.trees.items()}


def _key(place: Place) -> str:
    return f"{place[0]}/{place[1]}"


def _place(key: str) -> Place:
    depth, _, child = key.partition("/")
    return int(depth), int(child)


def _code(text: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)
