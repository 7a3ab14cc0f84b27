"""The cloud half: rounds of tierfed whose devices are Flower's supernodes."""

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from tierfed.engine import Engine
from tierfed.engine.base import Flags, Ids
from tierfed.engine.evaluate import messages_below
from tierfed.engine.log import RoundLog
from tierfed.engine.node import Reply
from tierfed.engine.serial import Level, Replies, tried, visited
from tierfed.errors import InputError
from tierfed.evaluation import Found, found
from tierfed.flower.common import Given, Settled, Source, check_world
from tierfed.flower.fleet import Fleet
from tierfed.flower.records import framed, numbers_of, packed, tree_of
from tierfed.folders import read_run
from tierfed.loop import Over, resume, run, with_given
from tierfed.metrics import Kind, Scores
from tierfed.result import Progress, Result
from tierfed.session import fingerprint
from tierfed.setup import World
from tierfed.store import Store
from tierfed.tree import Params, Tree

log = logging.getLogger("flwr")
_AT_FLOWER = (
    "private states of its devices are at Flower's supernodes; run its app there (`flwr run`) with the same run.out"
)


class OverGrid(Engine):
    """Rounds whose devices are asked over Flower's grid, all of a burst at the same time.

    The store holds what the cloud keeps, and in "heard" the last visit of each device that was heard.
    """

    def __init__(self, world: World, store: Store, fleet: Fleet) -> None:
        super().__init__(**world.parts(store))
        self.fleet, self.elsewhere = fleet, _AT_FLOWER
        self.token = secrets.token_hex(8)  # of the run: devices tell their private states of different runs apart by it
        self.told: dict[int, dict[str, float]] = {}  # what devices let be seen of their private states

    def open(self) -> None:
        self.fleet.gather()

    def step(self) -> RoundLog:
        self.log, self.told = RoundLog(), {}
        state, _ = visited(self, _Supernodes(self, 0, 0, 0), 0, 0, self.kept(0, 0))
        self.keep(0, 0, state)
        self.round += 1
        return self.log

    def close(self) -> None:
        """The supernodes are Flower's."""

    def visit_devices(self, devices: Ids, messages: Tree, round_: int, tick: int) -> tuple[Tree, Tree]:
        return tried(self, devices, messages, round_, tick)

    def traced(self, level: int, node: int) -> dict[str, float]:
        return super().traced(level, node) if level == 0 else self.told.get(node, {})

    def orders(
        self, devices: list[int], messages: list[Tree], said: Mapping[str, Any], **more: ArrayRecord
    ) -> dict[int, RecordDict]:
        """Messages to devices; what is common to them is one object, which Flower sends to the superlink once."""
        frames: dict[int, ArrayRecord] = {}
        out: dict[int, RecordDict] = {}
        for i, message in zip(devices, messages, strict=True):
            key = id(message) if self.tiers[0].sees else 0
            if key not in frames:
                frames[key] = framed(message)
            heard = self.store.get("heard", i)
            at = [-1, -1] if heard is None else heard["at"].tolist()
            about = {"run": self.token, "round": self.round, "heard": at, **said}
            out[i] = packed(about, {"message": frames[key], **more})
        return out

    def meta(self) -> dict[str, Any]:
        return {**super().meta(), "token": self.token}

    def restore(self, meta: dict[str, Any]) -> None:
        if "token" not in meta:
            raise InputError(
                "the run folder is of a run without Flower, and what devices keep is in it; go on with `tierfed "
                "resume`, or choose another folder with run.out"
            )
        super().restore(meta)
        self.token = str(meta["token"])


