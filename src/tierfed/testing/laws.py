"""The laws that every algorithm must pass, each a function of the algorithm and of the task that it is tried on.

A law that does not hold raises `LawError` with what was different and where; what an algorithm itself raises goes
through.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tierfed.algorithm import Algorithm
from tierfed.engine.base import Engine
from tierfed.engine.vectorized import Vectorized
from tierfed.faults import Faults
from tierfed.store import DiskStore, MemoryStore, Store
from tierfed.task import Task
from tierfed.testing.toy import ENGINES, gap, make_engine, records, run, toy_task
from tierfed.testing.trees import (
    DEVICES,
    FLOAT64,
    MODES,
    ROUNDS,
    TREES,
    Mode,
    Trace,
    by_name,
    evaluated,
    happened,
    relative,
    small_plan,
    trace,
    trees,
    walked,
)
from tierfed.tree import Tree, leaves

MakeTask = Callable[..., Task]


class LawError(AssertionError):
    """An algorithm does what it must not; the message says which law, where, and how far off."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """An algorithm, and how to make the task that it is tried on."""

    algorithm: Algorithm
    task: MakeTask = toy_task
    """(activation, dtype, dropout) -> a classification of [8] into 4, with a batch norm and public samples."""
    trees: tuple[str, ...] = TREES

    @property
    def tree(self) -> str:
        """The tree for laws that need one with teams."""
        return next(t for t in ("3 tiers", "clusters", *self.trees) if t in self.trees)


def farthest(a: Any, b: Any, where: str = "") -> tuple[float, str]:
    """The largest difference of two trees and the path of its leaf; infinite where keys or shapes differ."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return max((farthest(a[k], b[k], f"{where}/{k}") for k in a), default=(0.0, where))
    if isinstance(a, dict) and isinstance(b, dict):
        return float("inf"), f"{where}/{{{', '.join(sorted(map(str, a.keys() ^ b.keys()))[:4])}}}"
    return gap(a, b), where


def same(what: str, a: Any, b: Any, limit: float = 0.0) -> None:
    """:raises LawError: two trees differ by more than `limit`"""
    far, where = farthest(a, b)
    if not far <= limit:
        raise LawError(
            f"{what}: differ by {far:.3g} at {where.lstrip('/') or 'the root'}, at most {limit:g} is allowed"
        )


def agree(a: Trace, b: Trace, limit: float = FLOAT64, what: str = "two engines") -> None:
    """Same bytes and events; records and evaluated models within `limit`.

    :raises LawError: they do not
    """
    for number, (one, other) in enumerate(zip(a.logs, b.logs, strict=True), 1):
        first, second = happened(one), happened(other)
        for key, value in first.items():
            if value != second[key]:
                raise LawError(f"{what}: round {number} has other {key}: {_unlike(value, second[key])}")
    same(f"{what}: what is kept", by_name(a.engine), by_name(b.engine), limit)
    same(f"{what}: evaluated models", evaluated(a.engine), evaluated(b.engine), limit)


def _unlike(a: Any, b: Any) -> str:
    """The first few things that only one of two has."""
    if isinstance(a, dict) and isinstance(b, dict):
        return "; ".join(f"{k}: {a.get(k)} and {b.get(k)}" for k in [*a, *b] if a.get(k) != b.get(k))[:200]
    return f"{str(a)[:100]} and {str(b)[:100]}"


def engines_agree(s: Subject, tree: str, mode: Mode, task: Task | None = None, rounds: int = ROUNDS) -> None:
    """The serial and the vectorized engine do the same in float64, to the byte and to rounding."""
    it, plan = s.task() if task is None else task, small_plan()
    both = [walked(kind, s.algorithm, it, plan, tree, mode, rounds) for kind in ENGINES]
    agree(both[0], both[1], what=f"serial and vectorized engine ({tree})")


