"""One process's share of a run: rounds, evaluations, commits, and the files that are read while it goes on."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tierfed.config import Config
from tierfed.cost import RoundCost
from tierfed.disk import disk_error
from tierfed.engine import Engine
from tierfed.engine.ahead import prefetch
from tierfed.engine.beginning import put_parents, with_parents
from tierfed.evaluation import Found, evaluate, evaluated, kind
from tierfed.formation import event, form, pending, with_teams
from tierfed.ledger import Ledger, said
from tierfed.metrics import LABELS, Row, Scores, to_table, write_atomic
from tierfed.record import (
    augment_event,
    cost_rows,
    device_table,
    events,
    headline,
    label_rows,
    margins,
    numbers,
    score_rows,
    summed,
    trace_rows,
    transfer_event,
)
from tierfed.result import Progress, Watcher
from tierfed.selection import BEST, after, ended, judged, selection
from tierfed.settings import table
from tierfed.setup import World
from tierfed.start import Start
from tierfed.store import DiskStore, MemoryStore
from tierfed.ties import TieRecord
from tierfed.topology import Topology
from tierfed.transfers import Transfer, awaited, bursts, roads

BEGUN = "begun"  # the table of the tree that the first round begins with, as `tierfed.engine.base.PARENTS`
_EXPORT_SECONDS = 10.0
_MOST_BY_LABEL = 20_000  # accuracies of labels on devices, of each model
Scorer = Callable[..., Found]
"""Scores of evaluated models, as `tierfed.evaluation.evaluate`."""
_FREE = ("out", "rounds", "device", "threads", "jobs", "checkpoint_every")  # of [run]: may differ when a run goes on


def fingerprint(config: Config) -> str:
    """What must not change between start and resume."""
    tables = table(config)
    tables["run"] = {k: v for k, v in tables["run"].items() if k not in _FREE}
    for name in ("eval", "sweep", "track", "deploy"):
        tables.pop(name)
    # folders may be called from elsewhere: what a run has left, and what its data are, is in the checkpoint
    tables["start"].pop("run", None)
    tables["data"].pop("dir", None)
    for name in ("workers", "address", "gpus"):  # as with run.threads
        tables["engine"].pop(name)
    if tables["engine"]["name"] in ("vectorized", "ray"):  # the same bits; what "auto" is depends on what else is here
        tables["engine"]["name"] = "auto"
    return json.dumps(tables, sort_keys=True)


class Session:
    """What a process does to a run. The rows and events of committed rounds go into the lists that it is given."""

    def __init__(
        self,
        world: World,
        engine: Engine,
        store: DiskStore | MemoryStore,
        path: Path | None,
        rows: list[Row],
        happened: list[dict[str, Any]],
        watch: Watcher | None,
        baseline: Scores | None,
        identity: dict[str, Any],
        start: Start | None = None,
        score: Scorer = evaluate,
    ) -> None:
        self.score = score
        self.world, self.engine, self.store, self.path = world, engine, store, path
        self.rows, self.events, self.watch, self.baseline = rows, happened, watch, baseline
        self.start, self.pending = start, list[dict[str, Any]]()
        self.ties, self.ledger = TieRecord(store), Ledger(world, store)
        self.exported = time.monotonic()
        self.clock_seconds = float(store.meta.get("clock_seconds", 0.0))
        self.bytes = int(store.meta.get("bytes", 0))
        self.scores, self.margins, self.spent = headline(rows), margins(rows), said(self.ledger.spent())
        self.constant: dict[str, Any] = {"fingerprint": fingerprint(world.config), "data": identity}
        if world.engine_name != "serial":
            self.constant["computed"] = {"kernel": world.choice.kernel, "shares": world.choice.shares}
        begun = with_parents(world.topology, store, BEGUN)
        self.placed = begun is not world.topology
        self.selection, self.selected = selection(world), store.meta.get("select")
        self.world = replace(world, topology=begun)

    def note(self, event: dict[str, Any]) -> None:
        """An event of this process, not of the training: it is exported, but no part of the checkpoint."""
        self.events.append(event)

    def begin(self) -> None:
        """The state before the first round, evaluated and committed; teams that are to be formed are formed before."""
        rows: list[Row] = []
        settings = self.world.config.start
        origin = {} if self.start is None else {"from": settings.of, "at": self.start.round}
        happened: list[dict[str, Any]] = [{"round": 0, "event": "start", **origin}]
        if self.world.choice.gave_way:
            happened.append({"round": 0, "event": "kernel", "why": self.world.choice.why})
        if self.start is not None:
            self.engine.beginning.give(self.start.common, self.start.own)
        if self.start is not None and self.start.parents is not None:
            self._take(self.world.topology.rebuilt(self.start.parents))
        elif pending(self.world):
            formation = form(self.world)
            self._take(with_teams(self.world, formation.teams).topology)
            self._count(formation.cost)
            rows += cost_rows(self.world, 0, formation.cost, self.clock_seconds, links=("cloud-device",))
            happened.append(event(self.world, formation))
        if self.world.augmentation is not None and self.start is None:
            happened.append(augment_event(self.world.augmentation))
        if self.world.placement is not None:
            happened.append({"round": 0, "event": "offload", **self.world.placement})
        self._send(self.world.transfers if self.start is None else self.start.transfers, 0, rows, happened)
        rows = summed(rows)
        self._select(0, rows)
        rows += self._evaluate(0, last=False)
        happened += self.ties.measure(self.world, self.engine, 0)
        self._finish(0, rows, happened, "", True, True)

    def _take(self, topology: Topology) -> None:
        """The tree that the first round begins with, where it is another than that of the config: teams that were
        formed, or what another run has left.
        """
        put_parents(topology, self.store, BEGUN, [True] * topology.depth)
        self.world, self.placed = replace(self.world, topology=topology), True
        self.engine.set_topology(topology)

    def _send(
        self, transfers: Sequence[Transfer], number: int, rows: list[Row], happened: list[dict[str, Any]]
    ) -> None:
        """Counts and logs what crosses the links once."""
        for transfer in transfers:
            cost = self._moved(transfer)
            rows += cost_rows(self.world, number, cost, self.clock_seconds)
            happened.append(transfer_event(transfer, cost, number))

    def _moved(self, transfer: Transfer) -> RoundCost:
        """The cost of what crosses the links once."""
        topology = roads(transfer, self.engine.topology)
        moved = awaited(bursts(transfer, topology), topology)
        cost = self.world.clock.price(topology, [1] * topology.depth, moved, [])
        self._count(cost)
        return cost

    def _count(self, cost: RoundCost) -> None:
        self.clock_seconds += cost.round_seconds
        self.bytes += sum(cost.down_bytes) + sum(cost.up_bytes)

    def round(self) -> None:
        """One round of the cloud."""
        config = self.world.config
        if self.path is not None and self.engine.round + 1 < config.run.rounds:
            prefetch(self.engine)
        log = self.engine.step()
        number = self.engine.round
        cost = self.world.clock.price(
            self.engine.topology,
            [self.engine.bursts(d) for d in range(self.engine.depth)],
            log.bursts,
            log.visits,
            log.chains,
        )
        self._count(cost)
        rows, happened = cost_rows(self.world, number, cost, self.clock_seconds), events(self.world, number, log)
        self.ledger.book(log)
        stopped = self.engine.stopped() or self.ledger.ended()
        last = bool(stopped) or number >= config.run.rounds
        better = False
        if last or number % config.eval.every == 0:
            better, ended = self._select(number, rows)
            stopped = stopped or ended
            last = last or bool(ended)
        if last and self.world.at_end:
            self._send(self.world.at_end, number, rows, happened)
            rows = summed(rows)
        rows += trace_rows(self.world, self.engine, number, log)
        due = last or number % config.eval.every == 0
        if due:
            rows += self.ledger.rows(number)
            rows += self._evaluate(number, last)
            happened += self.ties.measure(self.world, self.engine, number)
        if stopped:
            happened.append({"round": number, "event": "stop", "rule": stopped})
        commit = last or better or number % config.run.checkpoint_every == 0
        self._finish(number, rows, happened, stopped, due, commit)

    def _select(self, number: int, rows: list[Row]) -> tuple[bool, str]:
        """Judges the models on validation data: whether they are the best so far, and why the run ends here, if so."""
        if self.selection is None:
            return False, ""
        value = judged(self.selection, self.world, self.engine)
        rows.append(Row(number, "cloud", "cloud", "", "val", "validation", value))
        self.selected = after(self.selection, self.selected, value, number)
        return self.selected["round"] == number, ended(self.selection, self.selected)

    def keep_best(self) -> None:
        """The checkpoint that was just committed is kept beside the run's own, where it is that of the best round."""
        if self.selected is None or self.selected["round"] != self.engine.round:
            return
        if self.path is not None and isinstance(self.store, DiskStore):
            self.store.copy(self.path / BEST)

    def _evaluate(self, number: int, last: bool) -> list[Row]:
        """Scores and statistics after a round."""
        drawn = evaluated(self.world, number, last)
        test, settings = self.world.federation.test, self.world.config.eval
        # which labels a device has is its own business where it is a process of its own
        labels = len(self.world.federation.classes) if last and settings.labels and self.score is evaluate else 0
        more = {"labels": labels} if 0 < labels * len(drawn) <= _MOST_BY_LABEL else {}
        found = self.score(self.engine, test, kind(self.world), drawn, settings.post, tell=self._tell, **more)
        by_label = label_rows(self.world, number, found)
        if by_label and self.path is not None:
            # no numbers of the run: one with more rounds has the same without them, and others in the end
            with on_disk(self.path):
                write_atomic(self.path / LABELS, to_table(by_label))
        return score_rows(self.world, number, found, drawn, self.baseline)

    def _tell(self, doing: str) -> None:
        """Tells the watcher what goes on within a round."""
        if self.watch is not None:
            self.watch(self._progress(self.engine.round, doing=doing))

    def _progress(
        self, number: int, evaluated: bool = False, stopped: str = "", doing: str = "", rows: Sequence[Row] = ()
    ) -> Progress:
        return Progress(
            name=self.path.name if self.path else "run",
            round=number,
            rounds=self.world.config.run.rounds,
            scores=self.scores,
            margins=self.margins,
            evaluated=evaluated,
            bytes=self.bytes,
            stopped=stopped,
            doing=doing,
            spent=self.spent,
            metrics=numbers(rows),
        )

    def _finish(
        self, number: int, rows: list[Row], happened: list[dict[str, Any]], stopped: str, evaluated: bool, commit: bool
    ) -> None:
        self.pending.append({"round": number, "rows": rows, "events": happened})
        if commit:
            counted: dict[str, Any] = {"clock_seconds": self.clock_seconds, "bytes": self.bytes, "stopped": stopped}
            if self.selected is not None:
                counted["select"] = self.selected
            with uninterrupted():
                self.store.commit({**self.engine.meta(), **counted, **self.constant}, self.pending)
                for entry in self.pending:
                    self.rows += entry["rows"]
                    self.events += entry["events"]
                self.pending = []
                self.ties.committed()
                self.keep_best()
        if evaluated:
            self.scores, self.margins, self.spent = headline(rows), margins(rows), said(self.ledger.spent())
        if time.monotonic() - self.exported > _EXPORT_SECONDS:
            self.export()
        if self.watch is not None:
            self.watch(self._progress(number, evaluated, stopped, rows=rows))

    def export(self) -> None:
        """The files that reports are made from, of the committed rounds, each whole or not at all."""
        if self.path is None:
            return
        with uninterrupted(), on_disk(self.path):
            write_atomic(self.path / "metrics.parquet", to_table(self.rows))
            write_atomic(self.path / "events.jsonl", "".join(json.dumps(e) + "\n" for e in self.events))
            known = self.placed or not pending(self.world)
            if known and not (self.path / "devices.parquet").exists():
                write_atomic(self.path / "devices.parquet", device_table(self.world))
            self.ties.export(self.world, self.path)
        self.exported = time.monotonic()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = []
    before = signal.signal(signal.SIGINT, lambda *a: asked.append(a))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked and before is not signal.SIG_IGN:
        raise KeyboardInterrupt


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """A failed write below a folder, in a user's words.

    :raises InputError: in the place of an OSError
    """
    try:
        yield
    except OSError as err:
        raise disk_error(path, err) from None