class _Supernodes(Level):
    """Devices behind Flower's grid. They add themselves what they still owe, and learn with the next message whether
    they were heard.
    """

    engine: OverGrid
    tick: int  # of the exchange that goes on

    def ask(self, kids: Ids, messages: list[Tree], awake: Flags, tick: int) -> Replies:
        e, self.tick, there = self.engine, tick, np.flatnonzero(awake)
        if not len(there):
            return [None] * len(kids)
        orders = e.orders(kids[there].tolist(), [messages[j] for j in there], {"tick": tick})
        said = e.fleet.ask(MessageType.TRAIN, orders, e.round)
        if not said:
            raise e.fleet.nobody(e.round)
        e.told |= {i: numbers_of(r) for i, r in said.items()}
        return [self._reply(i, said[i]) if i in said else None for i in kids.tolist()]

    def _reply(self, device: int, said: RecordDict) -> Reply | None:
        e = self.engine
        try:
            up = tree_of(said, "reply", e.plan.x.device)
        except InputError as err:
            log.warning("tierfed: the reply of %s is not heard: %s", e.fleet.named([device]), err)
            return None
        return Reply(up, np.array([e.plan.samples[device], 1.0, 1.0]))

    def tell(self, kids: Ids, replies: Replies, heard: Flags) -> None:
        for i in kids[heard].tolist():
            self.engine.store.put("heard", i, {"at": torch.tensor([self.engine.round, self.tick])})


def scores(engine: Engine, test: Sequence[Ids], kind: Kind, devices: Ids, post: bool = True, tell: Any = None) -> Found:
    """As `tierfed.evaluation.evaluate`, by the devices themselves; whoever does not answer has none."""
    if not isinstance(engine, OverGrid):
        raise TypeError("scores over Flower's grid are of a run over it")
    there = np.array([i for i in devices if len(test[i])], np.int64)
    messages, top = messages_below(engine, 0, 0, {}, there), engine.tiers[0].model(engine.kept(0, 0))
    sent = top is not None and all(_alike(top, m.get("params")) for m in {id(m): m for m in messages}.values())
    more = {} if top is None or sent else {"model": framed(top)}
    about = {"post": post, "model": "sent" if sent else "own" if more else "none"}
    replies = engine.fleet.ask(
        MessageType.EVALUATE, engine.orders(there.tolist(), messages, about, **more), engine.round - 1
    )
    parts: dict[tuple[str, str], list[Scores]] = {}
    for i in sorted(replies):
        for name, value in numbers_of(replies[i]).items():
            model, _, metric = name.partition("/")
            parts.setdefault((model, metric), []).append(Scores(np.array([i]), np.array([value])))
    return found(parts)


def _alike(a: Params, b: Params | None) -> bool:
    """Whether two models are the same."""
    return b is not None and a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def server_app(config: Source, data: Any, module: Any, wait_seconds: float, reply_seconds: float) -> ServerApp:
    """See `tierfed.flower.server_app`."""
    given, app = Given(config=config, data=data, module=module), ServerApp()

    def main(grid: Grid, context: Context) -> None:
        result = trained(grid, given.settled(context.run_config), context.run_id, wait_seconds, reply_seconds)
        log.info("tierfed: %s, run folder %s", _said(result.scores), result.folder)

    app.main()(main)
    return app


def trained(grid: Grid, settled: Settled, run_id: int, wait_seconds: float, reply_seconds: float) -> Result:
    """A run over Flower's grid, from its beginning or on.

    :raises InputError: see `tierfed.loop.run`; the run folder is that of another or of a finished run
    """
    config = settled.config
    path = Path(config.run.out or f"runs/flower-{run_id}")
    config = replace(config, run=replace(config.run, out=str(path)))

    def engine(world: World, store: Store, tell: Any) -> Engine:
        fleet = Fleet(grid=grid, world=world, settled=settled, wait_seconds=wait_seconds, reply_seconds=reply_seconds)
        return OverGrid(world, store, fleet)

    over = Over(engine, scores, check=check_world)
    if not (path / "config.toml").exists():
        return run(config, data=settled.data, module=settled.module, watch=_tell, over=over)
    before, now = read_run(path), with_given(config, settled.data, settled.module)[0]
    if fingerprint(before) != fingerprint(now):
        raise InputError(
            f"the run folder {path} is of another config; choose another one with run.out, or none: each run then has "
            "a folder of its own"
        )
    result = resume(path, rounds=config.run.rounds, data=settled.data, module=settled.module, watch=_tell, over=over)
    if not result.trained:
        log.warning("tierfed: the run in %s was finished already; nothing was trained", path)
    return result


def _tell(progress: Progress) -> None:
    said = _said(progress.scores) if progress.evaluated else progress.doing
    log.info("tierfed, round %d of %d%s", progress.round, progress.rounds, f": {said}" if said else "")


def _said(scores: dict[str, float]) -> str:
    return ", ".join(f"{model} {value:.4f}" for model, value in scores.items())