def float32_agrees(s: Subject, tree: str = "4 tiers") -> None:
    """So they do in float32; a smooth activation, for a ReLU's kink would turn rounding into another path."""
    task, plan = s.task(nn.Tanh, torch.float32), small_plan(dtype=torch.float32)
    a, b = (walked(kind, s.algorithm, task, plan, tree, MODES["lossy"], 2) for kind in ENGINES)
    if [happened(log) for log in a.logs] != [happened(log) for log in b.logs]:
        raise LawError("serial and vectorized engine in float32: other bytes or events")
    far = relative(by_name(a.engine), by_name(b.engine))
    if not far <= 1e-5:
        raise LawError(f"serial and vectorized engine in float32: differ by {far:.3g}, at most 1e-5 is allowed")


def chunks_do_not_matter(s: Subject, tree: str = "4 tiers") -> None:
    """How many devices are trained at once changes no result."""
    task, plan = s.task(), small_plan()

    def after(size: int) -> Trace:
        engine = make_engine("vectorized", s.algorithm, task, plan, trees(0.7)[tree], MODES["lossy"].faults)
        assert isinstance(engine, Vectorized)
        engine.chunk = size
        return trace(engine, 1)

    agree(after(2), after(256), what="two devices at once, or a last one alone, and all at once")


def states_keep_their_form(s: Subject) -> None:
    """What a device or an inner node keeps has the keys, shapes and types that its `init` gave it."""
    engine = make_engine("vectorized", s.algorithm, s.task(), small_plan(), trees()[s.tree])
    begun = {i: form(engine.begun(i)) for i in range(DEVICES)}
    cloud = form(engine.kept(0, 0))
    run(engine, 2)
    for (table, i), record in records(engine).items():
        first = begun[i] if table == "own" else cloud if table == "kept0" else form(record)
        odd = sorted(k for k in first.keys() | form(record).keys() if first.get(k) != form(record).get(k))
        if odd:
            who = "the cloud" if table == "kept0" else f"device {i}"
            raise LawError(f"what is kept of {who} has another form than `init` gave it: {', '.join(odd[:5])}")


def form(tree: Any, where: str = "") -> dict[str, tuple[Any, ...]]:
    """The path, shape and type of every leaf."""
    if isinstance(tree, dict):
        return {k: v for key, inner in tree.items() for k, v in form(inner, f"{where}/{key}").items()}
    return {where.lstrip("/"): (tuple(tree.shape), tree.dtype)}


def moving_devices(s: Subject) -> None:
    """New teams before every round, one in the middle of them empty: what is stored by id follows its device."""
    task, plan, rng = s.task(), small_plan(), np.random.default_rng(7)
    teams = [np.array([0, 2, 3])[rng.integers(0, 3, DEVICES)] for _ in range(2)]

    def after(kind: str) -> Trace:
        engine = make_engine(kind, s.algorithm, task, plan, trees(0.7)["3 tiers"])
        logs = []
        for team in teams:
            engine.set_topology(engine.topology.regrouped(team))
            logs.append(engine.step())
        return Trace(engine=engine, logs=logs)

    agree(after("serial"), after("vectorized"), what="serial and vectorized engine while devices change team")


def is_relayed(s: Subject) -> bool:
    """Whether the fogs of a tree are relays: nobody may then notice them."""
    _, *fogs = s.algorithm.tiers(s.task(), (1, 2, 4, 12))
    return all(fog.relay for fog in fogs)


def relays_are_not_there(s: Subject) -> None:
    """T-00: trees whose fogs relay leave what a flat tree leaves at the cloud and on the devices."""
    task, plan = s.task(), small_plan()

    def left(tree: str) -> Tree:
        kept = by_name(run(make_engine("vectorized", s.algorithm, task, plan, trees()[tree]), 2))
        return {k: v for k, v in kept.items() if k.partition("/")[0] in ("own", "kept0", "rows0")}

    flat = left("flat")
    for tree in TREES[1:]:
        same(f"with relays ({tree}) and without", left(tree), flat, 1e-12)


