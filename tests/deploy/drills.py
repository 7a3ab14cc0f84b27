"""A small tree for drills: run step by step, with lines that a test holds, cuts and alters, and strangers."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deploy.harness import config as harness_config
from deploy.harness import everything, models_of
from tierfed.config import Config
from tierfed.deploy.frame import Header, peek
from tierfed.deploy.memory import Memory
from tierfed.deploy.names import tree_nodes
from tierfed.deploy.process import AtWork, Cloud, Nodes, begin_node, world_of
from tierfed.deploy.transport import Closing, Owner, Peer, Stream, Transport
from tierfed.engine import Engine
from tierfed.evaluation import evaluate
from tierfed.faults import Faults
from tierfed.loop import Over
from tierfed.loop import run as simulate
from tierfed.result import Progress, Result
from tierfed.setup import World
from tierfed.tree import Tree

DEVICES, FOGS = 4, 2  # devices 0 and 2 are below fog-0, devices 1 and 3 below fog-1
SECONDS = 120.0  # that nothing here takes, on any machine
Place = tuple[int, int, int, int]
"""(round from 0, tick, level, node)."""


def small(folder: Path, algorithm: str = "permfl", rounds: int = 4, **tables: dict[str, Any]) -> Config:
    """A config over four devices in two teams; nobody has a deadline, one of two children is a quorum."""
    path = folder / "data.npz"
    if not path.exists():
        rng = np.random.default_rng(5)
        device = np.repeat(np.arange(DEVICES), (16, 20, 24, 18))
        x = rng.normal(size=(len(device), 5)).astype(np.float32)
        y = (x[:, 0] * np.where(device % 2, 1.0, -1.0) > 0).astype(np.int64)
        np.savez(path, x=x, y=y, device=device, team=device % FOGS)
    deploy = {"deadline_seconds": None, "quorum": 1, **tables.pop("deploy", {})}
    run = {"rounds": rounds, **tables.pop("run", {})}
    return harness_config(folder, {"name": algorithm}, run=run, deploy=deploy, **tables)


@dataclass(frozen=True, kw_only=True)
class Absent(Faults):
    """What has happened in a drill, for the simulation that it is compared with.

    :param away: who never heard the message; :param unheard: whose reply was not counted
    """

    away: tuple[Place, ...] = ()
    unheard: tuple[Place, ...] = ()

    def silent(self, seed: int, level: int, ids: Any, round_: int, tick: int) -> Any:
        return np.array([(round_, tick, level, int(i)) in self.away for i in ids], bool)

    def lost(self, seed: int, level: int, ids: Any, round_: int, tick: int) -> Any:
        return np.array([(round_, tick, level, int(i)) in self.unheard for i in ids], bool)


def simulated(config: Config, faults: Absent) -> dict[str, Tree]:
    """The models and rows of the same run in simulation, with the same participants."""

    def engine(world: World, store: Any, tell: Any) -> Engine:
        made = world.engine(store, tell)
        made.faults = faults
        return made

    config = replace(config, engine=replace(config.engine, name="serial"))
    return models_of(simulate(config, folder=False, over=Over(engine, evaluate)).engine.store)


class Clock:
    """Stands in the place of the module `time` of a parent: a deadline passes when a drill says so."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


Pass = Callable[[bytes], Sequence[bytes]]


class Tap:
    """A node's own line to its parent (the protocol `Transport`).

    :param up: what becomes of a frame that the node sends; :param down: of one that it gets
    """

    def __init__(self, inner: Transport) -> None:
        self.inner = inner
        self.up: Pass = lambda frame: [frame]
        self.down: Pass = lambda frame: [frame]
        self.now: Stream | None = None  # of the parent's end, past the tap

    def listen(self, address: str, owner: Owner) -> Closing:
        return self.inner.listen(address, owner)

    def dial(self, address: str, owner: Owner) -> None:
        self.inner.dial(address, _Tapped(owner, self))

    def close(self) -> None:
        self.inner.close()


