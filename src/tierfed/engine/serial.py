"""The reference engine: one node after the other, every message through the codec, as a deployed node would."""

import numpy as np

from tierfed.engine.base import Engine, Flags, Ids
from tierfed.engine.log import RoundLog
from tierfed.engine.node import Counts, Poll, Reply, Weighing, visit
from tierfed.tree import Tree, row, stack
from tierfed.wire import decode, encode, payload_bytes


class _Level:
    """The children of one node of the serial engine (the protocol `Children`)."""

    def __init__(self, engine: "Serial", depth: int, node: int, tick: int) -> None:
        self.engine, self.depth, self.node, self.tick = engine, depth, node, tick

    def _tick(self, burst: int) -> int:
        return self.tick * self.engine.bursts(self.depth) + burst

    def poll(self, burst: int) -> Poll:
        e = self.engine
        kids = e.topology.cohort(self.depth, self.node, e.reach(self.depth), e.round, self._tick(burst))
        walk = e.walk(self.depth, self.node, kids, self._tick(burst))
        return Poll(kids, *e.roster(self.depth, self.node, kids), walk)

    def rows(self, ids: Ids) -> list[Tree]:
        return self.engine.rows(self.depth, ids)

    def put_row(self, child: int, record: Tree) -> None:
        self.engine.put_row(self.depth, child, record)

    def exchange(self, burst: int, poll: Poll, messages: list[Tree]) -> list[Reply | None]:
        e, tick, to, kids = self.engine, self._tick(burst), self.engine.reach(self.depth), poll.kids
        unit = e.units[self.depth]
        awake = np.flatnonzero(e.awake(self.depth, to, kids, tick))
        replies: list[Reply | None] = [None] * len(kids)
        answers = e.answers(to, kids[awake], [decode(encode(messages[j]), e.device) for j in awake], tick)
        for j, reply in zip(awake, answers, strict=True):
            if reply is not None:
                i = kids[j]
                owed = e.with_owed(to, int(i), reply.message, float(reply.counts[unit]))
                replies[j] = Reply(decode(encode(owed), e.device), reply.counts)
        said = [{} if r is None else r.message for r in replies]
        down, up_bytes = (np.array([_size(m) for m in trees]) for trees in (messages, said))
        near = None if e.edge is None else self._near(to, kids, messages, said)
        answered: Flags = np.array([r is not None for r in replies])
        late = np.zeros(len(kids), bool)
        moved = (down, up_bytes) if near is None else near
        late[answered] = e.late(to, kids[answered], moved[0][answered], moved[1][answered], tick)
        walks = [] if poll.walk is None else [poll.walk]
        heard = e.settle(self.depth, to, kids, down, up_bytes, answered, late, tick, walks, near)
        for i, reply, ok in zip(kids, replies, heard, strict=True):
            if reply is not None:
                e.book_owed(to, int(i), reply.message, float(reply.counts[unit]), bool(ok))
        return [r if ok else None for r, ok in zip(replies, heard, strict=True)]

    def _near(self, to: int, kids: Ids, messages: list[Tree], said: list[Tree]) -> tuple[Ids, Ids]:
        """Bytes down and up on the devices' own links, where an edge holds a part of the model."""
        e = self.engine
        if to < e.depth:
            return np.zeros(len(kids), np.int64), np.zeros(len(kids), np.int64)
        tasks = [e.task(int(i)) for i in kids]
        down, up = (
            np.array([_size(t.crossing(m)) for t, m in zip(tasks, trees, strict=True)]) for trees in (messages, said)
        )
        return down, up


def _size(message: Tree) -> int:
    return int(payload_bytes(stack([message]), 1)[0])


class Serial(Engine):
    """One node at a time; slow, plain, and what every other engine is compared with."""

    @property
    def device(self) -> str:
        return str(self.plan.x.device)

    def step(self) -> RoundLog:
        self.log = RoundLog()
        state, _ = self._visit(0, 0, self.kept(0, 0), 0)
        self.keep(0, 0, state)
        self.regroup()
        self.round += 1
        return self.log

    def close(self) -> None:
        """Nothing was begun."""

    def _visit(self, depth: int, node: int, state: Tree, tick: int) -> tuple[Tree, Counts | None]:
        unit = self.units[depth]
        total, over = float(self.totals[depth][node, unit]), self.topology.policies[depth].over == "all"
        weighing = Weighing(unit, total, over, self.round)
        children = _Level(self, depth, node, tick)
        return visit(self.tiers[depth], state, self.bursts(depth), children, weighing, self.plan.like)

    def answers(self, level: int, nodes: Ids, messages: list[Tree], tick: int) -> list[Reply | None]:
        """What children say to their messages, in their order."""
        return [self.answer(level, int(i), m, tick) for i, m in zip(nodes, messages, strict=True)]

    def answer(self, level: int, node: int, message: Tree, tick: int) -> Reply | None:
        """What a child says to a message, or None: nobody below it was heard."""
        if level == self.depth:
            data = self.plan.one(node, self.algorithm, self.round, tick)
            task = self.task(node)
            task.exchanged()  # by evaluations: they are not counted
            up, state = self.algorithm.device(task, message, self.own(node), data)
            if self.edge is not None:
                self.exchanged[node] = task.exchanged()
            self.put_own(node, state)
            return Reply(up, np.array([self.plan.samples[node], 1.0, 1.0]))
        tier = self.tiers[level]
        state, counts = self._visit(level, node, tier.enter(self.kept(level, node), message), tick)
        self.keep(level, node, state)
        stale = (
            self.topology.policies[level - 1].empty == "stale" and not tier.relay and self.totals[level][node, 1] > 0
        )
        if counts is None and stale:  # a team without devices has nothing to report, as in a mean over nobody
            counts = self.totals[level][node] * [1, 1, 0] + [0, 0, 1]
        return None if counts is None else Reply(tier.report(state), counts)

    def visit_devices(self, devices: Ids, messages: Tree, round_: int, tick: int) -> tuple[Tree, Tree]:
        visits = [
            self.algorithm.device(
                self.task(int(i)),
                row(messages, j),
                self.own(int(i)),
                self.plan.one(int(i), self.algorithm, round_, tick),
            )
            for j, i in enumerate(devices)
        ]
        return stack([up for up, _ in visits]), stack([state for _, state in visits])
