"""Nodes at work: what begins when a process begins, and ends with it."""

import json
import logging
import os
import shutil
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tierfed import loop
from tierfed.augment.gan import Tell
from tierfed.config import Config
from tierfed.data import Federation
from tierfed.deploy.census import counted, guessed, own
from tierfed.deploy.engine import Deployed, scores
from tierfed.deploy.household import Household
from tierfed.deploy.joining import (
    Door,
    address,
    check_roaming,
    check_world,
    deployable,
    find,
    greeting,
    run_folder,
    state_folder,
)
from tierfed.deploy.journal import Journal
from tierfed.deploy.logs import event
from tierfed.deploy.member import Member
from tierfed.deploy.names import CLOUD
from tierfed.deploy.nodes import Node, count, say_end
from tierfed.deploy.status import Status
from tierfed.deploy.transport import Closing, Transport
from tierfed.engine import Engine
from tierfed.errors import InputError
from tierfed.metrics import write_atomic
from tierfed.result import Result, Watcher
from tierfed.session import on_disk
from tierfed.setup import World, prepare
from tierfed.store import DiskStore, MemoryStore

if TYPE_CHECKING:
    from tierfed.deploy.admission import Gate

_LOG = logging.getLogger(__name__)
_RUN, _CENSUS = "run.id", "census.json"


@dataclass(kw_only=True, eq=False)
class AtWork:
    """A fog or a device in this process."""

    node: Node
    member: Member
    store: DiskStore | MemoryStore
    listener: Closing | None = None

    def status(self) -> Status:
        """How it is now."""
        engine, member = self.node.engine, self.member
        return Status(
            node=self.node.name,
            pid=os.getpid(),
            at=time.time(),
            round=self.node.journal.round + 1,
            joined=member.joined,
            children=children(engine, self.node.level, self.node.ident),
            busy_seconds=member.busy_seconds,
            over=self.node.over.is_set(),
        )

    def round(self) -> int | None:
        """The round that it is at work on or has heard of last, from 1."""
        return self.node.journal.round + 1 or None

    def review(self) -> None:
        """Asks again who may stay, and whether the parent may."""
        self.member.review()
        if self.node.engine.house is not None:
            self.node.engine.house.review()

    def close(self) -> None:
        """Ends its connections and lets others at its folder."""
        self.member.close()
        if self.node.engine.house is not None:
            self.node.engine.house.close()
        if self.listener is not None:
            self.listener.close()
        if isinstance(self.store, DiskStore):
            self.store.close()


@dataclass(kw_only=True, eq=False)
class Nodes:
    """All nodes of this process."""

    at_work: list[AtWork] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float = 0.5) -> bool:
        """Until the run is over or somebody stops the process; whether the run is over.

        :raises InputError: a node cannot go on
        """
        while not self.stopping.is_set():
            if all(one.node.over.is_set() for one in self.at_work):
                return True
            for one in self.at_work:
                if one.member.failure is not None:
                    raise one.member.failure
            self.stopping.wait(seconds)
        return False

    def close(self) -> None:
        """Ends them all."""
        self.stopping.set()
        for one in reversed(self.at_work):  # those who would dial again first
            one.close()


def world_of(config: Config, device: str = "", data: Path | None = None) -> World:
    """The world of a process.

    :param device: whose data are here, where deploy.devices names devices with data of their own
    :param data: its file
    :raises InputError: whatever does not fit, or cannot be deployed
    """
    config, federation = deployable(config), None
    if data is not None and not config.deploy.devices:
        raise InputError("--data is for devices with files of their own; name them in deploy.devices")
    if config.deploy.devices:
        federation = own(config, device, data) if device else counted(config, guessed(config))
    world = prepare(config, federation=federation)
    check_world(world)
    return world


def begin_node(
    world: World,
    name: str,
    tier: str,
    transport: Transport,
    *,
    gate: "Gate | None" = None,
    memory: bool = False,
    anew: bool = False,
    listen: str = "",
    parent: str = "",
    compute: Any = None,
    store: MemoryStore | None = None,
) -> AtWork:
    """A fog or a device that listens, dials and answers.

    :param gate: what is asked of parent and children; none: nobody shows a certificate
    :param memory: it keeps nothing on disk
    :param anew: what it has kept is deleted
    :param listen: where it listens; by default as the config says
    :param parent: where its parent listens; by default as the config says
    :param compute: see `Node`
    :param store: what it has kept, with `memory`
    :raises InputError: no such node, a damaged state, nobody can listen at its address
    """
    me = find(world, name, tier)
    folder = state_folder(world.config, name)
    if anew and not memory:
        shutil.rmtree(folder, ignore_errors=True)
    kept: DiskStore | MemoryStore = (store or MemoryStore()) if memory else DiskStore(folder)
    try:
        if isinstance(kept, DiskStore):
            kept.verify()
        journal = Journal(kept, anew)
        engine = Deployed(world, journal, run=journal.run)
        if tier == "fog":
            door = Door(engine=engine, depth=me.level, ident=me.index, gate=gate)
            engine.house = Household(world.config.deploy, door, lambda i: engine.name(engine.below(me.level), i), gate)
        one = Node(level=me.level, ident=me.index, engine=engine, journal=journal, compute=compute or threading.Lock())
        wake = engine.house.wake if engine.house is not None else _nothing
        member = Member(
            name,
            transport,
            parent or address(world, me.parent),
            lambda: greeting(world, me, journal.fresh),
            one.answer,
            wake,
            world.config.deploy.retry_seconds,
            one.over,
            gate,
        )
        listener = transport.listen(listen or address(world, name), engine.house) if engine.house is not None else None
    except BaseException:
        if isinstance(kept, DiskStore):
            kept.close()
        raise
    member.start()
    return AtWork(node=one, member=member, store=kept, listener=listener)


