"""The reference engine: one node after the other, every message through the codec, as a deployed node would."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from tierfed.engine.base import Engine, Flags, Ids
from tierfed.engine.crossing import arrive, enough, leave, reduce, tell, untold
from tierfed.engine.log import RoundLog
from tierfed.engine.node import Children, Counts, Poll, Reply, Weighing, visit
from tierfed.links import Heard
from tierfed.tree import Tree, row, stack
from tierfed.wire import decode, encode, payload

Replies = list[Reply | None]


class Level(ABC):
    """The children of one node (the protocol `Children`). Subclasses say how a child is reached."""

    def __init__(self, engine: Engine, depth: int, node: int, tick: int) -> None:
        self.engine, self.depth, self.node, self.at = engine, depth, node, tick

    @abstractmethod
    def ask(self, kids: Ids, messages: list[Tree], awake: Flags, tick: int) -> Replies:
        """What each of the kids that are awake replies, with what it still owes, as it has travelled; None: nothing."""

    @abstractmethod
    def tell(self, kids: Ids, replies: Replies, heard: Flags) -> None:
        """Whose reply was heard: what has arrived is owed no more."""

    def _tick(self, burst: int) -> int:
        return self.at * self.engine.bursts(self.depth) + burst

    def poll(self, burst: int) -> Poll:
        e = self.engine
        kids = e.topology.cohort(self.depth, self.node, e.reach(self.depth), e.round, self._tick(burst))
        walk = e.walk(self.depth, self.node, kids, self._tick(burst))
        return Poll(kids, *e.roster(self.depth, self.node, kids), walk)

    def rows(self, ids: Ids) -> list[Tree]:
        return self.engine.rows(self.depth, ids)

    def put_row(self, child: int, record: Tree) -> None:
        self.engine.put_row(self.depth, child, record)

    def exchange(self, burst: int, poll: Poll, messages: list[Tree]) -> Replies:
        e, tick, to, kids = self.engine, self._tick(burst), self.engine.reach(self.depth), poll.kids
        told = tell(e, self.depth, self.node, kids, tick)
        messages = [{**m, **told} for m in messages] if told else messages
        replies = self.ask(kids, messages, e.awake(self.depth, to, kids, tick), tick)
        said = [{} if r is None else r.message for r in replies]
        down, up_bytes = (np.array([payload(m) for m in trees]) for trees in (messages, said))
        near = None if e.edge is None else self._near(to, kids, messages, said)
        answered: Flags = np.array([r is not None for r in replies])
        more = e.links.above(to).overhead(len(kids))
        down, up_bytes = down + more[0], up_bytes + more[1] * answered
        late = np.zeros(len(kids), bool)
        moved = (down, up_bytes) if near is None else near
        late[answered] = e.late(to, kids[answered], moved[0][answered], moved[1][answered], tick)
        walks = [] if poll.walk is None else [poll.walk]
        heard = e.settle(self.depth, to, kids, down, up_bytes, answered, late, tick, walks, near)
        heard = enough(e, to, np.zeros(len(kids), np.int64), heard)
        replies = [
            None if r is None else r._replace(message=self._arrived(to, int(i), m, r, tick))
            for i, m, r in zip(kids, messages, replies, strict=True)
        ]
        self.tell(kids, replies, heard)
        return [r if ok else None for r, ok in zip(replies, heard, strict=True)]

    def _arrived(self, to: int, child: int, sent: Tree, reply: Reply, tick: int) -> Tree:
        weight = float(reply.counts[self.engine.units[self.depth]])
        return arrive(self.engine, to, child, sent, reply.message, weight, tick)

    def reduce(
        self, burst: int, poll: Poll, heard: list[int], sent: list[Tree], got: list[Reply], weights: Counts
    ) -> Tree:
        said = Heard([r.message for r in got], sent, weights, poll.kids[heard], poll.kids)
        return reduce(self.engine, self.depth, self.node, said, self._tick(burst))

    def _near(self, to: int, kids: Ids, messages: list[Tree], said: list[Tree]) -> tuple[Ids, Ids]:
        """Bytes down and up on the devices' own links, where an edge holds a part of the model."""
        e = self.engine
        if to < e.depth:
            return np.zeros(len(kids), np.int64), np.zeros(len(kids), np.int64)
        tasks = [e.task(int(i)) for i in kids]
        down, up = (
            np.array([payload(t.crossing(m)) for t, m in zip(tasks, trees, strict=True)]) for trees in (messages, said)
        )
        return down, up