class _Tapped:
    """The owner of a stream that is tapped, and the stream itself (the protocols `Owner` and `Stream`)."""

    def __init__(self, owner: Owner, tap: Tap) -> None:
        self.owner, self.tap = owner, tap
        self.stream: Stream | None = None

    @property
    def peer(self) -> Peer:
        assert self.stream is not None
        return self.stream.peer

    def opened(self, stream: Stream) -> None:
        self.stream = self.tap.now = stream
        self.owner.opened(self)

    def received(self, stream: Stream, frame: bytes) -> None:
        for one in self.tap.down(frame):
            self.owner.received(self, one)

    def closed(self, stream: Stream | None, why: str) -> None:
        self.owner.closed(None if stream is None else self, why)

    def send(self, frame: bytes) -> None:
        for one in self.tap.up(frame):
            assert self.stream is not None
            self.stream.send(one)

    def close(self) -> None:
        if self.stream is not None:
            self.stream.close()


def is_reply(frame: bytes, round_: int, level: int | None = None) -> bool:
    """Whether a frame is a reply to a visit of a round from 1. :param level: unused by devices, who have one"""
    header = peek(frame)
    visited = any(version for _, version, _ in header.get("from", []))
    return header.get("kind") == "reply" and header.get("round") == round_ - 1 and visited


def is_ask(frame: bytes, round_: int) -> bool:
    """Whether a frame asks for a visit in a round from 1."""
    header = peek(frame)
    return header.get("kind") == "ask" and header.get("round") == round_ - 1


def logged(log: pytest.LogCaptureFixture, *texts: str, times: int = 1) -> None:
    """Until so many lines of nodes in this process begin with one of some texts, or hold it after "…"."""
    end, found, seen = time.monotonic() + SECONDS, 0, 0
    while True:
        fresh = [r.getMessage() for r in log.records[seen:]]
        seen += len(fresh)
        found += sum(any(t[1:] in line if t[0] == "…" else line.startswith(t) for t in texts) for line in fresh)
        if found >= times:
            return
        if time.monotonic() > end:
            raise AssertionError(f"{texts} never came:\n" + "\n".join(r.getMessage() for r in log.records[-60:]))
        time.sleep(0.01)


class Stranger:
    """Somebody who dials and sends frames (the protocol `Owner`)."""

    def __init__(self, *frames: bytes) -> None:
        self.frames, self.heard, self.why = frames, list[Header](), ""
        self.over = threading.Event()

    def opened(self, stream: Stream) -> None:
        for frame in self.frames:
            stream.send(frame)

    def received(self, stream: Stream, frame: bytes) -> None:
        self.heard.append(peek(frame))

    def closed(self, stream: Stream | None, why: str) -> None:
        self.why = why
        self.over.set()


def knock(transport: Transport, address: str, *frames: bytes) -> Stranger:
    """What comes of frames of somebody whose connection is ended by the other side."""
    one = Stranger(*frames)
    transport.dial(address, one)
    assert one.over.wait(SECONDS), "the connection stays open"
    return one


