"""Replies on their way: where all engines and the deployment hand them to the links, see `tierfed.links`."""

from typing import TYPE_CHECKING

import numpy as np

from tierfed.engine.node import weighted_mean
from tierfed.engine.said import Down, Ids, Up, Weights
from tierfed.links import TOLD, At, Heard, arriving, leaving
from tierfed.tree import Tree, leaves, row, stack, zeros
from tierfed.wire import payload

if TYPE_CHECKING:
    from tierfed.engine.base import Engine, Flags

_ROOM = 1 << 20  # what a reply may owe beside what was sent


def leave(engine: "Engine", level: int, child: int, sent: Tree, reply: Tree, weight: float, tick: int) -> Tree:
    """What travels in the place of a child's reply; its sender keeps what it needs for the next one.

    :param sent: the message that it answers; :param weight: what it counts for
    """
    if not engine.links.changes(level):
        return reply
    table, at = f"link{level}", _at(engine, level, child, tick, weight, sent)
    memory = engine.store.get(table, child)
    wire, kept = leaving(engine.links, sent, reply, memory or {}, at)
    if kept or memory is not None:
        engine.store.put(table, child, kept or None)
    return wire


def arrive(engine: "Engine", level: int, child: int, sent: Tree, wire: Tree, weight: float, tick: int) -> Tree:
    """The reply that its parent makes of what has travelled.

    :raises InputError: it is nothing that the link carries
    """
    if not engine.links.above(level).steps:
        return wire
    at = _at(engine, level, child, tick, weight, sent)
    return arriving(engine.links, sent, wire, at._replace(room=2 * sum(t.numel() for t in leaves(sent)) + _ROOM))


def _at(engine: "Engine", level: int, child: int, tick: int, weight: float, sent: Tree) -> At:
    return At(engine.seed, level, child, engine.round, tick, weight, sent.get(TOLD, {}))


def tell(engine: "Engine", depth: int, node: int, polled: Ids, tick: int) -> Tree:
    """What a node adds to its messages for the sake of its rule."""
    rule = engine.links.at(depth).rule
    if rule is None:
        return {}
    at = At(engine.seed, engine.reach(depth), node, engine.round, tick)
    told = rule.tell(engine.store.get(f"rule{depth}", node) or {}, polled, at)
    return {TOLD: told} if told else {}


def untold(message: Tree) -> Tree:
    """The message as the child's tier or algorithm gets it."""
    return {k: v for k, v in message.items() if k != TOLD} if TOLD in message else message


def reduce(engine: "Engine", depth: int, node: int, heard: Heard, tick: int) -> Tree:
    """What a node absorbs: the weighted mean of its replies, or what its rule makes of them."""
    rule, table = engine.links.at(depth).rule, f"rule{depth}"
    if rule is None:
        return weighted_mean(heard.replies, heard.weights / heard.weights.sum())
    memory = engine.store.get(table, node)
    at = At(engine.seed, engine.reach(depth), node, engine.round, tick)
    out, kept = rule.reduce(heard._replace(whole=engine.links.whole), memory or {}, at)
    if kept or memory is not None:
        engine.store.put(table, node, kept or None)
    return out


def crossed(
    engine: "Engine", level: int, kids: Ids, down: Down, up: Up, weights: Weights, answered: "Flags", tick: int
) -> tuple[Up, Ids]:
    """(replies of a level as their parents have them, bytes that each took [H])"""
    if not engine.links.changes(level):
        return up, up.bytes() * answered
    at, whole, size = np.flatnonzero(answered), up.whole(), np.zeros(len(kids), np.int64)
    arrived = []
    for j in at.tolist():
        place = (level, int(kids[j]), row(down.messages, int(down.owner[j])))
        wire = leave(engine, *place, row(whole, j), float(weights[j]), tick)
        size[j] = payload(wire)
        arrived.append(arrive(engine, *place, wire, float(weights[j]), tick))
    return Up(len(kids), [(at, stack(arrived))]), size


def reduced(
    engine: "Engine", depth: int, nodes: Ids, owner: Ids, kids: Ids, down: Down, up: Tree, weight: Weights, tick: int
) -> Tree:
    """What the nodes of a depth absorb, stacked [n, ...]; zeros where nobody was heard.

    :param owner: [H] place of the parent among the nodes; :param weight: [H] 0: not heard
    """
    out: list[Tree | None] = []
    for r, node in enumerate(nodes.tolist()):
        mine = np.flatnonzero(owner == r)
        there = mine[weight[mine] > 0]
        said = [row(up, int(j)) for j in there]
        sent = [row(down.messages, int(down.owner[j])) for j in there]
        heard = Heard(said, sent, weight[there], kids[there], kids[mine])
        out.append(reduce(engine, depth, node, heard, tick) if len(there) else None)
    like = next(t for t in out if t is not None)
    return stack([zeros(like) if t is None else t for t in out])  # type: ignore[no-any-return]


def enough(engine: "Engine", level: int, owner: Ids, heard: "Flags") -> "Flags":
    """Whose reply counts [H]: of nodes that need several to make anything of them, and heard fewer, nobody's.

    :param owner: [H] place of the parent
    """
    link = engine.links.above(level)
    if not link.joint or not len(owner):
        return heard
    polled, counts = np.bincount(owner), np.bincount(owner, heard)
    failed = counts < np.array([link.needed(int(n)) for n in polled])
    if lost := int(counts[failed].sum()):
        engine.log.lost[level - 1] = engine.log.lost.get(level - 1, 0) + lost
    return heard & ~failed[owner]
