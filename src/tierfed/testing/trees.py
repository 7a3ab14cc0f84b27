"""What the laws run on: trees of nine ragged devices, modes of a run, logs that can be compared, models as trees."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tierfed.algorithm import Algorithm
from tierfed.engine.base import Engine
from tierfed.engine.evaluate import models
from tierfed.engine.log import RoundLog
from tierfed.faults import Faults
from tierfed.plan import Plan
from tierfed.task import Task
from tierfed.testing.toy import Ids, gap, make_engine, records, toy_plan, toy_settings
from tierfed.topology import TopologySettings
from tierfed.tree import Tree

FLOAT64 = 1e-10
DEVICES = 9
TREES = ("flat", "3 tiers", "4 tiers", "clusters")
ROUNDS = 3


NONE = Faults()


@dataclass(frozen=True, kw_only=True)
class Mode:
    """Who takes part, and what goes wrong."""

    participation: float = 1.0
    faults: Faults = NONE


MODES = {
    "full": Mode(),
    "partial": Mode(participation=0.5),
    "lossy": Mode(participation=0.7, faults=Faults(loss=0.2, dropout=0.1)),
}


@dataclass(frozen=True, kw_only=True)
class Exactly(Faults):
    """Faults at chosen places: (level, id, round) whose reply is lost, or who is away."""

    lost_at: tuple[tuple[int, int, int], ...] = ()
    away_at: tuple[tuple[int, int, int], ...] = ()

    def lost(self, seed: int, level: int, ids: Ids, round_: int, tick: int) -> npt.NDArray[np.bool_]:
        return np.array([(level, int(i), round_) in self.lost_at for i in ids], bool)

    def silent(self, seed: int, level: int, ids: Ids, round_: int, tick: int) -> npt.NDArray[np.bool_]:
        return np.array([(level, int(i), round_) in self.away_at for i in ids], bool)


def small_plan(**changes: Any) -> Plan:
    """Ragged devices with one or two steps a pass, some with batches of their own width."""
    return toy_plan(DEVICES, **{"smallest": 6, "largest": 14, "batch": 6, **changes})


def trees(participation: float = 1.0, team_rounds: int = 2, **changes: Any) -> dict[str, TopologySettings]:
    """The trees of `toy_settings` with two team rounds; clusters are those of three fogs."""
    fog = 1.0 if participation == 1.0 else 0.7
    inside = {"team_rounds": team_rounds, **changes, "clusters": 2, "participation": (1.0, fog, participation)}
    return {
        **toy_settings(participation, team_rounds, **changes),
        "clusters": TopologySettings(fogs=3, **inside),
    }


@dataclass(frozen=True, kw_only=True)
class Trace:
    """An engine after some rounds, with the logs of all of them."""

    engine: Engine
    logs: list[RoundLog]


def trace(engine: Engine, rounds: int = ROUNDS) -> Trace:
    return Trace(engine=engine, logs=[engine.step() for _ in range(rounds)])


def walked(
    kind: str, algorithm: Algorithm, task: Task, plan: Plan, tree: str, mode: Mode, rounds: int = ROUNDS, **changes: Any
) -> Trace:
    """Some rounds of an algorithm on a tree of `trees` in a mode."""
    settings = trees(mode.participation, **changes)[tree]
    return trace(make_engine(kind, algorithm, task, plan, settings, mode.faults), rounds)


def happened(log: RoundLog) -> dict[str, Any]:
    """A round's log without the order in which an engine walks: what every link carried at every tick, who computed
    what, what was lost, who was away, who moved."""
    links: Counter[tuple[int, ...]] = Counter()
    for b in log.bursts:
        for parent, kid, down, up in zip(b.parents, b.kids, b.down_bytes, b.up_bytes, strict=True):
            place = (b.depth, b.tick, int(parent), int(kid))
            links[(*place, 0)] += int(down)
            links[(*place, 1)] += int(up)
    visits = sorted(
        (v.tick, int(i), int(n), float(f))
        for v in log.visits
        for i, n, f in zip(v.devices, v.samples, v.factor, strict=True)
    )
    moved = {"moved": sorted(log.moved), "reparented": sorted(log.reparented)}
    return {"links": links, "visits": visits, "lost": log.lost, "silent": log.silent, **moved}


def evaluated(engine: Engine, devices: Ids | None = None) -> Tree:
    """The evaluated models of some devices as one tree."""
    some = np.arange(0, DEVICES, 4) if devices is None else devices
    out = {}
    for m in models(engine, some):
        named = {"global": m.global_model, "team": m.team, "pre": m.personal_pre, "post": m.personal_post}
        out[str(m.device)] = {k: {} if v is None else v for k, v in named.items()}
    return out


def relative(a: Any, b: Any) -> float:
    """The largest difference of two trees, leaf by leaf relative to the larger of one and the leaf's largest entry."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return max((relative(a[k], b[k]) for k in a), default=0.0)
    largest = float(b.double().abs().max()) if not isinstance(b, dict) and b.numel() else 0.0
    return gap(a, b) / max(1.0, largest)


def by_name(engine: Engine) -> Tree:
    """Everything an engine over a memory store keeps, as one tree."""
    return {f"{table}/{ident}": record for (table, ident), record in records(engine).items()}
