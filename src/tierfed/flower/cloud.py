"""The cloud half: rounds of tierfed whose devices are Flower's supernodes."""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from tierfed.engine import Engine, Serial
from tierfed.engine.base import Ids
from tierfed.engine.evaluate import messages_to
from tierfed.engine.node import Reply
from tierfed.errors import InputError
from tierfed.evaluation import Found, gathered
from tierfed.flower.common import Given, Settled, Source, check_world
from tierfed.flower.fleet import Fleet
from tierfed.flower.records import framed, numbers_of, packed, tree_of
from tierfed.loop import read_run, resume, run, with_given
from tierfed.metrics import Kind, Scores
from tierfed.result import Progress, Result
from tierfed.session import Means, fingerprint
from tierfed.setup import World
from tierfed.store import Store
from tierfed.tree import Params, Tree

log = logging.getLogger("flwr")
_AT_FLOWER = (
    "private states of its devices are at Flower's supernodes; run its app there (`flwr run`) with the same run.out"
)


class OverGrid(Serial):
    """The serial engine whose devices are asked over Flower's grid, all of a burst at the same time.

    The store holds what the cloud keeps, and in "heard" the last visit of each device whose reply has arrived.
    """

    fleet: Fleet
    traces: dict[int, Tree]  # by device
    token = ""  # of the run: devices tell their private states of different runs apart by it

    def answers(self, level: int, nodes: Ids, messages: list[Tree], tick: int) -> list[Reply | None]:
        if not messages:
            return []
        common = not self.tiers[0].sees  # then one object, which Flower sends to the superlink once
        frames = [framed(messages[0])] * len(messages) if common else [framed(m) for m in messages]
        orders = {int(i): self._order(int(i), {"tick": tick}, f) for i, f in zip(nodes, frames, strict=True)}
        replies = self.fleet.ask(MessageType.TRAIN, orders, self.round)
        if not replies:
            raise self.fleet.nobody(self.round)
        self.traces = {i: {k: torch.tensor(v) for k, v in numbers_of(r).items()} for i, r in replies.items()}
        return [self._reply(int(i), replies.get(int(i)), tick) for i in nodes]

    def _order(self, device: int, said: dict[str, Any], message: ArrayRecord, **more: ArrayRecord) -> RecordDict:
        heard = self.store.get("heard", device)
        at = [-1, -1] if heard is None else heard["at"].tolist()
        about = {"run": self.token, "round": self.round, "heard": at, **said}
        return packed(about, {"message": message, **more})

    def _reply(self, device: int, said: RecordDict | None, tick: int) -> Reply | None:
        if said is None:
            return None
        try:
            up = tree_of(said, "reply", self.device)
        except InputError as err:
            log.warning("tierfed: the reply of %s is not heard: %s", self.fleet.named([device]), err)
            return None
        self.store.put("heard", device, {"at": torch.tensor([self.round, tick])})
        return Reply(up, np.array([self.plan.samples[device], 1.0, 1.0]))

    def own(self, device: int) -> Tree:
        """What a device has told of its private state: the scalars that its algorithm wants to be seen."""
        return self.traces.get(device, {})

    def judged(self, devices: Sequence[int], post: bool) -> Found:
        """Scores of devices, computed there."""
        top, orders = self.tiers[0].model(self.kept(0, 0)), dict[int, RecordDict]()
        own: dict[str, ArrayRecord] = {}
        messages = messages_to(self, np.asarray(devices, np.int64))
        frames = dict[int, ArrayRecord]()
        for i, message in zip(devices, messages, strict=True):
            where = "none" if top is None else "sent" if _alike(top, message.get("params")) else "own"
            if where == "own" and not own:
                assert top is not None
                own = {"model": framed(top)}
            if id(message) not in frames:
                frames[id(message)] = framed(message)
            more = own if where == "own" else {}
            orders[int(i)] = self._order(int(i), {"post": post, "model": where}, frames[id(message)], **more)
        replies = self.fleet.ask(MessageType.EVALUATE, orders, self.round - 1)
        return gathered(_scores(i, numbers_of(replies[i])) for i in sorted(replies))

    def meta(self) -> dict[str, Any]:
        return {**super().meta(), "elsewhere": _AT_FLOWER, "token": self.token}

    def restore(self, meta: dict[str, Any]) -> None:
        super().restore(meta)
        self.token = str(meta["token"])


def _alike(a: Params, b: Params | None) -> bool:
    """Whether two models are the same."""
    return b is not None and a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def _scores(device: int, numbers: dict[str, float]) -> Found:
    """What a device has measured, by model and metric."""
    out: Found = {}
    for name, value in numbers.items():
        model, _, metric = name.partition("/")
        out.setdefault(model, {})[metric] = Scores(np.array([device]), np.array([value]))
    return out


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
        check_world(world)
        made = world.engine(store, tell, OverGrid)
        assert isinstance(made, OverGrid)
        made.token, made.traces = secrets.token_hex(8), {}
        made.fleet = Fleet(
            grid=grid, world=world, settled=settled, wait_seconds=wait_seconds, reply_seconds=reply_seconds
        )
        made.fleet.gather()
        return made

    means = Means(engine=engine, evaluate=_evaluate)
    if not (path / "config.toml").exists():
        return run(config, data=settled.data, module=settled.module, watch=_tell, means=means)
    before, now = read_run(path), with_given(config, settled.data, settled.module)[0]
    if fingerprint(before) != fingerprint(now):
        raise InputError(
            f"the run folder {path} is of another config; choose another one with run.out, or none: each run then has "
            "a folder of its own"
        )
    result = resume(path, rounds=config.run.rounds, data=settled.data, module=settled.module, watch=_tell, means=means)
    if not result.trained:
        log.warning("tierfed: the run in %s was finished already; nothing was trained", path)
    return result


def _evaluate(engine: Engine, test: Any, kind: Kind, devices: Any, post: bool = True, **_: Any) -> Found:
    """As `tierfed.evaluation.evaluate`, at the devices."""
    assert isinstance(engine, OverGrid)
    return engine.judged([int(i) for i in devices if len(test[i])], post)


def _tell(progress: Progress) -> None:
    said = _said(progress.scores) if progress.evaluated else progress.doing
    log.info("tierfed, round %d of %d%s", progress.round, progress.rounds, f": {said}" if said else "")


def _said(scores: dict[str, float]) -> str:
    return ", ".join(f"{model} {value:.4f}" for model, value in scores.items())
