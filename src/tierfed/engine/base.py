"""What every engine shares: the world it runs in, where states live, what links carry, who is heard."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tierfed.algorithm import Algorithm, Tier
from tierfed.cost import Burst, Visit
from tierfed.errors import InputError
from tierfed.faults import Faults
from tierfed.plan import Plan
from tierfed.store import Store, with_default
from tierfed.task import Task
from tierfed.topology import UNITS, Topology
from tierfed.tree import Params, Tree, stack, take, tmap

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass
class RoundLog:
    """What happened in one round."""

    bursts: list[Burst] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    lost: dict[int, int] = field(default_factory=dict)  # replies that did not arrive, per link level
    silent: dict[int, int] = field(default_factory=dict)  # polled nodes that were away, per link level
    moved: list[tuple[int, int, int]] = field(default_factory=list)  # (device, from team, to team)

    def link_bytes(self) -> dict[tuple[int, str], int]:
        """Bytes per (link level, "down" | "up")."""
        out: dict[tuple[int, str], int] = {}
        for b in self.bursts:
            for way, size in (("down", b.down_bytes), ("up", b.up_bytes)):
                out[b.depth, way] = out.get((b.depth, way), 0) + int(size.sum())
        return out


class Engine(ABC):
    """One algorithm over one tree. Subclasses add how a round is walked, and nothing that an algorithm could notice.

    :param tasks: one per architecture; `kinds[i]` says which one device i runs
    :param transfer_seconds: (link level, bytes [n], devices [n]) -> seconds [n], for the straggler deadline
    """

    def __init__(
        self,
        algorithm: Algorithm,
        tasks: Sequence[Task],
        topology: Topology,
        plan: Plan,
        store: Store,
        *,
        faults: Faults | None = None,
        kinds: Ids | None = None,
        clock: Any = None,
    ) -> None:
        self.algorithm, self.tasks, self.plan, self.store = algorithm, tasks, plan, store
        self.faults, self.kinds, self.clock = faults or Faults(), kinds, clock
        self.seed, self.round, self.log = topology.seed, 0, RoundLog()
        self._first = [t.init() for t in tasks]
        self._shared = take(self._first[0], algorithm.shared(tasks[0]))
        self.tiers: tuple[Tier, ...] = algorithm.tiers(tasks[0], topology.shape)
        if len(self.tiers) != topology.depth:
            raise InputError(
                f"{type(algorithm).__name__} made {len(self.tiers)} tiers for a tree with {topology.depth} inner levels"
            )
        self.set_topology(topology)

    def set_topology(self, topology: Topology) -> None:
        """A tree with the same nodes; after devices changed team."""
        self.topology, self.depth = topology, topology.depth
        self.totals = topology.totals([t.relay for t in self.tiers])
        self.units: list[int] = []
        for d, tier in enumerate(self.tiers):
            own = UNITS.index(topology.policies[d].weight or tier.weight)
            self.units.append(self.units[-1] if tier.relay and d else own)

    @abstractmethod
    def step(self) -> RoundLog:
        """One round from the cloud down and back. States change in the store's working copy; nothing is committed."""

    @abstractmethod
    def visit_devices(self, devices: Ids, messages: Tree, round_: int, tick: int) -> tuple[Tree, Tree]:
        """Replies and new private states, stacked [H, ...], of devices that get stacked messages [H, ...]; nothing
        is kept.
        """

    def task(self, device: int) -> Task:
        return self.tasks[0 if self.kinds is None else int(self.kinds[device])]

    def first(self, device: int) -> Params:
        """The initial model of a device's architecture."""
        return self._first[0 if self.kinds is None else int(self.kinds[device])]

    def kept(self, depth: int, node: int) -> Tree:
        """What an inner node keeps between visits."""
        return with_default(self.store, f"kept{depth}", node, lambda: self.tiers[depth].init(self._shared))

    def keep(self, depth: int, node: int, state: Tree) -> None:
        """After a visit: exactly the keys of `Tier.init` are kept."""
        self.store.put(f"kept{depth}", node, take(state, self.kept(depth, node)))

    def own(self, device: int) -> Tree:
        """The private state of a device."""
        return with_default(
            self.store, "own", device, lambda: self.algorithm.init(self.task(device), self.first(device))
        )

    def put_own(self, device: int, state: Tree) -> None:
        self.store.put("own", device, state)

    def rows(self, depth: int, children: Ids) -> list[Tree]:
        """What the nodes of a level remember about children [R]; by stable id, whoever the parent is."""
        make = self.tiers[depth].child
        return [
            with_default(self.store, f"rows{depth}", int(i), lambda i=i: make(self._shared, int(i)))  # type: ignore[misc]
            for i in children
        ]

    def put_row(self, depth: int, child: int, record: Tree) -> None:
        self.store.put(f"rows{depth}", child, record)

    def reach(self, depth: int) -> int:
        """The level that a node of this depth talks to: relays are looked through when every child counts by itself."""
        to, tier = depth + 1, self.tiers[depth]
        while (tier.sees or tier.watches or tier.reduce == "stack") and to < self.depth and self.tiers[to].relay:
            to += 1
        return to

    def bursts(self, depth: int) -> int:
        return 1 if self.tiers[depth].relay else self.topology.policies[depth].bursts

    def roster(self, depth: int, node: int, polled: Ids) -> tuple[Ids, Ids]:
        """(ids of the children whose rows the tier sees [R], places of the polled ones among them [H])"""
        if self.tiers[depth].sees != "all":
            return polled, np.arange(len(polled))
        ids = self.topology.below(depth, node, self.reach(depth))
        return ids, np.searchsorted(ids, polled)

    def awake(self, depth: int, to: int, kids: Ids, tick: int) -> Flags:
        """Whom of `kids` on level `to` a message from `depth` reaches: neither they nor a relay in between are away."""
        out = np.ones(len(kids), bool)
        for level in range(depth + 1, to + 1):
            out &= ~self.faults.silent(self.seed, level, self.topology.ancestor(to, kids, level), self.round, tick)
        return out

    def settle(
        self, depth: int, to: int, kids: Ids, down: Ids, up: Ids, answered: Flags, late: Flags, tick: int
    ) -> Flags:
        """Books what every link between `depth` and `to` carried, and says who is heard at the top [H].

        :param kids: those polled on level `to`; `down` bytes were sent to each, `up` bytes come from those that
        `answered`
        :param late: those that answered after the deadline
        """
        heard, common = answered & ~late, not self.tiers[depth].sees
        if late.any():
            self.log.lost[to - 1] = self.log.lost.get(to - 1, 0) + int(late.sum())
        sent = answered
        for d in reversed(range(depth, to)):
            ids = self.topology.ancestor(to, kids, d + 1)
            reached = np.ones(len(kids), bool)
            for level in range(depth + 1, d + 1):
                reached &= ~self.faults.silent(
                    self.seed, level, self.topology.ancestor(to, kids, level), self.round, tick
                )
            self._book(d, ids, np.where(reached, down, 0), np.where(sent, up, 0), common, tick)
            unique = np.unique(ids[sent])
            lost = unique[self.faults.lost(self.seed, d + 1, unique, self.round, tick)]
            if len(lost):
                self.log.lost[d] = self.log.lost.get(d, 0) + len(lost)
            heard = heard & ~np.isin(ids, lost)
            sent = heard
            away = np.unique(ids[reached])
            away = away[self.faults.silent(self.seed, d + 1, away, self.round, tick)]
            if len(away):
                self.log.silent[d] = self.log.silent.get(d, 0) + len(away)
        return heard

    def _book(self, depth: int, ids: Ids, down: Ids, up: Ids, common: bool, tick: int) -> None:
        nodes, place = np.unique(ids, return_inverse=True)
        total_up = np.bincount(place, up, len(nodes)).astype(np.int64)
        if common:  # one copy per node, however many descendants wait for it
            total_down = np.zeros(len(nodes), np.int64)
            np.maximum.at(total_down, place, down)
        else:
            total_down = np.bincount(place, down, len(nodes)).astype(np.int64)
        if self.topology.colocated and self.topology.colocated[depth]:
            total_down, total_up = 0 * total_down, 0 * total_up
        parents = self.topology.parents[depth][nodes]
        self.log.bursts.append(
            Burst(depth=depth, tick=tick, parents=parents, kids=nodes, down_bytes=total_down, up_bytes=total_up)
        )

    def late(self, level: int, devices: Ids, down: Ids, up: Ids, tick: int) -> Flags:
        """Books the computing of device visits; whose reply comes after the deadline [H]."""
        if level != self.depth:
            return np.zeros(len(devices), bool)
        samples = np.array(
            [
                self.plan.steps(int(i), self.algorithm) * self.plan.width(int(i)) * self.algorithm.passes
                for i in devices
            ],
            np.int64,
        )
        slow = self.faults.slow(self.seed, devices, self.round)
        self.log.visits.append(Visit(tick=tick, devices=devices, samples=samples, slowdown=slow))
        if self.faults.deadline_seconds is None or self.clock is None:
            return np.zeros(len(devices), bool)
        seconds: npt.NDArray[np.float64] = self.clock.visit_seconds(self.topology, devices, down, up, samples, slow)
        return seconds > self.faults.deadline_seconds

    def with_owed(self, level: int, child: int, up: Tree, weight: float) -> Tree:
        """A reply with the increments that this child still owes; kept in units of weight, since the weight may have
        changed.
        """
        owed = self.store.get(f"owed{level}", child)
        if "owed" not in up or owed is None:
            return up
        return {**up, "owed": tmap(lambda a, b: a + b / weight, up["owed"], owed)}

    def book_owed(self, level: int, child: int, up: Tree, weight: float, heard: bool) -> None:
        """After the parent was heard or not: what has arrived is owed no more."""
        if "owed" not in up:
            return
        if not heard:
            self.store.put(f"owed{level}", child, tmap(lambda a: a * weight, up["owed"]))
        elif self.store.get(f"owed{level}", child) is not None:
            self.store.put(f"owed{level}", child, None)

    def share(
        self, depth: int, heard: npt.NDArray[np.float64], total: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Info.share under the policy of a level."""
        over_all = self.topology.policies[depth].over == "all"
        return heard / np.maximum(total, 1e-12) if over_all else np.ones_like(heard)

    def regroup(self) -> None:
        """After a round: devices change team where the algorithm says so; rows and states follow by id."""
        scope = self.algorithm.regroup_scope(self.round)
        if not scope or self.depth == 1:
            return
        lowest, teams = self.depth - 1, self.topology.parents[-1].copy()
        known = np.array(self.store.ids(f"rows{lowest}"), np.int64)
        regions = np.zeros(len(teams), np.int64) if scope == "fogs" else self.topology.parents[-2][teams]
        for region in np.unique(regions[known]):
            ids = known[regions[known] == region]
            fogs = np.arange(self.topology.nodes[-1])
            if scope != "fogs":
                fogs = np.flatnonzero(self.topology.parents[-2] == region)
            local = np.searchsorted(fogs, teams[ids])
            teams[ids] = fogs[self.algorithm.regroup(stack(self.rows(lowest, ids)), local, len(fogs), self.round)]
        for i in np.flatnonzero(teams != self.topology.parents[-1]):
            self.log.moved.append((int(i), int(self.topology.parents[-1][i]), int(teams[i])))
        if self.log.moved:
            self.set_topology(self.topology.regrouped(teams))

    def stopped(self) -> str:
        """Why the cloud wants to end the run; empty: it goes on."""
        return self.tiers[0].stop(self.kept(0, 0))

    def meta(self) -> dict[str, Any]:
        """What a checkpoint needs beside the store's records."""
        return {"round": self.round, "teams": self.topology.parents[-1].tolist()}

    def restore(self, meta: dict[str, Any]) -> None:
        """The inverse of `meta`, on an engine over a store that was committed with it."""
        self.round = int(meta["round"])
        self.set_topology(self.topology.regrouped(np.array(meta["teams"], np.int64)))