class Steps:
    """A run whose cloud is at work in a thread of its own and stops after the rounds that a test names."""

    def __init__(self, cloud: Cloud, stops: Sequence[int], folder: bool = False) -> None:
        self.cloud, self.stops = cloud, set(stops)
        self.result: Result | None = None
        self.failure: BaseException | None = None
        self._at, self._changed, self._going = -1, threading.Condition(), False
        self._thread = threading.Thread(target=self._run, args=(folder,), name="the cloud")
        self._thread.start()

    def _run(self, folder: bool) -> None:
        try:
            self.result = self.cloud.run(self._watch, folder=folder)
        except BaseException as err:
            self.failure = err
        with self._changed:
            self._changed.notify_all()

    def _watch(self, progress: Progress) -> None:
        if progress.doing:
            return
        with self._changed:
            self._at = progress.round
            self._changed.notify_all()
            if progress.round in self.stops:
                self._going = False
                self._changed.wait_for(lambda: self._going, SECONDS)

    def begun(self) -> None:
        """Until the cloud listens."""
        end = time.monotonic() + SECONDS
        while self.cloud.listener is None and self.failure is None:
            assert time.monotonic() < end
            time.sleep(0.005)

    def after(self, round_: int) -> None:
        """Until the cloud stands still after a round."""
        with self._changed:
            self._going = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._at >= round_ or self.failure or self.result, SECONDS)
        assert self.failure is None, self.failure
        assert done
        assert self._at == round_

    def go(self) -> None:
        """It goes on."""
        with self._changed:
            self._going = True
            self._changed.notify_all()

    def finish(self) -> Result:
        """Until the end of the run."""
        self.stops.clear()
        self.go()
        self._thread.join(SECONDS)
        if self.failure is not None:
            raise self.failure
        assert self.result is not None
        return self.result

    def close(self) -> None:
        self.stops.clear()
        self.go()
        self._thread.join(5.0)


@dataclass(kw_only=True, eq=False)
class Drill:
    """A tree at work. :param nodes: fogs and devices of this process by name; :param taps: their lines"""

    config: Config
    steps: Steps
    cloud: Cloud
    nodes: dict[str, AtWork]
    taps: dict[str, Tap]
    network: Any

    def kept(self) -> dict[str, Tree]:
        """What everybody has kept, after the run."""
        return everything(self.steps.finish(), self.nodes)

    def house(self, name: str) -> Any:
        """The household of an inner node."""
        engine = self.cloud.engine if name == "cloud" else self.nodes[name].node.engine
        assert engine is not None
        assert engine.house is not None
        return engine.house


@contextmanager
def drill(
    config: Config,
    *,
    stops: Sequence[int] = (),
    network: Callable[[str], tuple[Transport, Any]] | None = None,
    parents: Mapping[str, str] | None = None,
    elsewhere: Sequence[str] = (),
    folder: bool = False,
) -> Iterator[Drill]:
    """All nodes of a config in this process, each with a tap on its line.

    :param stops: rounds after which the cloud stands still
    :param network: transport and gate of a node; by default one network in memory for all
    :param parents: addresses that nodes dial in the place of those of the config
    :param elsewhere: nodes that are none of this process
    :param folder: everybody keeps its state on disk
    """
    shared = Memory()
    made: dict[str, tuple[Transport, Any]] = {}

    def of(name: str) -> tuple[Transport, Any]:
        return made.setdefault(name, network(name) if network is not None else (shared, None))

    nodes, taps, at_work = dict[str, AtWork](), dict[str, Tap](), Nodes()
    steps = None
    try:
        world = world_of(config)
        inside = tree_nodes(world.topology, world.federation.devices)
        inside = tuple(one for one in inside if one.tier != "cloud" and one.name not in elsewhere)
        worlds = [world_of(config) for _ in inside]  # one after the other: models begin from the global generator
        transport, gate = of("cloud")
        cloud = Cloud(config, transport, gate=gate)
        steps = Steps(cloud, stops, folder)
        steps.begun()
        for one, own in zip(inside, worlds, strict=True):
            transport, gate = of(one.name)
            taps[one.name] = Tap(transport)
            where = (parents or {}).get(one.name, "")
            nodes[one.name] = begin_node(
                own, one.name, one.tier, taps[one.name], gate=gate, memory=not folder, parent=where
            )
            at_work.at_work.append(nodes[one.name])
        yield Drill(config=config, steps=steps, cloud=cloud, nodes=nodes, taps=taps, network=transport)
    finally:
        at_work.close()
        if steps is not None:
            if cloud.engine is not None:
                cloud.engine.going = lambda: False
                if cloud.engine.house is not None:
                    cloud.engine.house.wake()
            steps.close()
        for transport, _ in made.values():
            transport.close()