_AT_DEVICES = "private states of its devices are in their own folders; go on with `tierfed cloud` or `tierfed up`"


def _nothing() -> None:
    """Nobody has to be woken."""


class Cloud:
    """The cloud of a run: the same session as in simulation, over an engine whose children are elsewhere."""

    def __init__(self, config: Config, transport: Transport, *, gate: "Gate | None" = None, listen: str = "") -> None:
        self.config = deployable(config)
        self.transport, self.gate, self.address = transport, gate, listen
        self.engine: Deployed | None = None
        self.listener: Closing | None = None
        self.over = False

    def round(self) -> int | None:
        """The round that it is at work on, from 1."""
        return None if self.engine is None or not self.engine.run else self.engine.round + 1

    def seen(self) -> list[tuple[Status, Household | None]]:
        """How it is now, once it has begun."""
        engine = self.engine
        if engine is None:
            return []
        status = Status(
            node=CLOUD,
            pid=os.getpid(),
            at=time.time(),
            round=engine.round,
            joined=True,
            children=children(engine, 0, 0),
            busy_seconds=0.0,
            over=self.over,
        )
        return [(status, engine.house)]

    def run(self, watch: Watcher | None = None, folder: bool = True) -> Result:
        """Begins the run, or goes on with it; until its end.

        :param folder: keep it in its run folder
        :raises InputError: whatever `tierfed.run` and `tierfed.resume` raise; too few nodes have answered
        """
        path = run_folder(self.config)
        try:
            federation = self._counted(folder) if self.config.deploy.devices else None
            over = loop.Over(self._begin, scores, federation, self._check)
            if folder and (path / "config.toml").exists():
                result = loop.resume(path, rounds=self.config.run.rounds, watch=watch, over=over)
            else:
                result = loop.run(self.config, watch=watch, folder=folder, over=over)
            if self.engine is not None and not result.interrupted:
                self.over = True
                say_end(self.engine, 0)
            return result
        finally:
            if self.engine is not None and self.engine.house is not None:
                self.engine.house.close()
            if self.listener is not None:
                self.listener.close()

    def _check(self, world: World) -> None:
        check_world(world)
        if self.gate is not None:
            check_roaming(world)

    def _begin(self, world: World, store: DiskStore | MemoryStore, tell: Tell | None) -> Engine:
        world = replace(world, config=replace(world.config, deploy=self.config.deploy))
        engine = self._open(Deployed(world, store, run=_run_name(store)))
        engine.elsewhere, engine.counted = _AT_DEVICES, True
        return engine

    def _open(self, engine: Deployed) -> Deployed:
        """Lets children in, those of an engine before this one too."""
        before, self.engine = self.engine, engine
        door = Door(engine=engine, depth=0, ident=0, gate=self.gate)
        if before is not None and before.house is not None:
            engine.house = before.house
            engine.house.admit = door
        else:
            engine.house = Household(engine.settings, door, lambda i: engine.name(engine.below(0), i), self.gate)
            here = self.address or address(engine.world, CLOUD)
            self.listener = self.transport.listen(here, engine.house)
        return engine

    def _counted(self, folder: bool) -> Federation:
        """Who there is, and how many samples they have told; asked once in a run."""
        path = state_folder(self.config, CLOUD) / _CENSUS
        if folder and path.exists():
            return counted(self.config, np.array(json.loads(path.read_text("ascii")), np.int64))
        engine = self._open(Deployed(world_of(self.config), MemoryStore()))
        sizes = np.full((3, len(engine.names)), -1, np.int64)
        while (sizes < 0).any():
            for i, *numbers in engine.put_question(0, count(engine, 0, 0), lambda child, answer: None).notes.get(
                "counts", []
            ):
                sizes[:, int(i)] = numbers
            if (sizes < 0).any():
                away = ", ".join(engine.names[i] for i in np.flatnonzero(sizes[0] < 0)[:8])
                text, about = "the run begins when all have told their number of samples; missing: %s", event("waiting")
                _LOG.info(text, away, extra=about)
                time.sleep(1.0)
        if folder:
            with on_disk(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, json.dumps(sizes.tolist()))
        return counted(self.config, sizes)


def children(engine: Deployed, depth: int, ident: int) -> tuple[int, int]:
    """How many children of a node are connected, and how many there are."""
    if engine.house is None:
        return 0, 0
    return len(engine.house.present()), len(engine.topology.below(depth, ident, engine.below(depth)))


def _run_name(store: DiskStore | MemoryStore) -> str:
    """What tells this run from every other one, from its beginning on."""
    fresh = os.urandom(8).hex()
    if not isinstance(store, DiskStore):
        return fresh
    path: Path = store.path.parent / _RUN
    if not path.exists():
        if store.meta:
            raise InputError(f"{path} is missing, without which nobody below knows this run; restore it from a copy")
        write_atomic(path, fresh)
    return path.read_text("ascii")