def resumed_is_uninterrupted(s: Subject, folder: Path, kind: str = "vectorized") -> None:
    """Killed before a commit and resumed, with devices that change team: the same bits.

    :param folder: where the checkpoint may be, empty
    """
    plan = small_plan()

    def build(store: Store) -> Engine:
        return make_engine(kind, s.algorithm, s.task(), plan, trees(0.7)[s.tree], MODES["lossy"].faults, store=store)

    whole = build(MemoryStore())
    logs = trace(whole, 2).logs
    regroup(whole)
    logs += trace(whole, 1).logs
    store = DiskStore(folder / "state")
    try:
        half = build(store)
        again = trace(half, 2).logs
        regroup(half)
        store.commit(half.meta(), [])
        half.step()  # killed before its commit
    finally:
        store.close()
    store = DiskStore(folder / "state")
    try:
        resumed = build(store)
        resumed.restore(store.meta)
        again += trace(resumed, 1).logs
        store.commit(resumed.meta(), [])
        if [happened(log) for log in logs] != [happened(log) for log in again]:
            raise LawError("resumed and uninterrupted: other bytes or events")
        if whole.topology.parents[-1].tolist() != resumed.topology.parents[-1].tolist():
            raise LawError("resumed and uninterrupted: devices are in other teams")
        same("resumed and uninterrupted", read_back(store, whole), by_name(whole))
    finally:
        store.close()


def regroup(engine: Engine) -> None:
    """Devices change team from outside, beside what the algorithm itself does."""
    lowest = engine.topology.nodes[-1]
    engine.set_topology(engine.topology.regrouped(np.random.default_rng(11).integers(0, lowest, DEVICES)))


def read_back(store: DiskStore, whole: Engine) -> Tree:
    """The committed records of every table that the whole run has."""
    tables = {t for t, _ in records(whole)}
    return {f"{t}/{i}": store.get(t, i) for t in tables for i in store.ids(t)}


def evaluation_leaves_no_trace(s: Subject, kind: str = "vectorized") -> None:
    """Evaluation changes nothing that is kept, and gives the same models again."""
    engine = trace(make_engine(kind, s.algorithm, s.task(), small_plan(), trees(0.7)[s.tree]), 1).engine
    before, round_ = dict(by_name(engine)), engine.round
    first = evaluated(engine)
    same("what is kept, before and after an evaluation", by_name(engine), before)
    same("two evaluations", evaluated(engine), first)
    if engine.round != round_:
        raise LawError("an evaluation has moved the round on")


def silence_changes_nothing(s: Subject, kind: str = "vectorized") -> None:
    """A cloud that hears nobody keeps its state, though all devices have computed; who is away stays as it was."""
    task, plan = s.task(), small_plan()
    tree = trees()[s.tree]
    deaf = make_engine(kind, s.algorithm, task, plan, tree, Faults(loss=(1.0, *[0.0] * (_depth(s) - 1))))
    before = deaf.kept(0, 0)
    run(deaf, 1)
    same("a cloud that has heard nobody", deaf.kept(0, 0), before)
    computed = {int(i) for v in deaf.log.visits for i in v.devices}
    if computed != set(range(DEVICES)):
        raise LawError(f"devices whose replies are lost have not computed: {sorted(set(range(DEVICES)) - computed)}")
    stored = sum(1 for t, _ in records(deaf) if t == "own")
    if stored != (DEVICES if any(True for _ in leaves(deaf.begun(0))) else 0):
        raise LawError(f"{stored} of {DEVICES} devices have a private state after a visit whose reply was lost")
    away = make_engine(kind, s.algorithm, task, plan, tree, Faults(dropout=(*[0.0] * (_depth(s) - 1), 1.0)))
    before = away.kept(0, 0)
    log = away.step()
    same("a cloud whose devices are away", away.kept(0, 0), before)
    if sum(int(b.up_bytes.sum()) for b in log.bursts) or any(t == "own" for t, _ in records(away)):
        raise LawError("a device that was away has sent or stored something")
    if sum(len(v.devices) for v in log.visits) or log.moved or not log.silent:
        raise LawError("devices that were away have computed, or have changed team")


def _depth(s: Subject) -> int:
    return {"flat": 1, "3 tiers": 2, "4 tiers": 3, "clusters": 3}[s.tree]


def temporary(law: Callable[[Subject, Path], None]) -> Callable[[Subject], None]:
    """A law that needs a folder, with one of its own."""

    def with_folder(s: Subject) -> None:
        with tempfile.TemporaryDirectory(prefix="tierfed-") as folder:
            law(s, Path(folder))

    return with_folder
