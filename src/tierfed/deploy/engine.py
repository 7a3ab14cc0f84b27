"""A round over processes: the same recursion as in simulation, with children that are asked over a network."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from tierfed.deploy.census import recounted, sizes_of
from tierfed.deploy.frame import Frame
from tierfed.deploy.household import Household
from tierfed.deploy.journal import Journal, Lineage, as_tree, digest, from_tree
from tierfed.deploy.logs import event
from tierfed.deploy.moving import CENSUS, Place, announce, collect, deliver, places
from tierfed.deploy.names import node_name, process_levels
from tierfed.deploy.question import ALL, Answers, Question, answers, ident, merge
from tierfed.deploy.schema import Layout, check_counts, check_finite, check_norm, replies
from tierfed.deploy.told import Traces, add_log, add_traces
from tierfed.dpsgd import real_task
from tierfed.engine.base import PARENTS, Engine, Flags, Ids
from tierfed.engine.beginning import with_parents
from tierfed.engine.crossing import arrive
from tierfed.engine.evaluate import messages_below
from tierfed.engine.log import RoundLog
from tierfed.engine.node import Poll, Reply
from tierfed.engine.serial import Here, Level, Replies, reported, trained, tried, visited
from tierfed.errors import InputError
from tierfed.evaluation import Found, found
from tierfed.links import real
from tierfed.metrics import Kind, Scores
from tierfed.setup import World
from tierfed.store import Records
from tierfed.tree import Tree
from tierfed.wire import encode, payload

_LOG = logging.getLogger(__name__)
_MOST_OPEN = 256
REMEDY = "; start them again, or set deploy.quorum lower; the same command goes on with the run"
Checked = Callable[[int, Answers], None]


def of_run(engine: "Deployed", *, kind: str, level: int, **more: Any) -> Question:
    """A question of the present round."""
    return Question(kind=kind, run=engine.run, round=engine.round, level=level, **more)


class Deployed(Engine):
    """The part of the tree that one process has: an inner node with its children elsewhere, or devices.

    :param house: the children; none: this process has devices alone
    """

    def __init__(self, world: World, store: Records, house: Household | None = None, run: str = "") -> None:
        own = {"tasks": tuple(map(real_task, world.tasks)), "links": real(world.links)}
        super().__init__(**{**world.parts(store), **own})
        self.world, self.house, self.run = world, house, run
        self.settings = world.config.deploy
        self.counted = not self.settings.devices  # the numbers of samples are known, not guessed
        self.levels = process_levels(world.topology)
        self.told: Traces = {}
        self.moved: dict[tuple[int, str], int] = {}  # payload that this process has sent and got, by link and way
        self.going: Callable[[], bool] = lambda: True
        self.names: Sequence[str] = world.federation.devices
        self._known: dict[Place, Tree] = {}  # of all inner nodes, while new parents are found

    def name(self, level: int, node: int) -> str:
        """What a node is called."""
        return node_name(self.topology, level, node, self.names)

    def below(self, depth: int) -> int:
        """The level of the processes that a node of a depth has below it."""
        return next(b for a, b in pairwise(self.levels) if a <= depth < b)

    def step(self) -> RoundLog:
        self.log, self.told = RoundLog(), {}
        state, _ = visited(self, self.children(0, 0, 0), 0, 0, self.kept(0, 0))
        self.keep(0, 0, state)
        self.regroup()
        self.round += 1
        return self.log

    def regroup(self) -> None:
        if not self.algorithm.regroup_scope(self.round) or self.depth == 1:
            return
        self._known = places(collect(self, 0, 0))
        super().regroup()
        moved = [(self.depth - 1, i) for i, _, _ in self.log.moved]
        moved += [(level - 1, i) for level, i, _, _ in self.log.reparented]
        if moved:
            announce(self, moved, self._known)
            self._review()
        self._known = {}

    def keeps(self, depth: int) -> bool:
        return depth == 0

    def known(self, depth: int) -> dict[int, Tree]:
        if depth == 0:
            return super().known(0)
        return {child: self._known[d, child]["row"] for d, child in sorted(self._known) if d == depth}

    def follow(self) -> None:
        """The tree is the one that the present state knows."""
        told = self.store.get(CENSUS, 0)
        if told is not None and not np.array_equal(told["sizes"].numpy(), sizes_of(self.world)):
            self.world = recounted(self.world, told["sizes"].numpy())
            self.plan = self.world.plan
            self._arrange(replace(self.topology, samples=self.plan.samples))
        self.counted = self.counted or told is not None
        topology = with_parents(self.world.topology, self.store, PARENTS)
        if not all(map(np.array_equal, topology.parents, self.topology.parents)):
            self._arrange(topology)
            self._review()

    @property
    def fresh(self) -> set[int]:
        """Children that have lost what they knew, and have not been told the tree since."""
        return set() if self.house is None else self.house.fresh

    @cached_property
    def layouts(self) -> dict[int, Layout]:
        """What replies of each level look like."""
        return replies(self.world)

    def most(self, level: int, node: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        """Samples, devices and children that a reply of a node can speak for [3]."""
        if level == self.depth:
            return np.array([self.plan.samples[node], 1.0, 1.0])
        total = self.totals[level][node]
        return total if self.tiers[level].relay else np.array([total[0], total[1], 1.0])

    def _review(self) -> None:
        """Children that have another parent now are told where it is."""
        if self.house is not None:
            self.house.review()

    def close(self) -> None:
        """The process ends what it has begun."""

    def visit_devices(self, devices: Ids, messages: Tree, round_: int, tick: int) -> tuple[Tree, Tree]:
        return tried(self, devices, messages, round_, tick)

    def children(self, depth: int, node: int, tick: int) -> Level:
        """Those on the same machine in this process, all others over the network."""
        inside = bool(self.topology.colocated) and self.topology.colocated[depth] and depth + 1 < self.depth
        if inside and self.reach(depth) == depth + 1:
            return Here(self, depth, node, tick, lambda _, *of: self.answer(*of))
        return _Remote(self, depth, node, tick)

    def answer(self, level: int, node: int, message: Tree, tick: int) -> Reply | None:
        """What a node of this process says to a message."""
        if level == self.depth:
            out: Reply | None = trained(self, node, message, tick)
        else:
            out = reported(self, self.children(level, node, tick), level, node, message)
        self.told[level, node] = super().traced(level, node)
        return out

    def traced(self, level: int, node: int) -> dict[str, float]:
        return super().traced(level, node) if level == 0 else self.told.get((level, node), {})

    def lineage(self, depth: int, child: int, level: int) -> Lineage:
        """What this node counts on of somebody on a level that it asks."""
        record = self.store.get(self._table(depth, level), child)
        if record is None and isinstance(self.store, Journal) and self.store.anew:
            return Lineage(None)  # the node whose place this one took may have asked it
        return from_tree(record)

    def put_lineage(self, depth: int, child: int, level: int, lineage: Lineage) -> None:
        """The same from now on."""
        self.store.put(self._table(depth, level), child, as_tree(lineage))

    def _table(self, depth: int, level: int) -> str:
        """Relays that visits look through are known beside those whom visits reach."""
        return f"asked{depth}" if level == self.reach(depth) else f"through{depth}"

    def asker(self, level: int) -> int:
        """The depth that nodes of a level hear from."""
        return next(a for a in range(level) if self.reach(a) >= level)

    def put_question(self, depth: int, question: Question, check: Checked, enough: int | None = None) -> Answers:
        """Asks nodes below this process, through its children.

        :param depth: of the node of this process that asks, or hands on
        :param check: raises InputError where an answer is none that can be used
        :raises Superseded: the parent wants something else by now
        """
        if self.house is None:
            raise InputError(f"asked for nodes of level {question.level}, but nobody is below this process")
        below, got = self.below(depth), dict[int, Answers]()
        parts = question.split(lambda i: int(self.topology.ancestor(question.level, np.array([i]), below)[0]))

        def take(child: int, frame: Frame) -> None:
            answer = answers(frame)
            if strangers := answer.replies.keys() - parts[child].to.keys():
                raise InputError(f"it answers for {sorted(strangers)}, who was not asked through it")
            check(child, answer)
            got[child] = answer

        frames = {child: (name := ident(), part.frame(name)) for child, part in parts.items()}
        gathered = self.house.gather(frames, self.settings.deadline(below - 1), self.going, take, enough)
        away = {i: why for child, why in gathered.missing.items() for i in parts[child].to}
        out = merge((got[c] for c in parts if c in gathered.replies), away)
        unknown = {i: "no answer" for i in question.to if i not in out.replies and i not in out.missing}
        for link, way, size in self._moved(below, question, parts, out):
            self.moved[link, way] = self.moved.get((link, way), 0) + size
        return replace(out, missing={**out.missing, **unknown})

    def _moved(self, below: int, question: Question, parts: dict[int, Question], out: Answers) -> list[Any]:
        if question.kind != "ask":
            return []
        down = sum(payload(m) for part in parts.values() for m in part.messages.values())
        up = sum(payload(r.message) for r in out.replies.values() if r is not None)
        return [(below - 1, "down", down), (below - 1, "up", up)]

    def score(self, depth: int, node: int, message: Tree, about: dict[str, Any], extra: dict[str, Tree]) -> Answers:
        """Scores of devices below an inner node of this process, after a message of its own parent.

        :param about: "devices": who is evaluated; "post": see `tierfed.evaluation.evaluate`
        :param extra: the "global" and the "team" model, as far as there are any
        """
        to, wanted = self.reach(depth), np.array(about["devices"], np.int64)
        kids = np.unique(self.topology.ancestor(self.depth, wanted, to)) if to < self.depth else wanted
        kids = kids[self.topology.ancestor(to, kids, depth) == node]
        team = self.tiers[depth].model(self.kept(depth, node)) if depth else None
        extra = {**extra, **({} if team is None else {"team": team})}
        messages = messages_below(self, depth, node, message, kids)
        if isinstance(self.children(depth, node, 0), Here):
            return merge((self.score(to, int(i), m, about, extra) for i, m in zip(kids, messages, strict=True)), {})
        question = of_run(
            self,
            kind="score",
            level=to,
            to={int(i): self.lineage(depth, int(i), to) for i in kids},
            messages=_common(messages, kids, self.tiers[depth].sees == ""),
            more=about,
            extra=extra,
        )
        return self.put_question(depth, question, lambda child, answer: None)


class _Remote(Level):
    """Children in other processes."""

    engine: Deployed

    def __init__(self, engine: Deployed, depth: int, node: int, tick: int) -> None:
        super().__init__(engine, depth, node, tick)
        self.asked: dict[int, str] = {}
        self.versions: dict[int, str] = {}
        self.wanted = 0  # replies, of more that are polled

    def poll(self, burst: int) -> Poll:
        e, more = self.engine, self.engine.settings.more(self.depth)
        first = super().poll(burst)
        self.wanted = len(first.kids)
        sample = e.topology.policies[self.depth].sample
        if not more or e.reach(self.depth) != self.depth + 1:
            return first
        larger = int(np.ceil(sample * (1 + more))) if isinstance(sample, int) else min(1.0, sample * (1 + more))
        policies = list(e.topology.policies)
        policies[self.depth] = replace(policies[self.depth], sample=larger)
        kids = replace(e.topology, policies=tuple(policies)).poll(self.depth, self.node, e.round, self._tick(burst))
        return Poll(kids, *e.roster(self.depth, self.node, kids))

    def ask(self, kids: Ids, messages: list[Tree], awake: Flags, tick: int) -> Replies:
        e, to = self.engine, self.engine.reach(self.depth)
        there = [(int(i), m) for i, m, up in zip(kids, messages, awake, strict=True) if up]
        self.asked, self.versions = {}, {}
        if not there:
            return [None] * len(kids)
        shared = e.tiers[self.depth].sees == ""
        first = encode(there[0][1])
        for i, message in there:
            content = first if shared else encode(message)
            self.asked[i] = digest(e.run, f"{e.round} {tick} {to} {i}", content)
        below = e.below(self.depth)
        over = {i: int(e.topology.ancestor(to, np.array([i]), below)[0]) for i, _ in there}
        lost = deliver(e, self.depth, sorted(set(over.values())))
        enough = self.wanted if len(kids) > self.wanted else None
        found = self._put({i: m for i, m in there if over[i] not in lost}, tick, enough)
        found = replace(found, missing={**found.missing, **{i: lost[c] for i, c in over.items() if c in lost}})
        begun = {c for c in e.fresh if any(i in found.missing for i in over if over[i] == c)}
        if begun:  # they have taken the place of lost ones meanwhile, and must know the tree before they are asked
            lost = deliver(e, self.depth, sorted(begun))
            again = self._put({i: m for i, m in there if over[i] in begun and over[i] not in lost}, tick, None)
            rest = {i: why for i, why in found.missing.items() if i not in again.replies and i not in again.missing}
            found = merge([replace(found, missing=rest), again], {})
        self._count(found, len(there))
        self.versions = found.versions
        for told in found.notes.get("log", []):
            add_log(e.log, told)
        add_traces(e.told, found.notes.get("traces", []))
        return [found.replies.get(int(i)) for i in kids]

    def _put(self, messages: dict[int, Tree], tick: int, enough: int | None) -> Answers:
        """Asks some of the kids."""
        e, to, ids = self.engine, self.engine.reach(self.depth), np.array(list(messages), np.int64)
        question = of_run(
            e,
            kind="ask",
            tick=tick,
            level=to,
            to={i: e.lineage(self.depth, i, to) for i in messages},
            asks={i: self.asked[i] for i in messages},
            messages=_common(list(messages.values()), ids, e.tiers[self.depth].sees == ""),
        )
        return e.put_question(self.depth, question, self._check(question), enough)

    def _check(self, question: Question) -> Checked:
        """Replies are checked before they are used."""
        e, to = self.engine, self.engine.reach(self.depth)
        layout, bound, unit = e.layouts.get(to), e.settings.norm_bound, e.units[self.depth]

        def check(child: int, answer: Answers) -> None:
            for i, reply in answer.replies.items():
                if reply is None:
                    continue
                check_finite(reply.message)
                check_counts(reply, e.most(to, i))
                if e.links.above(to).joint:
                    continue
                sent, weight = question.of(i), float(reply.counts[unit])
                message = arrive(e, to, i, sent, reply.message, weight, question.tick)
                if layout is not None:
                    layout.check(message)
                check_finite(message)
                if bound is not None:
                    check_norm(sent, message, bound)

        return check

    def _count(self, found: Answers, asked: int) -> None:
        """:raises InputError: too few have answered"""
        e, to, answered = self.engine, self.engine.reach(self.depth), len(found.replies)
        away = found.missing
        if answered >= self.wanted or not away:
            return
        names = ", ".join(f"{e.name(to, i)} ({why})" for i, why in sorted(away.items())[:8])
        names += f" and {len(away) - 8} more" if len(away) > 8 else ""
        me, needed = e.name(self.depth, self.node), e.settings.needed(to - 1, min(asked, self.wanted))
        if answered < needed:
            raise InputError(
                f"round {e.round + 1} at {me}: {answered} of {asked} have answered, {needed} are needed; missing: "
                f"{names}{REMEDY if self.depth == 0 else ''}"
            )
        about = event("incomplete", round=e.round + 1)
        _LOG.warning("round %d at %s: goes on without %s", e.round + 1, me, names, extra=about)
        e.log.lost[to - 1] = e.log.lost.get(to - 1, 0) + len(away)

    def tell(self, kids: Ids, replies: Replies, heard: Flags) -> None:
        e = self.engine
        for i, ok in zip(kids.tolist(), heard, strict=True):
            if i in self.versions:
                lineage = Lineage(self.versions[i], (), bool(ok))
            elif i in self.asked:
                before = e.lineage(self.depth, i, e.reach(self.depth))
                lineage = before._replace(open=(*before.open, self.asked[i])[-_MOST_OPEN:])
            else:
                continue
            e.put_lineage(self.depth, i, e.reach(self.depth), lineage)


def _common(messages: list[Tree], kids: Ids, shared: bool) -> dict[str, Tree]:
    """What crosses links once, or a message of each."""
    if shared and messages:
        return {ALL: messages[0]}
    return {str(int(i)): m for i, m in zip(kids, messages, strict=True)}


def scores(engine: Engine, test: Sequence[Ids], kind: Kind, devices: Ids, post: bool = True, tell: Any = None) -> Found:
    """Scores of every evaluated model on the test data of some devices, which measure them themselves; whoever does not
    answer has none. As `tierfed.evaluation.evaluate`, on the engine of the cloud.
    """
    if not isinstance(engine, Deployed):
        raise TypeError("scores over a network are of a deployed run")
    there = [int(i) for i in devices if len(test[i])]
    top = engine.tiers[0].model(engine.kept(0, 0))
    extra: dict[str, Tree] = {} if top is None else {"global": top}
    got = engine.score(0, 0, {}, {"devices": there, "post": post}, extra) if there else Answers()
    if got.missing:
        names = ", ".join(engine.name(engine.reach(0), i) for i in sorted(got.missing)[:8])
        _LOG.warning("not evaluated: %s", names, extra=event("incomplete"))
    parts: dict[tuple[str, str], list[Scores]] = {}
    for device, model, metric, value in got.notes.get("scores", []):
        one = Scores(np.array([int(device)]), np.array([float(value)]))
        parts.setdefault((str(model), str(metric)), []).append(one)
    return found(parts)