def visited(engine: Engine, children: Children, depth: int, node: int, state: Tree) -> tuple[Tree, Counts | None]:
    """All bursts of an inner node, from the state that it was entered with."""
    unit = engine.units[depth]
    total, over = float(engine.totals[depth][node, unit]), engine.topology.policies[depth].over == "all"
    weighing = Weighing(unit, total, over, engine.round)
    return visit(engine.tiers[depth], state, engine.bursts(depth), children, weighing, engine.plan.like)


def reported(engine: Engine, children: Children, level: int, node: int, message: Tree) -> Reply | None:
    """What an inner node says to a message, or None: nobody below it was heard."""
    tier = engine.tiers[level]
    state, counts = visited(engine, children, level, node, tier.enter(engine.kept(level, node), message))
    engine.keep(level, node, state)
    stale = engine.topology.policies[level - 1].empty == "stale" and not tier.relay
    if counts is None and stale and engine.totals[level][node, 1] > 0:
        # a team without devices has nothing to report, as in a mean over nobody
        counts = engine.totals[level][node] * [1, 1, 0] + [0, 0, 1]
    return None if counts is None else Reply(tier.report(state), counts)


def trained(engine: Engine, device: int, message: Tree, tick: int) -> Reply:
    """What a device says to a message."""
    data, task = engine.plan.one(device, engine.algorithm, engine.round, tick), engine.task(device)
    task.exchanged()  # by evaluations: they are not counted
    up, state = engine.algorithm.device(task, message, engine.own(device), data)
    if engine.edge is not None:
        engine.exchanged[device] = task.exchanged()
    engine.put_own(device, state)
    return Reply(up, np.array([engine.plan.samples[device], 1.0, 1.0]))


Answering = Callable[[Engine, int, int, Tree, int], Reply | None]


class Here(Level):
    """Children in the memory of this process. :param answer: what a child says to a message, see `answer`"""

    def __init__(self, engine: Engine, depth: int, node: int, tick: int, answer: Answering) -> None:
        super().__init__(engine, depth, node, tick)
        self.answer = answer

    def ask(self, kids: Ids, messages: list[Tree], awake: Flags, tick: int) -> Replies:
        e, to, unit = self.engine, self.engine.reach(self.depth), self.engine.units[self.depth]
        replies: Replies = []
        for i, message, up in zip(kids.tolist(), messages, awake, strict=True):
            got = decode(encode(message), e.plan.x.device)
            reply = self.answer(e, to, i, untold(got), tick) if up else None
            if reply is not None:
                weight = float(reply.counts[unit])
                said = leave(e, to, i, got, e.with_owed(to, i, reply.message, weight), weight, tick)
                reply = Reply(decode(encode(said), e.plan.x.device), reply.counts)
            replies.append(reply)
        return replies

    def tell(self, kids: Ids, replies: Replies, heard: Flags) -> None:
        e, to, unit = self.engine, self.engine.reach(self.depth), self.engine.units[self.depth]
        for i, reply, ok in zip(kids.tolist(), replies, heard, strict=True):
            if reply is not None:
                e.book_owed(to, i, reply.message, float(reply.counts[unit]), bool(ok))


def answer(engine: Engine, level: int, node: int, message: Tree, tick: int) -> Reply | None:
    """What a child says to a message, or None: nobody below it was heard."""
    if level == engine.depth:
        return trained(engine, node, message, tick)
    return reported(engine, Here(engine, level, node, tick, answer), level, node, message)


def tried(engine: Engine, devices: Ids, messages: Tree, round_: int, tick: int) -> tuple[Tree, Tree]:
    """Replies and new private states [H, ...] of devices, one after the other; nothing is kept."""
    e, visits = engine, list[tuple[Tree, Tree]]()
    for j, i in enumerate(devices.tolist()):
        data = e.plan.one(i, e.algorithm, round_, tick)
        visits.append(e.algorithm.device(e.task(i), row(messages, j), e.own(i), data))
    return stack([up for up, _ in visits]), stack([state for _, state in visits])


class Serial(Engine):
    """One node at a time; slow, plain, and what every other engine is compared with."""

    def step(self) -> RoundLog:
        self.log = RoundLog()
        state, _ = visited(self, Here(self, 0, 0, 0, answer), 0, 0, self.kept(0, 0))
        self.keep(0, 0, state)
        self.regroup()
        self.round += 1
        return self.log

    def close(self) -> None:
        """Nothing was begun."""

    def visit_devices(self, devices: Ids, messages: Tree, round_: int, tick: int) -> tuple[Tree, Tree]:
        return tried(self, devices, messages, round_, tick)
