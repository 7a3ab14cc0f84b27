"""The device half: what a supernode answers to the messages of `tierfed.flower.cloud`."""

from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from tierfed.engine import Engine
from tierfed.engine.evaluate import at_device
from tierfed.engine.serial import trained
from tierfed.errors import InputError, nearest
from tierfed.evaluation import kind, scored
from tierfed.flower.common import Given, Settled, Source, card, check_world
from tierfed.flower.memory import InContext, InFolder, Memory, Visit
from tierfed.flower.records import framed, packed, said_by, tree_of
from tierfed.setup import World, prepare, threads
from tierfed.store import MemoryStore
from tierfed.tree import Tree, add, leaves


def client_app(config: Source, data: Any, module: Any, folder: Path | str | None) -> ClientApp:
    """See `tierfed.flower.client_app`."""
    given, known = Given(config=config, data=data, module=module), dict[str, tuple[Settled, World]]()

    def ready(context: Context) -> "Place":
        run_config = repr(sorted(context.run_config.items()))
        if run_config not in known:
            known.clear()  # data are large; a process that plays many supernodes has one run at a time
            known[run_config] = _prepared(given.settled(context.run_config))
        return Place(*known[run_config], context, folder)

    app = ClientApp()
    app.query()(lambda message, context: Message(ready(context).who(), reply_to=message))
    app.train()(lambda message, context: Message(ready(context).visit(message.content), reply_to=message))
    app.evaluate()(lambda message, context: Message(ready(context).evaluate(message.content), reply_to=message))
    return app


def _prepared(settled: Settled) -> tuple[Settled, World]:
    """:raises InputError: the config does not fit together, or has what Flower has no place for"""
    world = prepare(settled.config, settled.data, settled.module)
    check_world(world)
    torch.set_num_threads(threads(settled.config, [t.module for t in world.tasks]))
    return settled, world


class Place:
    """One device, ready for a message.

    :raises InputError: the node config names no device of the data
    """

    def __init__(self, settled: Settled, world: World, context: Context, folder: Path | str | None) -> None:
        self.settled, self.world, self.device = settled, world, _which(world, context)
        where = folder or context.node_config.get("state")
        self.memory: Memory = (
            InFolder(str(where), self.name, world.device) if where else InContext(context, world.device)
        )

    @property
    def name(self) -> str:
        """What the device is called."""
        return self.world.federation.devices[self.device]

    def who(self) -> RecordDict:
        """The answer to: who is there?"""
        return packed({"device": self.name, **card(self.world, self.settled, self.device)}, {})

    def visit(self, asked: RecordDict) -> RecordDict:
        """One visit of the device; its new private state is kept before the reply leaves.

        :raises InputError: the private state is lost, or newer than the visit
        """
        said = said_by(asked)
        at, run = (int(said["round"]), int(said["tick"])), str(said["run"])
        last = self._last(run, said)
        before, pending = ({}, {}) if last is None else last.next(at, _at(said["heard"]))
        engine = self._engine(before, at[0])
        up = trained(engine, self.device, tree_of(asked, "message", self.world.device), at[1]).message
        if "owed" in up and pending:
            up = {**up, "owed": add(up["owed"], pending)}
        own = engine.store.get("own", self.device) or {}
        self.memory.save(run, Visit(at=at, before=before, own=own, pending=pending, owed=up.get("owed", {})))
        return packed({}, {"reply": framed(up)}, engine.traced(engine.depth, self.device))

    def evaluate(self, asked: RecordDict) -> RecordDict:
        """Scores of the global model and of the personal ones on the device's test data; nothing is kept.

        :raises InputError: the private state is lost
        """
        said, world = said_by(asked), self.world
        last = self._last(str(said["run"]), said)
        engine = self._engine({} if last is None else last.own, int(said["round"]))
        message = tree_of(asked, "message", world.device)
        top = message["params"] if said["model"] == "sent" else None
        if said["model"] == "own":
            top = tree_of(asked, "model", world.device)
        cohort = at_device(engine, self.device, message, top, None, bool(said["post"]))
        found = scored(engine, world.federation.test, kind(world), cohort)
        return packed({}, {}, {f"{model}/{metric}": float(s.values[0]) for (model, metric), s in found})

    def _engine(self, own: Tree, round_: int) -> Engine:
        engine = self.world.engine(MemoryStore())
        engine.round = round_
        if own:
            engine.put_own(self.device, own)
        return engine

    def _last(self, run: str, said: dict[str, Any]) -> Visit | None:
        """The last visit of the run."""
        last = self.memory.load(run)
        needed = any(True for _ in leaves(self._engine({}, 0).begun(self.device)))
        if last is None and _at(said["heard"]) >= (0, 0) and needed:
            raise InputError(
                f"device {self.name!r} has lost its private state, which was in the memory of a supernode that is "
                "gone; begin the run again, with a folder for it: state='FOLDER' in the node config"
            )
        return last


def _at(said: list[int]) -> tuple[int, int]:
    return int(said[0]), int(said[1])


def _which(world: World, context: Context) -> int:
    """The device that a supernode is.

    :raises InputError: its node config does not say, or names none
    """
    names, node = world.federation.devices, context.node_config
    if "device" in node:
        name = str(node["device"])
        if name not in names:
            raise InputError(
                f"the node config has device={name!r}, the data have no such device; {nearest(name, names)}"
            )
        return list(names).index(name)
    if "partition-id" not in node:
        raise InputError(
            "the node config does not say which device this supernode is; start it with --node-config "
            f"'device=\"{names[0]}\"', or with partition-id=0"
        )
    number = int(node["partition-id"])
    if not 0 <= number < len(names):
        raise InputError(f"the node config has partition-id={number}, the data have devices 0 to {len(names) - 1}")
    return number
