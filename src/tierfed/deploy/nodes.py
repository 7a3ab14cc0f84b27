"""What a fog or a device does with a question of its parent."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from tierfed.deploy.census import sizes_of
from tierfed.deploy.engine import Deployed, of_run
from tierfed.deploy.frame import Frame, Header
from tierfed.deploy.journal import AnewError, Journal, Lineage, after
from tierfed.deploy.moving import collect, take_over
from tierfed.deploy.question import Answers, Question, question, reply_frame
from tierfed.deploy.schema import check_finite
from tierfed.deploy.told import log_as_json, traces_as_json
from tierfed.engine.crossing import arrive, leave, untold
from tierfed.engine.evaluate import at_device
from tierfed.engine.log import RoundLog
from tierfed.engine.node import Reply
from tierfed.errors import InputError
from tierfed.evaluation import kind, scored
from tierfed.tree import Tree, tmap

_END_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Node:
    """A fog or a device of a run.

    :param level: 1 below the cloud; the devices' is the last
    :param compute: held while this node computes: what devices of one process share can be used by one at a time
    """

    level: int
    ident: int
    engine: Deployed
    journal: Journal
    compute: Any = field(default_factory=threading.Lock)
    over: threading.Event = field(default_factory=threading.Event)
    """The run has ended."""

    @property
    def name(self) -> str:
        return self.engine.name(self.level, self.ident)

    @property
    def is_device(self) -> bool:
        return self.level == self.engine.depth

    def answer(self, frame: Frame, going: Callable[[], bool]) -> bytes:
        """The reply to a question.

        :raises InputError: it cannot be answered, and why
        :raises Superseded: nobody wants to know any more
        """
        asked = question(frame)
        self.engine.going = going
        if asked.kind == "count":  # before the run has a name
            return reply_frame(frame, self._count(asked))
        self.journal.adopt(asked.run)
        self.engine.run = asked.run
        if asked.kind == "end":
            return reply_frame(frame, self._end(asked))
        if asked.level > self.level:
            found = self.engine.put_question(self.level, asked, _any)
            return reply_frame(frame, (found.header(), found.tree()))
        if asked.level != self.level or list(asked.to) != [self.ident]:
            raise InputError(f"{self.name} was asked for nodes {list(asked.to)} of level {asked.level}")
        kinds = {"ask": self._visit, "score": self._score, "rows": self._rows, "tree": self._visit}
        reply = kinds.get(asked.kind)
        if reply is None:
            raise InputError(f"{self.name} was asked {asked.kind!r}, which this version does not know")
        return reply_frame(frame, reply(asked))

    def _visit(self, asked: Question) -> tuple[Header, Tree]:
        lineage, ask, engine = asked.to[self.ident], asked.asks[self.ident], self.engine
        check_finite(asked.of(self.ident))
        version = self.journal.find(lineage, asked.round)
        if asked.kind == "ask" and not self.is_device and self.journal.untold(version):
            raise AnewError(f"{self.name} has begun anew")
        self.journal.begin(asked.round, version)
        before = self.journal.said(ask)
        engine.follow()
        if before is not None:
            return before
        engine.round, engine.log, engine.told = asked.round, RoundLog(), {}
        try:
            if asked.kind == "tree":
                take_over(engine, self.level, self.ident, asked.of(self.ident))
                reply = None
            else:
                self._book(lineage, version)
                reply = self._reply(asked)
        except BaseException:
            self.journal.discard()
            engine.follow()
            raise
        notes = {"log": [log_as_json(engine.log)], "traces": traces_as_json(engine.told)}
        answer = Answers(replies={self.ident: reply}, versions={self.ident: after(version, ask)}, notes=notes)
        self.journal.commit_visit(ask, answer.header(), answer.tree())
        return answer.header(), answer.tree()

    def _reply(self, asked: Question) -> Reply | None:
        """What this node says to a message, with what it still owes."""
        engine, message = self.engine, asked.of(self.ident)
        with self.compute if self.is_device else nullcontext():
            reply = engine.answer(self.level, self.ident, untold(message), asked.tick)
        if reply is None:
            return None
        weight = float(reply.counts[engine.units[engine.asker(self.level)]])
        place = (engine, self.level, self.ident, message)
        wire = leave(*place, engine.with_owed(self.level, self.ident, reply.message, weight), weight, asked.tick)
        said = arrive(*place, wire, weight, asked.tick)
        if "owed" in said:
            owing = {"owed": tmap(lambda a: a * weight, said["owed"])}
            self.journal.put(f"owing{self.level}", self.ident, owing)
        return reply._replace(message=wire)

    def _book(self, lineage: Lineage, version: str) -> None:
        """What the reply before has said is owed no more, or still, as the parent says now."""
        owing = self.journal.get(f"owing{self.level}", self.ident)
        if owing is None:
            return
        self.journal.put(f"owing{self.level}", self.ident, None)
        heard = lineage.heard and lineage.known in (None, version)
        if not heard:
            self.journal.put(f"owed{self.level}", self.ident, owing["owed"])
        elif self.journal.get(f"owed{self.level}", self.ident) is not None:
            self.journal.put(f"owed{self.level}", self.ident, None)

    def _score(self, asked: Question) -> tuple[Header, Tree]:
        engine, about = self.engine, asked.more
        self._look(asked)
        if not self.is_device:
            found = engine.score(self.level, self.ident, asked.of(self.ident), about, asked.extra)
            found = replace(found, replies={self.ident: None}, versions={}, missing={})
            return found.header(), found.tree()
        with self.compute:
            scores = self._measured(asked, bool(about["post"]))
        answer = Answers(replies={self.ident: None}, notes={"scores": scores})
        return answer.header(), answer.tree()

    def _rows(self, asked: Question) -> tuple[Header, Tree]:
        self._look(asked)
        found = replace(collect(self.engine, self.level, self.ident), replies={self.ident: None}, versions={})
        return found.header(), found.tree()

    def _look(self, asked: Question) -> None:
        """The state that the parent counts on, for a question that changes nothing."""
        self.journal.look(self.journal.find(asked.to[self.ident], asked.round))
        self.engine.follow()
        self.engine.round = asked.round

    def _measured(self, asked: Question, post: bool) -> list[Any]:
        world, engine = self.engine.world, self.engine
        top, team = asked.extra.get("global"), asked.extra.get("team")
        cohort = at_device(engine, self.ident, asked.of(self.ident), top, team, post)
        found = scored(engine, world.federation.test, kind(world), cohort)
        return [[self.ident, model, metric, float(s.values[0])] for (model, metric), s in found]

    def _count(self, asked: Question) -> tuple[Header, Tree]:
        """How many samples the devices from here down have."""
        engine = self.engine
        if self.is_device:
            sizes = sizes_of(engine.world)[:, self.ident].tolist()
            found = Answers(notes={"counts": [[self.ident, *sizes]]})
        else:
            found = engine.put_question(self.level, count(engine, self.level, self.ident), _any)
        found = replace(found, replies={self.ident: None}, versions={}, missing={})
        return found.header(), found.tree()

    def _end(self, asked: Question) -> tuple[Header, Tree]:
        """The run is over: whoever is below hears of it, this process may end."""
        engine = self.engine
        if engine.house is not None:
            say_end(engine, self.level)
        self.over.set()
        answer = Answers()
        return answer.header(), answer.tree()


def _any(child: int, answer: Answers) -> None:
    """Whatever it is."""


def count(engine: Deployed, depth: int, ident: int) -> Question:
    """Asks the children of a node how many samples there are."""
    level = engine.below(depth)
    kids = engine.topology.below(depth, ident, level).tolist()
    return of_run(engine, kind="count", level=level, to={i: Lineage(None) for i in kids})


def say_end(engine: Deployed, depth: int) -> None:
    """Tells the children that are connected that the run is over."""
    house = engine.house
    if house is None:
        return
    there, level = house.present(), engine.below(depth)
    asked = of_run(engine, kind="end", level=level, to={i: Lineage() for i in there})
    frames = {i: (f"end-{engine.run}", asked.part([i]).frame(f"end-{engine.run}")) for i in there}
    house.gather(frames, _END_SECONDS)
